"""Which module may import which, and what starting up may not load."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "torchvision", "timm", "onnx", "onnxscript", "sklearn", "matplotlib", "numpy", "onnxruntime", "PIL")


@pytest.mark.parametrize(
    "program",
    [
        "import cdl_deploy",
        "from cdl_deploy.cli import main; main(['--help'])",
        "from cdl_deploy.cli import main; main(['--version'])",
        "from cdl_deploy.cli import main; main(['train', '--help'])",
        "from cdl_deploy.cli import main; main(['predict', '--help'])",
    ],
)
def test_starting_up_loads_nothing_heavy(program: str, tmp_path: Path) -> None:
    report = f"import atexit, sys; atexit.register(lambda: print('LOADED', *sorted(set(sys.modules) & {set(HEAVY)!r})))"
    result = subprocess.run(
        [sys.executable, "-c", f"{report}\n{program}"], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "LOADED"


@pytest.mark.parametrize(
    ("file", "line", "rule"),
    [
        ("cdl_deploy/x.py", "import training", "TID251"),
        ("training/x.py", "from training.data import tasks", "TID251"),
        ("export/x.py", "import export.graph", "TID251"),
        ("tests/x.py", "from export import graph", "TID251"),
        ("training/x.py", "import pickle", "TID251"),
        ("cdl_deploy/x.py", "from .errors import CdlError", "TID252"),
        ("cdl_deploy/x.py", "import torch", "TID253"),
        ("cdl_deploy/cli/x.py", "from cdl_deploy.training import config", "TID253"),
        ("cdl_deploy/x.py", "import cdl_deploy.export", "TID253"),
        ("cdl_deploy/x.py", "def f():\n    import torch\n    import cdl_deploy.training", None),
        ("training/x.py", "import torch", None),
        ("export/x.py", "import torch\n\nimport cdl_deploy.training", None),
    ],
)
def test_the_linter_keeps_the_layers_apart(file: str, line: str, rule: str | None) -> None:
    found = subprocess.run(
        ["ruff", "check", "--select=TID", "--output-format=concise", "--no-cache", f"--stdin-filename={file}", "-"],
        cwd=PROJECT,
        input=line + "\n",
        capture_output=True,
        text=True,
        timeout=60,
        env={"PATH": str(Path(sys.executable).parent)},
    )
    rules = [text.split()[1] for text in found.stdout.splitlines() if text.startswith(file)]
    assert rules == ([rule] if rule else []), found.stdout + found.stderr


@pytest.mark.parametrize(
    ("folder", "unknown"),
    [("training", "export|bundle|classifier|predict|bench|cli"), ("export", "classifier|predict|bench|cli")],
)
def test_data_flows_one_way(folder: str, unknown: str) -> None:
    importing = re.compile(rf"^\s*(from|import) cdl_deploy\.({unknown})\b", re.MULTILINE)
    files = list((PROJECT / folder).rglob("*.py"))
    assert files
    assert not [str(file) for file in files if importing.search(file.read_text(encoding="utf-8"))]
