"""int8 by the tool of a target's vendor: what it is asked for, what it makes, and what stops that from being written.

NNCF itself is tried where there is an environment with it; elsewhere a script stands for it.
"""

from __future__ import annotations

import json
import os
import shutil
import textwrap
import xml.etree.ElementTree as Xml
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
from typer.testing import CliRunner

from cdl_deploy.cli import app
from cdl_deploy.errors import OptionError, QuantisationError
from cdl_deploy.export import ExportOptions, Shrink, vendor_int8
from cdl_deploy.export.options import own_shrink
from cdl_deploy.export.vendor_int8 import classifier, products_of, write_vendor_int8
from cdl_deploy.run.latest import latest_record
from cdl_deploy.runtime.bundle import read_bundle
from cdl_deploy.runtime.bundle_parts import Quantization
from cdl_deploy.targets import find_target, targets
from cdl_deploy.targets.process import SCRIPTS, is_installed
from tests.export.conftest import exported
from tests.export.learning import error_of

ENVIRONMENTS = Path(os.environ.get("CDL_RUNTIMES", Path(__file__).parents[2] / ".runtimes"))
HEAD = f"""
import json, sys
import numpy as np
sys.path.insert(0, {SCRIPTS.as_posix()!r})
import common, onnxruntime

def convert(model, folder, first):
    made = [folder / f"{{model.stem}}{{suffix}}" for suffix in (".xml", ".bin")]
    np.load(folder.parent / "calibration.npy")[:, :1, :1, :].tofile(made[0])
    made[1].write_text((folder.parent / "products.json").read_text())
    onnxruntime.InferenceSession(model)
    model.rename(folder.parent / "given.onnx")
    return made

def load(file, first, threads):
    session = onnxruntime.InferenceSession(file.parents[1] / "given.onnx")
    return lambda batch: answer(session.run(["logits"], {{"image": batch}})[0])
"""
SAME = HEAD + "answer = lambda logits: logits + 0.25\n"
OTHER = HEAD + "answer = lambda logits: -logits\n"
NOTHING = HEAD + "answer = lambda logits: logits * np.nan\n"
FAILS = HEAD + "def convert(*given): raise common.RefusedError('NNCF did not quantise node_7')\n"
ENDS = HEAD + "def convert(*given): __import__('os').abort()\n"
MAIN = "if __name__ == '__main__': common.main('onnxruntime', load, convert)\n"


def target_with(folder, body):
    """OpenVINO's target, which is onnxruntime here, and a tool that is the script `body`."""
    script = folder / "run_tool.py"
    script.write_text(textwrap.dedent(body) + MAIN, encoding="utf-8")
    here = find_target("onnxruntime")
    tool = replace(here, name="openvino", script=str(script), converted=(".int8-nncf.xml", ".int8-nncf.bin"))
    return replace(here, name="openvino", quantiser=tool)


@pytest.fixture
def write(small_run, small_bundle, tmp_path):
    """A function that has a made-up tool quantise the student of `small_run`, in the folder `out`."""
    out = tmp_path / "out"
    out.mkdir()
    shutil.copy(small_bundle / "student.onnx", out)
    bundle = replace(read_bundle(small_bundle / "student.onnx"), path=out / "student.onnx")

    def run(body, max_drop=0.5):
        target, shrink = target_with(tmp_path, body), Shrink(("int8",), max_drop=max_drop)
        return write_vendor_int8(
            small_run, latest_record(small_run), bundle, target, None, shrink, None, None, lambda text: None
        )

    return run


def test_what_the_tool_is_given_and_what_is_said_of_it(write, small_run, tmp_path):
    made, out = write(SAME), tmp_path / "out"
    names = ("student.onnx", *(f"student.int8-nncf.{suffix}" for suffix in ("bin", "json", "xml")))
    assert sorted(it.name for it in out.iterdir()) == sorted(names)
    record = json.loads((small_run / "run.json").read_text())
    right = made.bundle.quantization.accuracy_before
    assert right == pytest.approx(record["student"]["final_average_accuracy"])
    assert made.bundle.quantization == Quantization("int8", True, (), right, right)
    assert (made.bundle.parity.images, made.bundle.parity.top1_agreement, made.held_out) == (12, 1, 12)
    assert made.proof.max_abs_logit_difference == pytest.approx(0.25, abs=1e-6)
    assert made.proof.bytes == sum(it.stat().st_size for it in out.glob("*.xml")) + (out / names[1]).stat().st_size
    assert made.calibration == f"24 training images of {small_run.parent / 'photos'}"
    assert (out / "student.int8-nncf.xml").stat().st_size == 24 * 3
    assert json.loads((out / "student.int8-nncf.bin").read_text()) == products_of(onnx.load(out / "student.onnx"))
    described = json.loads((out / "student.int8-nncf.json").read_text())
    assert described["quantization"]["accuracy_after"] == right
    assert described["classes"] == ["ant", "bee", "cat", "dog"]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (OTHER, r"int8-nncf.xml answers \d.* % right instead of .* %, --max-drop 0.5 points allowed: allow more, give"),
        (OTHER, r"or take our own int8 file, which openvino runs as well \(--onnx --quantize int8, without --target"),
        (NOTHING, r"answers with \[12, 4\] numbers, or not with numbers, expected \[12, 4\]: take our own int8"),
        (FAILS, r"could not be made or run with onnxruntime \(NNCF did not quantise node_7\): take our own int8"),
        (ENDS, r"could not be made or run with onnxruntime \(exit code -6.*\): take our own int8 .*; nothing was wr"),
    ],
)
def test_nothing_is_left_where_it_fails_or_loses_too_much(write, tmp_path, body, said):
    with pytest.raises(QuantisationError, match=said):
        write(body)
    assert [it.name for it in (tmp_path / "out").iterdir()] == ["student.onnx"]


def test_a_larger_drop_may_be_allowed(write):
    assert write(OTHER, max_drop=100).bundle.quantization.accuracy_after < 50


def test_products_are_those_of_tokens_with_a_matrix(small_bundle):
    """What preprocesses, selects, attends and classifies is none: counted from the names of constants."""
    model = onnx.load(small_bundle / "student.onnx")
    names, constants = products_of(model), {it.name for it in model.graph.initializer}
    chosen = [node for node in model.graph.node if node.name in names]
    assert len(chosen) == len(set(names))
    assert {node.op_type for node in chosen} == {"Conv", "MatMul"}
    assert sum(node.op_type == "Conv" for node in chosen) == 1
    left = [node for node in model.graph.node if node.op_type in ("Conv", "Gemm", "MatMul") and node not in chosen]
    read = {value for node in left for value in node.input if value in constants}
    assert read
    assert not [it for it in read if ".mlp." in it or it.startswith("backbone.")]
    own = {value for node in chosen for value in node.input if value in constants}
    assert not [it for it in own if it.startswith(("preprocessing/", "selection.", "head.", "last."))]


def test_features_and_distance_are_left_away(trained, bundles):
    model = onnx.load(bundles() / "student.onnx")
    bare = classifier(model)
    assert {"features", "distance"} <= {it.name for it in model.graph.output}
    assert not {"features", "distance"} & {it.name for it in bare.graph.output}
    assert "distance" not in {value for node in bare.graph.node for value in node.output}
    onnx.checker.check_model(bare, full_check=True)


def test_our_own_int8_is_made_for_other_targets_and_for_none(tmp_path):
    shrink = Shrink(("int8", "fp16"), tmp_path)
    assert own_shrink(ExportOptions(shrink=shrink)) == shrink
    assert own_shrink(ExportOptions(shrink=shrink, target="onnxruntime")) == shrink
    assert own_shrink(ExportOptions(shrink=shrink, target="openvino")) == Shrink(("fp16",))
    assert own_shrink(ExportOptions(target="openvino")) == Shrink()


@pytest.mark.usefixtures("traced")
def test_export_writes_it_beside_the_float_file(small_run, tmp_path, monkeypatch):
    monkeypatch.setitem(targets(), "openvino", target_with(tmp_path, SAME))
    out = tmp_path / "out"
    words = ("export", str(small_run), "--target", "openvino", "--quantize", "int8", "--no-teacher", "--ort")
    done = CliRunner().invoke(app, [*words, "--out", str(out)])
    assert done.exit_code == 0, done.output
    suffixes = (".json", ".onnx", ".ort", ".int8-nncf.bin", ".int8-nncf.json", ".int8-nncf.xml")
    assert sorted(it.name for it in out.iterdir()) == sorted(f"student{suffix}" for suffix in suffixes)
    assert (
        "student.int8-nncf.xml: 100.0 % right as fp32, 100.0 % as int8, in the mean of the tasks, on 12 held-out images"
        in done.output
    )
    assert "in float, as precise as the runtime chooses, are:" in done.output
    assert "student.int8-nncf.xml in openvino" in done.output
    assert "same top-1 for 12 of 12" in done.output
    assert f"Next: cdl bench-latency {out / 'student.onnx'} --runtime onnxruntime,openvino\n" in done.output


@pytest.mark.usefixtures("traced")
def test_a_tool_that_is_not_installed_is_named_and_the_file_it_takes_is_written(small_run, tmp_path, monkeypatch):
    tool = replace(find_target("openvino").quantiser, packages=("no_such_tool",))
    monkeypatch.setitem(targets(), "openvino", replace(target_with(tmp_path, SAME), quantiser=tool))
    words = ("export", str(small_run), "--target", "openvino", "--quantize", "int8", "--no-teacher", "--out", "out")
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    said = "int8 by nncf was not made: it is not installed here: pip install openvino nncf, or name a Python that"
    assert said in done.output
    assert sorted(it.name for it in (tmp_path / "out").iterdir()) == ["student.json", "student.onnx"]


def test_an_old_tool_is_refused_before_any_work(small_run, tmp_path, monkeypatch):
    target = target_with(tmp_path, SAME)
    tool = replace(target.quantiser, oldest=(99,), install="pip install openvino nncf")
    monkeypatch.setitem(targets(), "openvino", replace(target, quantiser=tool))
    out = tmp_path / "out"
    said = error_of("export", small_run, "--target", "openvino", "--quantize", "int8", "--out", out)
    assert "is too old, expected 99 or later: pip install openvino nncf" in said
    assert not out.exists()


def test_no_interpreter_is_said_before_any_work(small_run, tmp_path):
    out = tmp_path / "out"
    said = error_of("export", small_run, "--target", "openvino", "--target-python", tmp_path / "none", "--out", out)
    assert "No such file" in said
    assert not out.exists()


@pytest.fixture
def python():
    """An interpreter with OpenVINO and NNCF."""
    found = ENVIRONMENTS / "openvino" / "bin" / "python"
    if not found.exists() or not is_installed(find_target("openvino").quantiser, found):
        pytest.skip(f"no openvino with nncf in {ENVIRONMENTS}: make targets")
    return found


@pytest.mark.runtimes
@pytest.mark.parametrize("batch", [None, 4])
def test_nncf_quantises_what_it_is_told_and_nothing_else(trained, tmp_path, python, batch):
    """Read from the file that it wrote."""
    given = {"shrink": Shrink(("int8",), max_drop=50), "target": "openvino", "target_python": python, "batch": batch}
    run = trained(method="l2p", distill="kdp")
    student, small = exported(run, tmp_path / "out", teacher=False, **given)
    assert small.bundle.path.name == "student.int8-nncf.xml"
    assert small.proof.runtime.startswith("openvino ")
    assert small.proof.top1_agreement >= 0.5
    assert small.bundle.quantization.batch_invariant
    root = Xml.parse(small.bundle.path).getroot()
    layers = {it.get("id"): it for it in root.find("layers")}
    readers: dict[str, list[str]] = {}
    for edge in root.find("edges"):
        readers.setdefault(edge.get("from-layer"), []).append(edge.get("to-layer"))
    eight = [
        key
        for key, it in layers.items()
        if it.get("type") == "FakeQuantize"
        or (it.get("type") == "Const" and it.find("data").get("element_type") == "i8")
    ]
    between, fed = {"Convert", "Multiply", "Subtract", "Reshape", "Transpose", "StridedSlice"}, set()
    while eight:
        for key in readers[eight.pop()]:
            own = layers[key]
            eight += [key] if own.get("type") in between else []
            fed |= set() if own.get("type") in between else {own.get("name")}
    assert fed == set(products_of(onnx.load(student.bundle.path)))
    told = {it.tag: it.get("value") for it in root.find("rt_info/framework")}
    assert json.loads(told["cdl.classes"]) == list(small.bundle.classes)
    assert json.loads(told["cdl.quantization"])["kind"] == "int8"


@pytest.mark.runtimes
def test_a_name_that_openvino_does_not_know_is_an_error(trained, tmp_path, python, monkeypatch):
    monkeypatch.setattr(vendor_int8, "products_of", lambda model: ["no_such_node"])
    given = {"shrink": Shrink(("int8",), max_drop=100), "target": "openvino", "target_python": python}
    with pytest.raises(QuantisationError, match="OpenVINO calls 1 of 1 products otherwise, such as no_such_node"):
        exported(trained(), tmp_path / "out", teacher=False, **given)
    assert not (tmp_path / "out").exists()


def test_the_tool_is_a_target_of_its_own():
    tool = find_target("openvino").quantiser
    assert (SCRIPTS / tool.script).is_file()
    assert tool.install == "pip install openvino nncf"
    with pytest.raises(OptionError, match="expected 99 or later"):
        is_installed(replace(tool, packages=("numpy",), distribution="numpy", oldest=(99,)))
