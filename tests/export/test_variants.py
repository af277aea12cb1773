"""int8 and fp16 variants of a run's student, as the runtime meets them, and what stops them from being written."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper
from rich.console import Console
from typer.testing import CliRunner

from cdl_deploy import Classifier
from cdl_deploy.cli import app
from cdl_deploy.cli.export import _print_variant
from cdl_deploy.errors import DataError, OptionError, QuantisationError
from cdl_deploy.export import ExportOptions, Shrink, export_run, variants
from cdl_deploy.export import export as export_module
from cdl_deploy.export.fp16 import beyond_half, to_fp16
from cdl_deploy.export.images_of_run import HeldOut, calibration_images, held_out_images, spread
from cdl_deploy.export.layers import float_products
from cdl_deploy.export.quantise import prepare
from cdl_deploy.export.sensitivity import accuracy, most_sensitive, within_drop
from cdl_deploy.runtime.bundle import read_bundle
from cdl_deploy.runtime.bundle_parts import SCORES, Quantization
from cdl_deploy.runtime.session import open_session
from cdl_deploy.training.run_directory import RunDirectory
from tests.conftest import no_shape_checks
from tests.export.conftest import trace_of
from tests.training.conftest import COLOURS

KINDS = ("int8", "int8-dynamic", "fp16")


@pytest.fixture(scope="module")
def exported(small_run, small_bundle, tmp_path_factory):
    """The student with all its variants, in both formats."""
    out = tmp_path_factory.mktemp("variants") / "out"
    with no_shape_checks(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(export_module, "export_onnx", trace_of(small_bundle))
        return out, export_run(
            small_run, out, ExportOptions(teacher=False, shrink=Shrink(KINDS, max_drop=10), ort=True)
        )


def images(count: int, side: int = 32) -> np.ndarray:
    """Noise around the colours of the classes, as what was calibrated on."""
    colours = np.resize(np.array(list(COLOURS.values())), (count, 1, 1, 3))
    noise = np.random.default_rng(1).integers(-30, 30, (count, side, side, 3))
    return np.clip(colours + noise, 0, 255).astype(np.uint8)


def logits(path, image: np.ndarray) -> np.ndarray:
    return open_session(path).run(["logits"], {"image": image})[0]


def test_every_variant_describes_itself(exported):
    out, items = exported
    stems = ["student", *(f"student.{kind}" for kind in KINDS)]
    assert sorted(path.name for path in out.iterdir()) == sorted(
        f"{stem}{suffix}" for stem in stems for suffix in (".onnx", ".ort", ".json")
    )
    assert [item.bundle.path for item in items] == [out / f"{stem}.onnx" for stem in stems]
    assert read_bundle(out / "student.onnx").quantization is None
    for kind in KINDS:
        bundle = read_bundle(out / f"student.{kind}.onnx")
        assert bundle.quantization.kind == kind
        assert bundle.quantization.batch_invariant is (kind != "int8-dynamic")
        assert bundle.quantization.kept_float == ()
        assert bundle.quantization.accuracy_before - bundle.quantization.accuracy_after <= 10
        assert bundle.classes == ("ant", "bee", "cat", "dog")
        described = json.loads((out / f"student.{kind}.json").read_text())
        assert described["quantization"]["kind"] == kind


def test_accuracy_before_is_the_runs_own(exported, small_run):
    """Measured through the exported graph on the same test images as in training."""
    record = json.loads((small_run / "run.json").read_text())
    _, items = exported
    for item in items[1:]:
        assert item.bundle.quantization.accuracy_before == pytest.approx(record["student"]["final_average_accuracy"])
        assert item.held_out == 12


def test_the_report_says_which_images_gave_the_scales(exported, small_run):
    _, items = exported
    assert [item.calibration for item in items] == [
        None, f"24 training images of {small_run.parent / 'photos'}", None, None
    ]  # fmt: skip
    assert items[1].to_dict()["calibration"].startswith("24 training images")


def test_the_report_says_whether_scores_are_quantised(exported):
    _, items = exported
    assert [item.scores for item in items[2:]] == [0, 0]
    assert items[1].scores == sum(node.op_type == "Softmax" for node in onnx.load(items[1].bundle.path).graph.node) - 3
    assert ["attention" in item.left_float for item in items[1:]] == [False, True, True]
    assert "attention's probabilities with values" in items[1].left_float


@pytest.mark.parametrize("kind", KINDS)
def test_variants_answer_any_batch_of_any_size(exported, kind):
    out, _ = exported
    for count, side in ((1, 32), (2, 47), (5, 32)):
        expected, found = (logits(out / name, images(count, side)) for name in ("student.onnx", f"student.{kind}.onnx"))
        assert found.shape == (count, 4)
        assert np.abs(found - expected).max() < 0.15 * np.ptp(expected)


@pytest.mark.parametrize("kind", ["int8", "fp16"])
def test_what_calls_itself_batch_invariant_is(exported, kind):
    """Bit for bit."""
    path = exported[0] / f"student.{kind}.onnx"
    many = logits(path, images(5))
    for size in (1, 2, 5):
        found = np.concatenate([logits(path, images(5)[i : i + size]) for i in range(0, 5, size)])
        assert np.array_equal(found, many)


def test_no_weight_of_the_fp16_file_is_cast_in_a_run(exported, tmp_path):
    """What onnxruntime makes of the file: of its casts only those of preprocessing are left."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 4
    onnxruntime.InferenceSession(exported[0] / "student.fp16.onnx", options, providers=["CPUExecutionProvider"])
    nodes = onnx.load(tmp_path / "optimised.onnx").graph.node
    casts = [node.output[0] for node in nodes if node.op_type == "Cast"]
    assert len(casts) == 7
    assert all(name.startswith("preprocessing/") or name == "pixels" for name in casts)


@pytest.mark.parametrize("stem", ["student", *(f"student.{kind}" for kind in KINDS)])
def test_the_ort_file_is_the_same_model(exported, stem):
    out, _ = exported
    assert read_bundle(out / f"{stem}.ort").classes == ("ant", "bee", "cat", "dog")
    np.testing.assert_allclose(
        logits(out / f"{stem}.ort", images(3)), logits(out / f"{stem}.onnx", images(3)), atol=1e-4
    )
    predictions = list(Classifier(out / f"{stem}.ort").predict(list(images(2))))
    assert [p.label for p in predictions] == [
        p.label for p in Classifier(out / f"{stem}.onnx").predict(list(images(2)))
    ]


def test_a_variant_is_as_small_as_it_says(exported):
    """int8: a byte a weight; fp16: two."""
    out, _ = exported
    float_bytes = sum(
        value.ByteSize() for value in onnx.load(out / "student.onnx").graph.initializer if "selection" not in value.name
    )
    for kind, share in (("int8", 0.30), ("int8-dynamic", 0.30), ("fp16", 0.52)):
        model = onnx.load(out / f"student.{kind}.onnx")
        types = {"fp16": onnx.TensorProto.FLOAT16}.get(kind, onnx.TensorProto.INT8)
        stored = sum(
            v.ByteSize() for v in model.graph.initializer if v.data_type == types and "selection" not in v.name
        )
        assert 0 < stored <= share * float_bytes
        assert float_products(model, (onnx.TensorProto.FLOAT,)) == {}


@pytest.mark.usefixtures("traced")
def test_a_drop_beyond_the_limit_leaves_nothing_behind(small_run, tmp_path, monkeypatch):
    """A quantiser that loses everything, layers kept or not."""

    def ruined(prepared, ranges, keep=(), exact=(), rounding=None):
        model = onnx.ModelProto()
        model.CopyFrom(prepared.model)
        head = next(value for value in model.graph.initializer if value.name == "head.weight")
        head.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(head), "head.weight"))
        return model

    monkeypatch.setattr(variants, "quantise_static", ruined)
    monkeypatch.setattr(variants, "most_sensitive", lambda *_: ["blocks.0.mlp.fc2", "blocks.1.mlp.fc1", "a", "b", "c"])
    with no_shape_checks(), pytest.raises(QuantisationError) as caught:
        export_run(small_run, tmp_path / "out", ExportOptions(teacher=False, shrink=Shrink(("int8",))))
    assert (
        "with attention scores and the 2 most sensitive layers in float (blocks.0.mlp.fc2, blocks.1.mlp.fc1, a, …)"
        in str(caught.value)
    )
    assert "--max-drop 0.5 points allowed" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_calibration_falls_back_on_what_the_run_keeps(small_run, small_bundle, tmp_path):
    preprocessing = read_bundle(small_bundle / "student.onnx").preprocessing
    shutil.copytree(small_run, tmp_path / "run")
    record = RunDirectory(tmp_path / "run").read_record()
    there = calibration_images(tmp_path / "run", record, preprocessing, None)
    assert len(there.items) == 24
    assert next(iter(there))["image"].shape == (1, 20, 20, 3), "as it lies on the disk: the graph preprocesses"
    record.plans = [replace(plan, data=str(tmp_path / "gone")) for plan in record.plans]
    gone = calibration_images(tmp_path / "run", record, preprocessing, None)
    assert gone.source == "held-out images that the run keeps, its training images being gone"
    assert len(gone.items) == 12
    assert next(iter(gone))["image"].shape == (1, 32, 32, 3)
    assert held_out_images(tmp_path / "run", record, preprocessing).images == 12


def test_calibration_images_can_be_given(small_run, small_bundle, tmp_path):
    preprocessing = read_bundle(small_bundle / "student.onnx").preprocessing
    record = RunDirectory(small_run).read_record()
    given = calibration_images(small_run, record, preprocessing, small_run.parent / "photos/test/ant")
    assert (len(given.items), given.source) == (3, str(small_run.parent / "photos/test/ant"))
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/notes.txt").write_text("no image")
    with pytest.raises(DataError, match=r"--calibrate .*empty has no images: expected files ending in .*\.png"):
        calibration_images(small_run, record, preprocessing, tmp_path / "empty")
    with pytest.raises(DataError, match=r"--calibrate .*nowhere is no folder"):
        calibration_images(small_run, record, preprocessing, tmp_path / "nowhere")
    (tmp_path / "empty/broken.png").write_bytes(b"no image")
    broken = calibration_images(small_run, record, preprocessing, tmp_path / "empty")
    with pytest.raises(DataError, match=r"broken.png: not an image"):
        list(broken)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kinds": ("int9",)}, "unknown --quantize 'int9', expected int8 or int8-dynamic; did you mean 'int8'?"),
        ({"kinds": ("int8",), "max_drop": -1}, "--max-drop is -1, expected points of accuracy from 0 to 100"),
        ({"kinds": ("fp16",), "calibrate": "x"}, "--calibrate is for --quantize int8, which alone has fixed scales"),
    ],
)
def test_options_that_make_no_sense(changes, message):
    with pytest.raises(OptionError) as caught:
        Shrink(**changes)
    assert message in str(caught.value)


def test_accuracy_is_the_mean_over_tasks():
    held_out = HeldOut([(np.zeros((4, 1)), [0, 0, 1, 1]), (np.zeros((1, 1)), [2])])
    answers = np.eye(3, dtype=np.float32)[[0, 1, 1, 0, 2]]
    assert accuracy(answers, held_out) == pytest.approx((50 + 100) / 2)


def test_spread_takes_equal_distances():
    assert spread(range(10), 3) == [0, 3, 6]
    assert spread(range(3), 5) == [0, 1, 2]


class Pretend:
    """A quantiser whose layers each add a known error to the logits, and a measure that sees the sum."""

    def __init__(self, **harm: float) -> None:
        self.harm = harm
        self.layers = [type("Layer", (), {"name": name})() for name in harm]
        self.tried: list[list[str]] = []

    def __call__(self, keep):
        self.tried.append(list(keep))
        error = sum(value for name, value in self.harm.items() if name not in keep)
        graph = helper.make_graph(
            [helper.make_node("Add", ["image", "error"], ["logits"])],
            "g",
            [helper.make_tensor_value_info("image", 1, ["B", 2])],
            [helper.make_tensor_value_info("logits", 1, ["B", 2])],
            [numpy_helper.from_array(np.array(error, np.float32), "error")],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)

    def measure(self, model) -> float:
        return 90 - float(numpy_helper.to_array(model.graph.initializer[0]))


def test_the_most_sensitive_layers_come_first():
    pretend = Pretend(a=0.1, b=3.0, c=0.0, d=1.0)
    ranked = most_sensitive(pretend, pretend, [{"image": np.zeros((2, 2), np.float32)}])
    assert ranked == ["b", "d", "a", "c"]


@pytest.mark.parametrize(
    ("max_drop", "kept", "tried"),
    [(10.0, [], [[]]), (1.5, ["b"], [[], ["b"]]), (0.2, ["b", "d"], [[], ["b"], ["b", "d"]])],
)
def test_no_more_layers_stay_float_than_are_needed(max_drop, kept, tried):
    pretend = Pretend(a=0.1, b=3.0, c=0.0, d=1.0)
    _, keep, after = within_drop(pretend, lambda: ["b", "d", "a", "c"], pretend.measure, 90.0, max_drop, "x.onnx")
    assert keep == kept
    assert pretend.tried == tried
    assert 90 - after <= max_drop


@pytest.mark.parametrize(
    ("max_drop", "kept"), [(10.0, []), (4.5, [SCORES]), (1.5, [SCORES, "b"]), (0.2, [SCORES, "b", "d"])]
)
def test_scores_are_float_before_any_layer(max_drop, kept):
    """As int8 was before scores were quantised: what was good enough then still is."""
    pretend = Pretend(a=0.1, b=3.0, c=0.0, d=1.0, **{SCORES: 2.0})
    ranked = ["b", "d", "a", "c"]
    _, keep, after = within_drop(pretend, lambda: ranked, pretend.measure, 90.0, max_drop, "x.onnx", scores=True)
    assert keep == kept
    assert pretend.tried == [[], [SCORES], [SCORES, "b"], [SCORES, "b", "d"]][: len(kept) + 1]
    assert 90 - after <= max_drop
    with pytest.raises(QuantisationError, match="with attention scores and the 2 most sensitive layers in float"):
        within_drop(pretend, lambda: ranked, pretend.measure, 95.0, max_drop=0, name="x.onnx", scores=True)


def test_a_drop_that_no_layer_explains_names_the_worst():
    pretend = Pretend(a=5.0, b=3.0, c=2.0, d=1.0)
    with pytest.raises(
        QuantisationError,
        match=r"x.onnx answers 79.0 % right instead of 90.0 %, --max-drop 0.5 points allowed, and 87.0 % with the 2 "
        r"most sensitive layers in float \(a, b, c, …\): .*nothing was written",
    ):
        within_drop(pretend, lambda: ["a", "b", "c", "d"], pretend.measure, 90.0, 0.5, "x.onnx")


def test_weights_beyond_half_stay_float(exported):
    model = onnx.load(exported[0] / "student.onnx")
    prepared = prepare(model, static=False)
    assert beyond_half(prepared) == []
    layer = prepared.layers[3]
    value = next(v for v in prepared.model.graph.initializer if v.name == layer.weight)
    large = numpy_helper.to_array(value).copy()
    large[0, 0] = 1e6
    value.CopyFrom(numpy_helper.from_array(large, layer.weight))
    assert beyond_half(prepared) == [layer.name]
    halved = to_fp16(prepared, always=[layer.name])
    assert set(float_products(halved, (onnx.TensorProto.FLOAT,))) == set(layer.nodes)


@pytest.mark.usefixtures("traced")
def test_the_command_prints_accuracy_before_and_after(small_run, tmp_path):
    arguments = ["export", str(small_run), "--onnx", "--out", str(tmp_path / "out"), "--no-teacher", "--fp16"]
    with no_shape_checks():
        result = CliRunner().invoke(app, [*arguments, "--max-drop", "20"])
    assert result.exit_code == 0, result.output
    text = " ".join(result.output.split())
    assert "student.fp16.onnx" in text
    assert "% as fp16, in the mean of the tasks, on 12 held-out images" in text
    assert "none left out; in fp32 are:" in text
    assert "numbers; keys and prompts: a small error there selects other prompts" in text
    assert "norms, softmax, GELU, residual adds: they cost accuracy in integers and are no products" in text


def test_a_head_from_its_own_sums_that_loses_too_much_is_why_it_cannot_learn(monkeypatch):
    own = SimpleNamespace(solved=lambda path, bundle: "solved")
    bundle = SimpleNamespace(
        path=Path("student.int8.onnx"), features=object(), quantization=Quantization("int8", True, (), 90.0, 89.8)
    )
    monkeypatch.setattr(variants, "logits_of", lambda model, held_out: {"solved": "its answers"}[model])
    monkeypatch.setattr(variants, "accuracy", lambda answers, held_out: {"its answers": 88.75}[answers])
    kept = variants._with_own_sums(bundle, "model", own, None, None, max_drop=0.5)
    assert kept == (bundle, "model", 1.25)
    item = SimpleNamespace(
        bundle=bundle, held_out=100, products=24, scores=0, left_float={}, calibration=None, learned_from=None,
        sums_drop=kept[2],
    )  # fmt: skip
    console = Console(width=200, record=True, file=StringIO())
    _print_variant(console, item)
    said = console.export_text()
    assert "student.int8.onnx: 90.0 % right as fp32, 89.8 % as int8, in the mean of the tasks, on 100 held-out" in said
    assert "it cannot learn: solved from sums of its own, its head would lose 1.2 points of accuracy, more than" in said
    _print_variant(console, SimpleNamespace(**{**vars(item), "sums_drop": None}))
    assert (
        "it cannot learn: for sums of its own the training images of all tasks must still be" in console.export_text()
    )
