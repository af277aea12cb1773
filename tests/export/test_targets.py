"""`--target`: what a runtime asks for, the proof in it, and what is refused."""

from __future__ import annotations

import os
import shutil
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper
from typer.testing import CliRunner

from cdl_deploy.cli import app
from cdl_deploy.errors import BundleError, OptionError, ParityError
from cdl_deploy.export import ExportOptions, export_run, options_for_target
from cdl_deploy.export.fit_target import fit_target, split_gathers
from cdl_deploy.runtime.bundle_parts import Quantization
from cdl_deploy.targets import checking, find_target, targets
from cdl_deploy.targets.checking import NotInstalled, Proof, prove
from cdl_deploy.targets.process import SCRIPTS, check_fits, is_installed, parse_places
from tests.conftest import no_shape_checks
from tests.export.conftest import exported
from tests.export.learning import error_of
from tests.export.test_preprocessing import photograph

ENVIRONMENTS = Path(os.environ.get("CDL_RUNTIMES", Path(__file__).parents[2] / ".runtimes"))


@pytest.fixture(scope="module")
def question(small_bundle):
    """A model, images, and the logits that onnxruntime gives in this process."""
    model = small_bundle / "student.onnx"
    images = np.stack([photograph(32, 32, seed) for seed in range(5)])
    (logits,) = onnxruntime.InferenceSession(model).run(["logits"], {"image": images})
    return model, images, logits


def test_an_unknown_target_names_the_nearest(small_run):
    said = error_of("export", small_run, "--target", "openvin")
    assert "unknown --target 'openvin', expected one of onnxruntime, executorch, litert, mnn, ncnn, openvino" in said
    assert "did you mean 'openvino'?" in said


@pytest.mark.parametrize(
    ("target", "options", "said"),
    [
        (
            "mnn",
            {"kinds": ("int8-dynamic",)},
            "--target mnn does not go with --quantize int8-dynamic: MNN converts it and",
        ),
        ("mnn", {"kinds": ("fp16",)}, "--target mnn does not go with --fp16: MNN stores fp16 itself"),
        ("portable", {"opset": 20}, "--target portable takes --opset 17 to 19, got 20"),
        ("portable", {"input": "image"}, "--target portable takes --input tensor, got image"),
        ("mnn", {"labels": "graph"}, "--target mnn cannot hold the output of names"),
        ("ncnn", {"batch": 4}, "--target ncnn takes --batch 1, got 4: leave --batch out"),
        ("ncnn", {"input": "image"}, "--target ncnn takes --input tensor, got image"),
        ("executorch", {"opset": 18}, "--target executorch takes --opset 17 to 17, got 18"),
        ("litert", {"input": "image"}, "--target litert takes images of one size: add --image-size H,W"),
        (
            "ncnn",
            {"tokens": 0.5},
            "--target ncnn cannot hold a model that merges patch tokens by ArgMax: leave --tokens",
        ),
        ("rknn", {"kinds": ("int8",)}, "--target rknn does not go with --quantize int8: its operators"),
    ],
)
def test_known_traps_are_refused(target, options, said):
    with pytest.raises(OptionError, match=said):
        options_for_target(target, **options)


def test_what_a_target_likes_best_where_nothing_is_asked():
    assert options_for_target(None) == {
        "target": None, "input": "image", "labels": "graph", "opset": 20, "batch": None, "image_size": None
    }  # fmt: skip
    found = options_for_target("portable", batch=4)
    assert (found["input"], found["labels"], found["opset"], found["batch"]) == ("tensor", "none", 18, 4)


def test_every_target_says_how_to_install_it_and_has_its_script():
    scripts = Path(find_target.__code__.co_filename).parent / "scripts"
    for target in targets().values():
        assert target.install.startswith("pip install ")
        assert target.note
        assert target.batches in (None, target.batch)
        assert (scripts / target.script).is_file()
        assert target.opsets[0] <= target.opset <= target.opsets[1]
        assert target.input in target.inputs


def test_who_lacks_a_runtime_is_named():
    assert NotInstalled("mnn", "pip install MNN").where == "here"
    assert NotInstalled("mnn", "pip install MNN", Path("/other/python")).where == "for /other/python"


def test_the_proof_is_the_difference(question):
    """In a process of its own; expected is moved by a known amount below what is allowed."""
    model, images, logits = question
    moved = logits.copy()
    moved[3, 1] += 5e-5
    proof = prove(find_target("portable"), model, images, moved, batch=2)
    assert proof.runtime == f"onnxruntime {onnxruntime.__version__}"
    assert proof.images == 5
    assert proof.max_abs_logit_difference == pytest.approx(5e-5, abs=2e-6)
    assert proof.top1_agreement == 1
    assert proof.bytes == model.stat().st_size


@pytest.mark.parametrize("change", ["far", "other class"])
def test_other_answers_are_refused(question, change):
    model, images, logits = question
    other = logits.copy()
    if change == "far":
        other[0] += 1
        said = r"answers otherwise in onnxruntime .*: a logit is off by 1, at most .* allowed, and 100% of 5 images"
    else:
        other[:, :] = 0
        other[np.arange(5), logits.argmin(axis=1)] = 1
        said = "and 0% of 5 images get the same class; nothing was written"
    with pytest.raises(ParityError, match=said):
        prove(find_target("onnxruntime"), model, images, other)


def test_a_runtime_that_fails_says_how(question):
    """Its exit code and its last lines."""
    lacking = replace(find_target("openvino"), script="run_openvino.py", packages=("json",))
    if is_installed(find_target("openvino")):
        pytest.skip("openvino is installed here")
    with pytest.raises(ParityError, match=r"does not run in openvino \(exit code 1: .*No module named 'openvino'"):
        prove(lacking, *question)


def test_no_interpreter_is_said(tmp_path):
    with pytest.raises(OptionError, match=r"--target-python .*none: No such file .*: pip install openvino"):
        is_installed(find_target("openvino"), tmp_path / "none")


@pytest.mark.usefixtures("traced")
def test_a_target_that_is_not_installed_is_written_and_named(small_run, tmp_path):
    if is_installed(find_target("openvino")):
        pytest.skip("openvino is installed here")
    out = tmp_path / "out"
    done = CliRunner().invoke(
        app, ["export", str(small_run), "--target", "openvino", "--no-teacher", "--out", str(out)]
    )
    assert done.exit_code == 0, done.output
    assert "student.onnx was written and not tried: openvino is not installed here: pip install openvino" in done.output
    assert f"Next: cdl bench-latency {out}\n" in done.output
    assert (out / "student.onnx").exists()


@pytest.mark.usefixtures("traced")
def test_nothing_is_written_where_the_runtime_answers_otherwise(small_run, tmp_path, monkeypatch):
    strict = replace(find_target("onnxruntime"), tolerance=-1.0)
    monkeypatch.setitem(targets(), "onnxruntime", strict)
    out = tmp_path / "out"
    with pytest.raises(ParityError, match="answers otherwise"):
        export_run(small_run, out, ExportOptions(teacher=False, target="onnxruntime", latency=False))
    assert not out.exists()


def test_portable_is_a_tensor_of_one_batch_without_strings(trained, tmp_path):
    (item,) = exported(trained(), tmp_path / "out", teacher=False, **options_for_target("portable"))
    model = onnx.load(item.bundle.path)
    sizes = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim]
    assert sizes == [1, 3, 16, 16]
    assert model.opset_import[0].version == 18
    assert not {node.op_type for node in model.graph.node} & {"Shape", "If", "Range"}
    assert isinstance(item.proof, Proof)
    assert item.to_dict()["proof"]["top1_agreement"] == 1


@pytest.fixture
def tensor_model(small_bundle):
    """The tail of one: TopK, and a Gather of two positions."""
    return onnx.load(small_bundle / "student.onnx")


def test_ncnn_gets_no_best_classes_and_no_gather_of_several(tensor_model):
    fitted = fit_target(tensor_model, find_target("ncnn"))
    constants = {it.name: numpy_helper.to_array(it) for it in fitted.graph.initializer}
    several = [n for n in fitted.graph.node if n.op_type == "Gather" and np.ndim(constants.get(n.input[1], 0))]
    assert not several
    assert "TopK" not in {node.op_type for node in fitted.graph.node}
    images = np.stack([photograph(32, 32, seed) for seed in range(3)])
    assert [it.name for it in fitted.graph.output][:2] == ["logits", "probabilities"]
    before, after = (
        onnxruntime.InferenceSession(it.SerializeToString()).run(["logits"], {"image": images})[0]
        for it in (tensor_model, fitted)
    )
    np.testing.assert_array_equal(before, after)


def test_a_gather_of_the_last_and_the_first_as_slices():
    given = [numpy_helper.from_array(np.array([-1, 0, -2]), "at")]
    ends = [helper.make_tensor_value_info(n, 1, [2, size, 3]) for n, size in (("x", 4), ("y", 3))]
    graph = helper.make_graph([helper.make_node("Gather", ["x", "at"], ["y"], axis=1)], "g", ends[:1], ends[1:], given)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    split_gathers(model)
    x = np.arange(24, dtype=np.float32).reshape(2, 4, 3)
    found = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": x})[0]
    np.testing.assert_array_equal(found, x[:, [3, 0, 2]])


def test_a_model_that_selects_by_topk_is_not_for_ncnn(tensor_model):
    values = [helper.make_tensor_value_info("values", 1, None), helper.make_tensor_value_info("places", 7, None)]
    tensor_model.graph.initializer.append(numpy_helper.from_array(np.array([1]), "one"))
    tensor_model.graph.node.append(helper.make_node("TopK", ["task_scores", "one"], ["values", "places"]))
    tensor_model.graph.output.extend(values)
    with pytest.raises(OptionError, match=r"ncnn cannot hold this model, which selects prompts by TopK: .*--select"):
        fit_target(tensor_model, find_target("ncnn"))


def worker(tmp_path, body):
    """A runtime that is made up: `load` or `convert`, in a script of its own."""
    scripts = SCRIPTS.as_posix()
    script = tmp_path / "run_made_up.py"
    head = f"import sys\nsys.path.insert(0, {scripts!r})\nimport common\n"
    script.write_text(head + textwrap.dedent(body), encoding="utf-8")
    return replace(find_target("onnxruntime"), name="made-up", script=str(script), converted=(".made",))


FAILS = """
def convert(model, folder, first):
    made = folder / "student.made"
    common.command(sys.executable, "-c", "print(1); print('no such operator'); raise SystemExit(7)", made=[made])
    return [made]

common.main("numpy", None, convert)
"""
PRINTS = """
print("welcome to made-up", end="")

def convert(model, folder, first):
    made = folder / "student.made"
    made.write_bytes(b"made")
    return [made]

def load(model, first, threads):
    assert model.read_bytes() == b"made"
    return lambda batch: batch.reshape(len(batch), -1)[:, :4].astype("float32")

common.main("numpy", load, convert)
"""
ENDS = "common.main('numpy', None, lambda model, folder, first: __import__('os').abort())"
WAITS = "common.main('numpy', None, lambda model, folder, first: __import__('time').sleep(60))"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (FAILS, r"does not run in made-up \(python.* ended with exit code 7: 1 \| no such operator\); nothing was wr"),
        (ENDS, r"does not run in made-up \(exit code -6.*\); nothing was written"),
    ],
)
def test_a_converter_that_fails_or_crashes(question, tmp_path, body, said):
    model, *rest = question
    copy = shutil.copy(model, tmp_path)
    with pytest.raises(ParityError, match=said):
        prove(worker(tmp_path, body), Path(copy), *rest)
    assert sorted(it.name for it in tmp_path.iterdir()) == ["run_made_up.py", "student.onnx"]


def test_a_converter_that_hangs_is_stopped(question, tmp_path, monkeypatch):
    monkeypatch.setattr(checking, "SECONDS", 0.5)
    with pytest.raises(ParityError, match=r"does not run in made-up \(stopped after 0.5 s\)"):
        prove(worker(tmp_path, WAITS), *question)


def test_what_was_converted_lies_beside_the_model(question, tmp_path):
    model, images, _ = question
    copy = Path(shutil.copy(model, tmp_path))
    proof = prove(worker(tmp_path, PRINTS), copy, images, images.reshape(5, -1)[:, :4].astype(np.float32))
    assert (proof.file, proof.bytes, proof.max_abs_logit_difference) == ("student.made", 4, 0)
    assert (tmp_path / "student.made").read_bytes() == b"made"


def test_an_old_version_is_refused():
    future = replace(find_target("onnxruntime"), oldest=(99,))
    with pytest.raises(
        OptionError, match=r"onnxruntime 1\..* is too old, expected 99 or later: pip install onnxruntime"
    ):
        is_installed(future)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("onxruntime", "unknown --runtime 'onxruntime', .*did you mean 'onnxruntime'"),
        ("nosuch", "expected one of onnxruntime, (?!.*portable).*tvm$"),
        ("portable", "--runtime portable is a form of files and no runtime"),
        ("onnxruntime,onnxruntime", "--runtime has onnxruntime twice"),
        (" , ", "--runtime is empty"),
        ("mnn", r"--runtime mnn: it is not installed here: pip install MNN; or name .* mnn=PATH/bin/python"),
        ("mnn=/none/python", "--runtime /none/python: No such file or directory, expected a Python with MNN"),
    ],
)
def test_runtimes_that_cannot_be(text, said):
    with pytest.raises(OptionError, match=said):
        parse_places(text)


def test_a_file_that_is_not_for_the_runtime_says_why(small_bundle):
    (place,) = parse_places("onnxruntime")
    assert place.python is None
    outputs = {"logits": "tensor(float)", "topk_label": "tensor(string)", "topk_index": "tensor(int64)"}
    with pytest.raises(BundleError, match=r"not for ncnn: it takes an image and it gives names and it gives the best"):
        check_fits(Path("student.onnx"), find_target("ncnn"), "image", outputs)
    check_fits(Path("student.onnx"), find_target("openvino"), "image", outputs)
    small = Quantization("int8-dynamic", batch_invariant=False)
    with pytest.raises(BundleError, match=r"not for mnn: it is int8-dynamic \(MNN converts it and answers wrongly"):
        check_fits(Path("student.onnx"), find_target("mnn"), "tensor", {"logits": "tensor(float)"}, small)


@pytest.mark.runtimes
@pytest.mark.parametrize("name", [it for it in targets() if it not in ("onnxruntime", "portable")])
def test_the_proof_of_each_runtime_that_is_there(name, trained, tmp_path):
    python = ENVIRONMENTS / name / "bin" / "python"
    if not python.exists():
        pytest.skip(f"no {name} in {ENVIRONMENTS}: make targets")
    with no_shape_checks():
        (item,) = exported(trained(), tmp_path / "out", teacher=False, target_python=python, **options_for_target(name))
    assert not isinstance(item.proof, NotInstalled)
    assert item.proof.runtime.startswith(f"{name} ")
    assert item.proof.top1_agreement == 1
    assert (item.bundle.path.parent / item.proof.file).exists()
