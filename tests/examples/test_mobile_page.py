"""docs/mobile.md calls the exported model by its own names, types and shapes."""

from __future__ import annotations

import re
from pathlib import Path

import onnxruntime
import pytest

from tests.examples.conftest import PROJECT

PAGE = (PROJECT / "docs/mobile.md").read_text(encoding="utf-8")
APP_OUTPUTS = {"topk_label", "topk_probability", "task_scores"}
KOTLIN_TYPES = {
    "UINT8": "tensor(uint8)",
    "Array<Array<String>>": "tensor(string)",
    "Array<FloatArray>": "tensor(float)",
}
SWIFT_TYPES = {"uInt8": "tensor(uint8)", "tensorStringData": "tensor(string)", "floats": "tensor(float)"}


def code(language: str) -> str:
    """The longest block of a language: the class that classifies."""
    return max(re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL), key=len)


def found(pattern: str, text: str) -> list[tuple[str, ...]]:
    """All matches, as tuples of groups; there must be some."""
    matches = [match.groups() for match in re.finditer(pattern, text)]
    assert matches, f"{pattern} is not on the page"
    return matches


@pytest.fixture(scope="module")
def signature(student: Path) -> dict[str, tuple[str, list[object]]]:
    """Name → type and shape of the model's inputs and outputs."""
    session = onnxruntime.InferenceSession(str(student))
    return {node.name: (node.type, node.shape) for node in (*session.get_inputs(), *session.get_outputs())}


def test_kotlin_feeds_what_the_model_takes(signature: dict[str, tuple[str, list[object]]]) -> None:
    ((name,),) = found(r'mapOf\("(\w+)" to', code("kotlin"))
    ((kind,),) = found(r"OnnxJavaType\.(\w+)\)", code("kotlin"))
    ((shape,),) = found(r"longArrayOf\((.*)\)", code("kotlin"))
    taken, dimensions = signature[name]
    assert taken == KOTLIN_TYPES[kind]
    assert [part.strip().removeprefix("bitmap.").removesuffix(".toLong()") for part in shape.split(", ")] == [
        "1" if index == 0 else str(dimension) for index, dimension in enumerate(dimensions)
    ]


def test_kotlin_reads_what_the_model_gives(signature: dict[str, tuple[str, list[object]]]) -> None:
    ((asked,),) = found(r"setOf\((.*?)\)", code("kotlin"))
    assert set(re.findall(r'"(\w+)"', asked)) == APP_OUTPUTS
    read = found(r'result\.get\("(\w+)"\)\.get\(\)\.value as (\S+)', code("kotlin"))
    assert {name: KOTLIN_TYPES[kind] for name, kind in read} == {name: signature[name][0] for name in APP_OUTPUTS}


def test_swift_feeds_what_the_model_takes(signature: dict[str, tuple[str, list[object]]]) -> None:
    ((name,),) = found(r'withInputs: \["(\w+)":', code("swift"))
    ((kind,),) = found(r"elementType: \.(\w+)", code("swift"))
    ((shape,),) = found(r"let shape: \[NSNumber\] = \[(.*)\]", code("swift"))
    taken, dimensions = signature[name]
    assert taken == SWIFT_TYPES[kind]
    assert re.findall(r"(?:value: )?(\w+)\)?(?:,|$)", shape) == [
        "1" if index == 0 else str(dimension) for index, dimension in enumerate(dimensions)
    ]


def test_swift_reads_what_the_model_gives(signature: dict[str, tuple[str, list[object]]]) -> None:
    ((asked,),) = found(r"outputNames: \[(.*?)\]", code("swift"))
    assert set(re.findall(r'"(\w+)"', asked)) == APP_OUTPUTS
    read = {name: "tensorStringData" for (name,) in found(r'result\["(\w+)"\]!\.tensorStringData\(\)', code("swift"))}
    read |= {name: "floats" for (name,) in found(r'floats\(try result\["(\w+)"\]!\.tensorData\(\)\)', code("swift"))}
    assert {name: SWIFT_TYPES[kind] for name, kind in read.items()} == {
        name: signature[name][0] for name in APP_OUTPUTS
    }


def test_the_table_lists_all_inputs_and_outputs(signature: dict[str, tuple[str, list[object]]]) -> None:
    rows = []
    for line in PAGE.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| `"):
            rows += [(name, cells[1], cells[2]) for name in re.findall(r"`(\w+)`", cells[0])]
    assert {name for name, _, _ in rows} == set(signature)
    for name, kind, shape in rows:
        assert signature[name][0] == f"tensor({kind})"
        assert len(signature[name][1]) == len(shape.strip("[]").split(","))
