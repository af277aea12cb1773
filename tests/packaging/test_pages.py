"""The pages, the citation and the workflows: links lead somewhere, YAML can be read, and CI runs what make runs."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from cdl_deploy.version import __version__
from tools.release_check import disagreements

PROJECT = Path(__file__).resolve().parents[2]
PAGES = sorted([*PROJECT.glob("*.md"), *PROJECT.glob("docs/*.md"), *PROJECT.glob("examples/**/*.md")])
PAGES = [page for page in PAGES if "node_modules" not in page.parts]
WORKFLOWS = sorted((PROJECT / ".github" / "workflows").glob("*.yml"))


def anchors(page: Path) -> set[str]:
    """The names that a page's headings can be linked to by, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(PROJECT).as_posix())
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    links = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|href)="([^"]+)"', text)
    for link in links:
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), f"{page.name} links to {link}"
        assert target.is_relative_to(PROJECT), f"{page.name} links out of the repository: {link}"
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target), f"{page.name} links to {link}, a heading that there is not"


def test_every_page_is_in_the_index() -> None:
    index = (PROJECT / "docs/index.md").read_text(encoding="utf-8")
    missing = [page.name for page in (PROJECT / "docs").glob("*.md") if f"({page.name})" not in index]
    assert missing == ["index.md"]


def test_readme_begins_with_what_it_is_for_and_two_commands() -> None:
    screen = "\n".join((PROJECT / "README.md").read_text(encoding="utf-8").splitlines()[:40])
    assert re.findall(r"^    (cdl \w+)", screen, re.MULTILINE) == ["cdl train", "cdl export"]
    assert 'src="docs/images/web.png"' in screen
    assert "| head |" in screen


def test_the_tree_in_the_architecture_is_the_one_there_is() -> None:
    page = (PROJECT / "docs/architecture.md").read_text(encoding="utf-8")
    tree = page.split("```")[1].strip().splitlines()
    top = ""
    named = set()
    for line in tree:
        name = line.split()[0]
        top = top if line.startswith(" ") else name
        named.add(name if name == top else f"{top}{name}")
    assert not [name for name in named if not (PROJECT / name).exists()]
    for folder in ("cdl_deploy", "training", "export"):
        rooms = {path.parent for path in (PROJECT / folder).glob("*/__init__.py")}
        for room in rooms:
            name = room.relative_to(PROJECT).as_posix()
            assert {name, f"{name}/"} & named, f"{name} is not in docs/architecture.md"


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_runs_make_and_no_more(path: Path) -> None:
    workflow = load(path)
    assert workflow["permissions"] == {"contents": "read"}
    targets = set(re.findall(r"^([a-z-]+):", (PROJECT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    steps = [step for job in workflow["jobs"].values() for step in job.get("steps", [])]
    for command in (step["run"] for step in steps if "run" in step):
        words = command.split()
        assert words[0] in ("make", "gh"), command
        if words[0] == "make":
            assert {word for word in words[1:] if "=" not in word} <= targets, command
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"secrets\.|password:|https?://|\.org|\.io\b", text)


def test_ci_runs_what_make_check_runs() -> None:
    makefile = (PROJECT / "Makefile").read_text(encoding="utf-8")
    (wanted,) = re.findall(r"^check: ([a-z -]+?) *##", makefile, re.MULTILINE)
    workflow = load(PROJECT / ".github/workflows/ci.yml")
    commands = [step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]
    assert {word for command in commands for word in command.split()[1:]} == set(wanted.split())
    script = (PROJECT / ".ci/run").read_text(encoding="utf-8")
    own = re.findall(r"make --no-print-directory (?:-\S+ )*([a-z -]+)", script)
    targets = {word for words in own for word in words.split()}
    # What the apps need is a part of `examples` that computes on one core.
    assert targets - {"example-apps"} == set(wanted.split())
    assert re.search(r"^examples: example-apps ", makefile, re.MULTILINE)


def test_ci_runs_every_python_that_the_package_names() -> None:
    pyproject = (PROJECT / "pyproject.toml").read_text(encoding="utf-8")
    matrix = load(PROJECT / ".github/workflows/ci.yml")["jobs"]["test"]["strategy"]["matrix"]
    assert matrix["python"] == re.findall(r"Python :: (3\.\d+)", pyproject)
    assert matrix["os"] == ["ubuntu-latest", "macos-latest"]


def test_pre_commit_runs_what_make_runs() -> None:
    hooks = [hook for repository in load(PROJECT / ".pre-commit-config.yaml")["repos"] for hook in repository["hooks"]]
    assert [hook["entry"].split()[0] for hook in hooks] == [".venv/bin/ruff", ".venv/bin/ruff", ".venv/bin/mypy"]


def test_the_citation_says_version_and_paper() -> None:
    citation = load(PROJECT / "CITATION.cff")
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors", "license"} <= set(citation)
    assert citation["version"] == __version__
    (paper,) = citation["references"]
    assert paper["identifiers"][0]["value"] == "arXiv:2407.13911"


@pytest.mark.parametrize(
    ("tag", "version", "citation", "changelog", "expected"),
    [
        ("v1.2.3", "1.2.3", "1.2.3", "## [1.2.3] - 2027-01-31", []),
        ("1.2.3", "1.2.3", "1.2.3", "## [1.2.3] - 2027-01-31", ["the tag is 1.2.3, expected v and a version"]),
        ("v1.2.3", "1.2.2", "1.2.3", "## [1.2.3] - 2027-01-31", ["cdl_deploy/version.py says 1.2.2, expected 1.2.3"]),
        ("v1.2.3", "1.2.3", "1.2.2", "## [1.2.3] - 2027-01-31", ["CITATION.cff says 1.2.2, expected 1.2.3"]),
        ("v1.2.3", "1.2.3", "1.2.3", "## [1.2.3] - unreleased", ["CHANGELOG.md has no dated section"]),
    ],
)
def test_a_release_needs_version_citation_and_changelog(
    tag: str, version: str, citation: str, changelog: str, expected: list[str], tmp_path: Path
) -> None:
    (tmp_path / "cdl_deploy").mkdir()
    (tmp_path / "cdl_deploy/version.py").write_text(f'__version__ = "{version}"\n')
    (tmp_path / "CITATION.cff").write_text(f"cff-version: 1.2.0\nversion: {citation}\n")
    (tmp_path / "CHANGELOG.md").write_text(f"# Changelog\n\n{changelog}\n")
    found = disagreements(tag, tmp_path)
    assert len(found) == len(expected)
    assert all(line.startswith(start) for line, start in zip(found, expected, strict=True))


def test_make_lists_its_targets() -> None:
    listed = subprocess.run(["make"], cwd=PROJECT, capture_output=True, text=True, timeout=60).stdout
    assert {"demo", "test", "test-fast", "check", "build"} <= {line.split()[0] for line in listed.splitlines()}
