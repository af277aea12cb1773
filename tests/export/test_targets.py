"""`--target`: what a runtime asks for, the proof in it, and what is refused."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from typer.testing import CliRunner

from cdl_deploy.cli import app
from cdl_deploy.errors import OptionError, ParityError
from cdl_deploy.export import ExportOptions, export_run, settled
from cdl_deploy.targets import find_target, targets
from cdl_deploy.targets.checking import NotInstalled, Proof, prove
from cdl_deploy.targets.process import is_installed
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
    ],
)
def test_known_traps_are_refused(target, options, said):
    with pytest.raises(OptionError, match=said):
        settled(target, **options)


def test_what_a_target_likes_best_where_nothing_is_asked():
    assert settled(None) == {
        "target": None, "input": "image", "labels": "graph", "opset": 20, "batch": None, "image_size": None
    }  # fmt: skip
    found = settled("portable", batch=4)
    assert (found["input"], found["labels"], found["opset"], found["batch"]) == ("tensor", "none", 18, 4)


def test_every_target_says_how_to_install_it_and_has_its_script():
    scripts = Path(find_target.__code__.co_filename).parent / "scripts"
    for target in targets().values():
        assert target.install.startswith("pip install ")
        assert (scripts / target.script).is_file()
        assert target.opsets[0] <= target.opset <= target.opsets[1]
        assert target.input in target.inputs


def test_the_proof_is_the_difference(question):
    """In a process of its own; expected is moved by a known amount below what is allowed."""
    model, images, logits = question
    moved = logits.copy()
    moved[3, 1] += 5e-5
    proof = prove(find_target("onnxruntime"), model, images, moved, batch=2)
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
    with pytest.raises(ParityError, match=r"does not run in openvino \(exit code 1\): .*No module named 'openvino'"):
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
    (item,) = exported(trained(), tmp_path / "out", teacher=False, **settled("portable"))
    model = onnx.load(item.bundle.path)
    sizes = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim]
    assert sizes == [1, 3, 16, 16]
    assert model.opset_import[0].version == 18
    assert not {node.op_type for node in model.graph.node} & {"Shape", "If", "Range"}
    assert isinstance(item.proof, Proof)
    assert item.to_dict()["proof"]["top1_agreement"] == 1


@pytest.mark.runtimes
@pytest.mark.parametrize("name", [it for it in targets() if it not in ("onnxruntime", "portable")])
def test_the_proof_of_each_runtime_that_is_there(name, trained, tmp_path):
    python = ENVIRONMENTS / name / "bin" / "python"
    if not python.exists():
        pytest.skip(f"no {name} in {ENVIRONMENTS}: make runtimes")
    with no_shape_checks():
        (item,) = exported(trained(), tmp_path / "out", teacher=False, target_python=python, **settled(name))
    assert not isinstance(item.proof, NotInstalled)
    assert item.proof.runtime.startswith(f"{name} ")
    assert item.proof.top1_agreement == 1
    assert (item.bundle.path.parent / item.proof.file).exists()
