"""What a device installs: every package is pinned with hashes, and README names it."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

from packaging.requirements import Requirement

from tools.device_constraints import applies, normal

PROJECT = Path(__file__).resolve().parents[2]
TEXT = (PROJECT / "constraints-device.txt").read_text(encoding="utf-8")
PINNED = dict(re.findall(r"^([a-z0-9-]+)==(\S+)", TEXT, re.MULTILINE))


def closure() -> set[str]:
    """What the base install brings here, by the metadata of what is installed."""
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    waiting, found = list(project["dependencies"]), set[str]()
    while waiting:
        requirement = Requirement(waiting.pop())
        name = normal(requirement.name)
        if name in found or (requirement.marker is not None and not requirement.marker.evaluate({"extra": ""})):
            continue
        found.add(name)
        try:
            waiting += requires(requirement.name) or []
        except PackageNotFoundError:
            continue
    return found


def test_every_package_is_pinned_with_hashes():
    assert closure() <= PINNED.keys()
    for name in PINNED:
        (block,) = re.findall(rf"^{name}==[^\n]*\n(?: +--hash[^\n]*\n)+", TEXT, re.MULTILINE)
        assert re.findall(r"--hash=sha256:[0-9a-f]{64}\b", block), name
    assert "//" not in TEXT  # no address of any index


def test_versions_are_those_of_the_tests():
    tested = {
        normal(name): version
        for name, version in re.findall(
            r"^([\w.-]+)==(\S+)$", (PROJECT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE
        )
    }
    assert {name: tested[name] for name in PINNED if name in tested} == {
        name: version for name, version in PINNED.items() if name in tested
    }


def test_readme_names_them_all():
    readme = (PROJECT / "README.md").read_text(encoding="utf-8")
    section = readme.partition("## What a device installs")[2].partition("\n## ")[0]
    assert not [name for name in PINNED if name not in section.replace("backports.zstd", "backports-zstd")]
    assert f"brings {len(PINNED)} packages" in section


def test_markers_are_followed():
    assert applies("numpy>=1", "3.14")
    assert applies("x>=1; python_version < '3.14'", "3.13")
    assert not applies("x>=1; python_version < '3.14'", "3.14")
