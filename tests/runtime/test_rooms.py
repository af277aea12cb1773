"""Which room of `cdl_deploy` may know which: no circles, and the runtime needs nothing that is built on it."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[2] / "cdl_deploy"
ORDER = ("data", "run", "closed_form", "runtime", "rows", "update", "learn", "targets", "evaluation", "bench")
"""Each room may import those before it, and the files beside the rooms that import none."""


def imported(file: Path) -> set[str]:
    """Modules of ours that a file imports, at any depth, but not those that it needs for types alone."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    typing_only = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    found = {
        node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node not in typing_only
    }
    found |= {a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names}
    return {name for name in found if name.startswith("cdl_deploy.")}


def test_rooms_import_those_before_them_only():
    wrong = []
    for number, room in enumerate(ORDER):
        for file in (PACKAGE / room).rglob("*.py"):
            for name in imported(file):
                other = name.split(".")[1]
                if (PACKAGE / other).is_dir() and other not in (*ORDER[: number + 1], "training"):
                    wrong.append(f"{file.relative_to(PACKAGE)} imports {name}")
                if other == "training" and file.name != "torch_runner.py":
                    wrong.append(f"{file.relative_to(PACKAGE)} imports {name}")
    assert not wrong


def test_files_beside_the_rooms_import_no_room():
    users = ("__init__.py", "__main__.py", "api.py")
    files = [file for file in PACKAGE.glob("*.py") if file.name not in users]
    assert len(files) > 10
    for file in files:
        assert not [m for m in imported(file) if (PACKAGE / m.split(".")[1]).is_dir()], file.name


def test_a_classifier_needs_no_benchmark():
    program = (
        "import sys, cdl_deploy.runtime.classifier, cdl_deploy.runtime.predict\n"
        "print(*sorted(m for m in sys.modules if m.startswith('cdl_deploy.')))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    rooms = {name.split(".")[1] for name in done.stdout.split()}
    assert rooms <= {"data", "documents", "errors", "printable", "regular_file", "runtime", "typed_json", "version"}
