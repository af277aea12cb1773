"""A checkout whose symbolic links became text files, as zip files and Windows leave them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cdl_deploy.checkout import REPAIR, CheckoutError, check_checkout

PROJECT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What building and starting need of this checkout, with text files for links. Only to be read."""
    root = tmp_path_factory.mktemp("unpacked") / "cdl-deploy"
    ignored = shutil.ignore_patterns("__pycache__", "web")
    shutil.copytree(PROJECT / "cdl_deploy", root / "cdl_deploy", symlinks=True, ignore=ignored)
    shutil.copytree(PROJECT / "tools", root / "tools", ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE", "MANIFEST.in"):
        shutil.copy(PROJECT / name, root)
    for name in ("training", "export"):
        shutil.copytree(PROJECT / name, root / name, ignore=shutil.ignore_patterns("__pycache__", "*.safetensors"))
        (root / "cdl_deploy" / name).unlink()
        (root / "cdl_deploy" / name).write_text(f"../{name}")
    return root


def start(program: str, checkout: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    words = [sys.executable, "-c", program]
    return subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=60)


def test_this_checkout_has_its_links() -> None:
    check_checkout()
    for name in ("training", "export"):
        assert (PROJECT / "cdl_deploy" / name).resolve() == PROJECT / name


@pytest.mark.parametrize(("folder", "found"), [("a file", "a file"), (None, "missing")])
def test_the_message_says_what_to_do(folder: str | None, found: str, tmp_path: Path) -> None:
    (tmp_path / "training").mkdir()
    if folder is not None:
        (tmp_path / "export").write_text("../export")
    with pytest.raises(CheckoutError) as error:
        check_checkout(tmp_path)
    assert str(error.value) == (
        f"{tmp_path}/export is {found}, expected a symbolic link to ../export: zip files and Windows lose them. In the "
        "root of the checkout: git config core.symlinks true && git checkout -- cdl_deploy/training cdl_deploy/export "
        "(on Windows switch its Developer Mode on first), or without git: ln -sf ../training ../export cdl_deploy/"
    )


@pytest.mark.parametrize(
    "program",
    [
        "from cdl_deploy.cli import main; main(['train', '--data', 'digits', '--out', 'run'])",
        "from cdl_deploy.cli import main; main(['train', '--dry-run'])",
    ],
)
def test_the_command_line_says_it_in_one_line(program: str, checkout: Path, tmp_path: Path) -> None:
    result = start(program, checkout, tmp_path)
    assert result.returncode == 2
    assert result.stderr.startswith(f"error: {checkout}/cdl_deploy/training is a file, expected a symbolic link")
    assert result.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_python_says_it_too(checkout: Path, tmp_path: Path) -> None:
    calls = ("cdl_deploy.train('photos', out='run')", "cdl_deploy.export('run')")
    program = "import cdl_deploy\nfrom cdl_deploy.checkout import CheckoutError\n"
    program += "\n".join(f"try: {call}\nexcept CheckoutError as error: print(error)" for call in calls)
    result = start(program, checkout, tmp_path)
    lines = result.stdout.splitlines()
    assert len(lines) == 2, result.stderr
    assert all(line.endswith(REPAIR[1]) for line in lines)


def test_no_wheel_is_built_from_it(checkout: Path, tmp_path: Path) -> None:
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path / "dist")]
    result = subprocess.run([*build, str(checkout)], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert result.returncode != 0
    printed = result.stdout + result.stderr
    assert f"error: {checkout}/cdl_deploy/training is a file, expected a symbolic link to ../training" in printed
    assert "Traceback" not in printed
    assert not list((tmp_path / "dist").glob("*"))


@pytest.mark.parametrize("command", REPAIR)
def test_what_it_says_to_do_helps(command: str, tmp_path: Path) -> None:
    git = ["git", "-c", "user.name=x", "-c", "user.email=x", "-c", "core.symlinks=true"]
    for name in ("training", "export"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
    (tmp_path / "cdl_deploy").mkdir()
    for name in ("training", "export"):
        (tmp_path / "cdl_deploy" / name).symlink_to(f"../{name}")
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "x"]):
        subprocess.run([*git, *words], cwd=tmp_path, check=True)
    for name in ("training", "export"):
        (tmp_path / "cdl_deploy" / name).unlink()
    for words in (["config", "core.symlinks", "false"], ["checkout", "--", "cdl_deploy"]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    with pytest.raises(CheckoutError, match="is a file"):
        check_checkout(tmp_path / "cdl_deploy")
    subprocess.run(command, shell=True, cwd=tmp_path, check=True, capture_output=True)
    check_checkout(tmp_path / "cdl_deploy")
    assert (tmp_path / "cdl_deploy" / "export" / "__init__.py").is_file()
