"""No module imports itself by way of others, and no room of training another that imports it."""

from __future__ import annotations

import ast
import graphlib
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
ROOMS = {"cdl_deploy": "cdl_deploy", "cdl_deploy.training": "training", "cdl_deploy.export": "export"}
"""Where each part of the package lies in the repository."""


def modules() -> dict[str, Path]:
    """Every module by its full name."""
    found = {}
    for package, folder in ROOMS.items():
        for file in (PROJECT / folder).rglob("*.py"):
            parts = file.relative_to(PROJECT / folder).with_suffix("").parts
            if package == "cdl_deploy" and parts[0] in ("training", "export"):  # followed links
                continue
            names = [part for part in parts if part != "__init__"]
            found[".".join([package, *names])] = file
    return found


def on_import(body: list[ast.stmt]) -> Iterator[ast.Import | ast.ImportFrom]:
    """Imports that run when the module is imported, not when a function is called."""
    for node in body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif isinstance(node, ast.If) and "TYPE_CHECKING" not in ast.dump(node.test):
            yield from on_import([*node.body, *node.orelse])
        elif isinstance(node, ast.Try):
            yield from on_import([*node.body, *node.orelse, *node.finalbody])
        elif isinstance(node, ast.With | ast.ClassDef):
            yield from on_import(node.body)


def graph() -> dict[str, set[str]]:
    """Which modules of the package each imports."""
    files = modules()
    imports = {}
    for module, file in files.items():
        found = set()
        for node in on_import(ast.parse(file.read_text(encoding="utf-8")).body):
            if isinstance(node, ast.Import):
                found |= {name.name for name in node.names}
            elif node.module:
                inside = {f"{node.module}.{name.name}" for name in node.names}
                found |= (inside & files.keys()) | ({node.module} if inside - files.keys() else set())
        imports[module] = found & files.keys()
    return imports


def room(module: str) -> str:
    """The folder a module is in; a module right inside training or export is a room of its own."""
    parts = module.split(".")
    if parts[1:2] and parts[1] in ("training", "export"):
        return ".".join(parts[:3])
    return ".".join(parts[:2])


def check_no_circles(imports: Mapping[str, set[str]]) -> None:
    try:
        graphlib.TopologicalSorter(imports).prepare()
    except graphlib.CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


def test_no_module_imports_itself_by_way_of_others():
    imports = graph()
    assert len(imports) > 100
    assert imports["cdl_deploy.training.models.learner"]
    check_no_circles(imports)


def test_rooms_of_training_and_export_do_not_import_each_other_in_circles():
    by_room: dict[str, set[str]] = defaultdict(set)
    for module, imported in graph().items():
        by_room[room(module)] |= {room(name) for name in imported} - {room(module)}
    of_training = ("cdl_deploy.training.", "cdl_deploy.export.")
    check_no_circles({name: {n for n in found if n.startswith(of_training)}
                      for name, found in by_room.items() if name.startswith(of_training)})  # fmt: skip


def test_a_circle_would_be_found():
    with pytest.raises(pytest.fail.Exception, match="imports"):
        check_no_circles({"a": {"b"}, "b": {"c"}, "c": {"a"}})
