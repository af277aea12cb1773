"""What static tools see of the package from a script that lies outside the checkout."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import jedi
import pytest

PROJECT = Path(__file__).resolve().parents[2]
SCRIPT = """\
import cdl_deploy
from cdl_deploy.export import ExportOptions
from cdl_deploy.training import losses
from cdl_deploy.run.config import RunConfig

reveal_type(RunConfig().optim.epochs)
reveal_type(ExportOptions().opset)
reveal_type(losses.distillation_loss)
reveal_type(cdl_deploy.Classifier("student.onnx").classes)
reveal_type(cdl_deploy.train)
reveal_type(cdl_deploy.export("run")[0].bytes)
"""
WRONG = """\
from cdl_deploy.run.config import RunConfig

RunConfig().optim.epoch
"""
# Third parties are not what is asked about, and take mypy ten seconds.
MYPY = """\
[mypy]
cache_dir = /dev/null
strict = true
[mypy-torch.*,torchvision.*,timm.*,numpy.*,onnx.*,onnxruntime.*,onnxscript.*,PIL.*,rich.*,typer.*]
follow_imports = skip
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment into which `pip install -e` put this checkout, and nothing else of it."""
    home = tmp_path_factory.mktemp("editable")
    hook = "import sys; from tools import build_backend; build_backend.build_editable(sys.argv[1])"
    made = subprocess.run([sys.executable, "-c", hook, str(home)], cwd=PROJECT, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    venv.create(home, with_pip=False, symlinks=True)
    packages = Path(sysconfig.get_path("purelib", "venv", {"base": str(home)}))
    (wheel,) = home.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(packages)
    third_parties = [path for path in sys.path if Path(path).name == "site-packages"]
    (packages / "third_parties.pth").write_text("\n".join(third_parties))
    return home / "bin" / "python"


def check(*command: str | Path, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(word) for word in command], cwd=folder, capture_output=True, text=True, timeout=120)


def test_an_editable_install_is_a_path_and_no_code(python: Path) -> None:
    (found,) = python.parents[1].glob("lib/python*/site-packages/__editable__.cdl_deploy-*.pth")
    assert found.read_text().split() == [str(PROJECT)]


def test_mypy_sees_every_subpackage(python: Path, tmp_path: Path) -> None:
    (tmp_path / "mypy.ini").write_text(MYPY)
    (tmp_path / "app.py").write_text(SCRIPT)
    (tmp_path / "wrong.py").write_text(WRONG)
    mypy = (sys.executable, "-m", "mypy", "--python-executable", python)
    result = check(*mypy, "app.py", "wrong.py", folder=tmp_path)
    types = [line.partition(' is "')[2].rstrip('"') for line in result.stdout.splitlines() if "Revealed type" in line]
    assert types[:2] == ["int", "int"], result.stdout
    assert types[2].startswith("def (student: ")
    assert types[3] == "tuple[str, ...]"
    assert types[4].startswith("def (")
    assert types[5] == "int"
    assert 'wrong.py:3: error: "OptimConfig" has no attribute "epoch"' in result.stdout
    assert "Found 1 error in 1 file (checked 2 source files)" in result.stdout


def test_pyright_sees_every_subpackage(python: Path, tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(SCRIPT)
    (tmp_path / "wrong.py").write_text(WRONG)
    pyright = (Path(sys.executable).with_name("basedpyright"), "--outputjson", "--pythonpath", python)
    found = json.loads(check(*pyright, "app.py", "wrong.py", folder=tmp_path).stdout)["generalDiagnostics"]
    of_app = [item for item in found if Path(item["file"]).name == "app.py"]
    assert not [item for item in of_app if item["severity"] == "error"]
    messages = [item["message"] for item in of_app if item["severity"] == "information"]
    assert len(messages) == 6, messages
    assert messages[0] == 'Type of "RunConfig().optim.epochs" is "int"'
    assert messages[1] == 'Type of "ExportOptions().opset" is "int"'
    assert messages[2].endswith('is "(student: Tensor, teacher: Tensor, temperature: float) -> Tensor"')
    assert messages[3].endswith('is "tuple[str, ...]"')
    assert messages[4].startswith('Type of "cdl_deploy.train" is "(')
    assert messages[5].endswith('is "int"')
    errors = [item["rule"] for item in found if Path(item["file"]).name == "wrong.py"]
    assert "reportAttributeAccessIssue" in errors


def test_jedi_completes_what_training_has(python: Path, tmp_path: Path) -> None:
    environment = jedi.create_environment(python, safe=False)
    code = "import cdl_deploy.training.losses\ncdl_deploy.training.losses."
    names = [item.name for item in jedi.Script(code, path=tmp_path / "app.py", environment=environment).complete()]
    assert {"masked_cross_entropy", "distillation_loss", "target_class_loss", "feature_loss"} <= set(names)
