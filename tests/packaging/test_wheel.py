"""The wheel, built from the sdist as a user's pip would, holds everything and works away from the checkout."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from collections.abc import Iterable
from importlib.metadata import Distribution, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from PIL import Image

from cdl_deploy import Classifier
from cdl_deploy.version import __version__

PROJECT = Path(__file__).resolve().parents[2]
ROOTS = {"cdl_deploy": "cdl_deploy", "cdl_deploy.training": "training", "cdl_deploy.export": "export"}


def run(*command: str | Path, cwd: Path, status: int = 0) -> str:
    """All that a program prints. It runs without anything that points back at the checkout, and must exit as told."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    words = [str(word) for word in command]
    result = subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == status, f"{words}\n{result.stdout}\n{result.stderr}"
    return result.stdout + result.stderr


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an sdist of what git would commit, and the wheel made from it: a file hidden by .gitignore is
    missing here too.

    Without isolation: setuptools comes from the test environment, so nothing is fetched.
    """
    checkout = tmp_path_factory.mktemp("checkout")
    listed = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=PROJECT)
    for name in filter(None, listed.split("\0")):
        if (PROJECT / name).is_file() or (PROJECT / name).is_symlink():  # else: deleted, and not committed yet
            (checkout / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(PROJECT / name, checkout / name, follow_symlinks=False)
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, checkout, cwd=out)
    return out


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    """The wheel."""
    (found,) = built.glob("*.whl")
    return found


def subpackages(names: Iterable[str]) -> set[str]:
    return {name for name in names if name.startswith(("cdl_deploy/training/", "cdl_deploy/export/"))}


def test_sdist_and_wheel_hold_the_same_training_and_export(built: Path, wheel: Path) -> None:
    (found,) = built.glob("*.tar.gz")
    with tarfile.open(found) as archive:
        members = [(member.name.partition("/")[2], member) for member in archive.getmembers()]
    assert not [name for name, member in members if member.issym() or member.islnk()]
    files = [name for name, member in members if member.isfile()]
    packed = zipfile.ZipFile(wheel).namelist()
    assert subpackages(files) == subpackages(packed)
    assert len(subpackages(packed)) > 50
    assert not [name for name in (*files, *packed) if name.startswith(("training/", "export/"))]


def test_wheel_has_every_file_of_the_three_roots(wheel: Path) -> None:
    wanted = set()
    for name, folder in ROOTS.items():
        for file in (PROJECT / folder).rglob("*"):
            if file.is_file() and "__pycache__" not in file.parts:
                wanted.add(f"{name.replace('.', '/')}/{file.relative_to(PROJECT / folder).as_posix()}")
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert packed == wanted
    assert {"cdl_deploy/py.typed", "cdl_deploy/training/__init__.py", "cdl_deploy/export/__init__.py"} <= packed


def test_wheel_carries_the_packaged_weights(wheel: Path) -> None:
    weights = [name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".safetensors")]
    assert sorted(Path(name).name for name in weights) == ["mini_student.safetensors", "mini_teacher.safetensors"]


def test_wheel_carries_the_licence(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert any(re.fullmatch(r"cdl_deploy-.*\.dist-info/licenses/LICENSE", name) for name in names)


def base_distributions() -> list[Distribution]:
    """The base dependencies and all that they need in turn, as installed here."""
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    waiting: list[str] = list(project["dependencies"])
    found: dict[str, Distribution] = {}
    while waiting:
        requirement = Requirement(waiting.pop())
        if requirement.name in found or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        found[requirement.name] = distribution(requirement.name)
        waiting += found[requirement.name].requires or []
    return list(found.values())


@pytest.fixture(scope="module")
def device(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of programs of a fresh environment that has the wheel and its base dependencies, and nothing else.

    Offline and in a second: the new environment sees nothing of this one but links to exactly the base dependencies.
    pip still resolves them (from no index at all), so one that the wheel's metadata do not name is not found.
    """
    home = tmp_path_factory.mktemp("device")
    venv.create(home, with_pip=False, symlinks=True)
    (packages,) = home.glob("lib/python*/site-packages")
    for found in base_distributions():
        for top in {file.parts[0] for file in found.files or [] if file.parts[0] not in ("..", "__pycache__")}:
            if not (packages / top).is_symlink():  # two distributions may share a namespace
                (packages / top).symlink_to(str(found.locate_file(top)))
    pip = (sys.executable, "-m", "pip", "--python", home / "bin" / "python")
    run(*pip, "install", "--quiet", "--no-index", wheel, cwd=home)
    run(*pip, "check", cwd=home)
    return home / "bin"


@pytest.fixture(scope="module")
def device_from_index(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as a user gets it: an empty environment, dependencies fetched."""
    home = tmp_path_factory.mktemp("device")
    venv.create(home, with_pip=True, symlinks=True)
    run(home / "bin" / "pip", "install", "-qq", "-c", PROJECT / "constraints.txt", wheel, cwd=home)
    return home / "bin"


def check_device(programs: Path, bundle: Path, folder: Path) -> None:
    """What a user of the bare package does: ask for the version and the help, classify an image, miss an extra."""
    look = "from importlib.util import find_spec; print(getattr(find_spec({!r}), 'origin', None))"
    for module in ROOTS:
        assert programs.parent in Path(run(programs / "python", "-c", look.format(module), cwd=folder).strip()).parents
    for module in ("torch", "timm", "onnx", "sklearn"):
        assert run(programs / "python", "-c", look.format(module), cwd=folder) == "None\n"

    assert run(programs / "cdl", "--version", cwd=folder) == f"cdl-deploy {__version__}\n"
    assert "predict" in run(programs / "cdl", "--help", cwd=folder)

    shutil.copy(bundle / "student.onnx", folder)
    Image.new("RGB", (31, 20), (15, 220, 30)).save(folder / "leaf.png")
    (expected,) = Classifier(folder / "student.onnx").predict(folder / "leaf.png")
    row = run(programs / "cdl", "predict", "student.onnx", "leaf.png", cwd=folder)
    assert row == f"leaf.png  {expected.label} {expected.probability:.1%}  task {expected.task}\n"

    page = run(programs / "cdl", "export", "student.onnx", "--web", "site", cwd=folder)
    assert page.startswith("Page written to site: ")

    refusal = run(programs / "cdl", "train", "--out", "run", cwd=folder, status=2)
    assert "pip install 'cdl-deploy[train]'" in refusal
    assert not (folder / "run").exists()


def test_wheel_works_alone(device: Path, small_bundle: Path, tmp_path: Path) -> None:
    check_device(device, small_bundle, tmp_path)


@pytest.mark.network
def test_wheel_installs_from_the_index(device_from_index: Path, small_bundle: Path, tmp_path: Path) -> None:
    check_device(device_from_index, small_bundle, tmp_path)
