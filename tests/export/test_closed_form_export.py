"""Runs with closed-form heads as files: every method and distillation, forgotten classes, and what is in the graph."""

from __future__ import annotations

import hashlib
import json
import shutil

import numpy as np
import onnx
import onnxruntime
import pytest
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from cdl_deploy.closed_form.head_rule import solve_head
from cdl_deploy.closed_form.mahalanobis import mahalanobis
from cdl_deploy.closed_form.shrinkage import shrunk_covariance
from cdl_deploy.closed_form.statistics_file import read_statistics
from cdl_deploy.errors import CdlError
from cdl_deploy.evaluation.rejection import auroc
from cdl_deploy.export import Shrink
from cdl_deploy.export.left_float import left_float
from cdl_deploy.learn.learner import Learner
from cdl_deploy.runtime.bundle import read_bundle
from cdl_deploy.runtime.classifier import Classifier
from cdl_deploy.training.revisions import forget_class
from tests.export.conftest import NAMES, code_of, exported


@pytest.mark.parametrize(
    ("options", "roles"),
    [
        ({"method": "none", "distill": "kd"}, ["student", "teacher"]),
        ({"method": "coda", "distill": "kdp", "head": "ridge", "adapt": "first"}, ["student"]),
        ({"method": "l2p", "distill": "kd"}, ["student"]),
        ({"method": "dualprompt", "adapt": "first"}, ["student"]),
        ({"method": "apt", "distill": "kdp"}, ["student", "teacher"]),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_every_method_distillation_and_head(trained, tmp_path, options, roles):
    found = exported(trained(**options), tmp_path / "out", teacher=len(roles) > 1)
    assert [item.bundle.role for item in found] == roles
    for item in found:
        assert item.bundle.parity is not None
        assert item.bundle.parity.top1_agreement == 1
        model = onnx.load(item.bundle.path)
        assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 20)]
        constants = {value.name: list(value.dims) for value in model.graph.initializer}
        assert constants["head.bias"] == [len(NAMES)]
        assert len(NAMES) in constants["head.weight"]


@pytest.mark.parametrize(("adapt", "method"), [("first", "coda"), ("all", "dualprompt"), ("all", "l2p")])
def test_prompts_selected_once(trained, tmp_path, method, adapt):
    run = trained(method=method, adapt=adapt)
    (item,) = exported(run, tmp_path / "out", select="task:2", teacher=False)
    assert item.bundle.method.select == "task:2"
    assert item.bundle.parity.top1_agreement == 1


def test_no_prompts_ask_no_query(trained, bundles, tmp_path):
    bundle = read_bundle(bundles(packaged=True) / "student.onnx")
    assert sum(node.op_type == "Conv" for node in onnx.load(bundle.path).graph.node) == 1
    assert bundle.method.query is None
    assert bundle.method.select is None
    left = left_float(onnx.load(bundle.path.with_suffix(".int8.onnx")), ())
    assert "heads" in left
    assert not {"selection", "distillation's rows"} & set(left)
    with pytest.raises(CdlError, match="has no meaning with none, which selects nothing: leave it out"):
        exported(trained(), tmp_path / "other", select="task:1")


def test_forgotten_classes_are_not_in_the_file(trained, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained(method="l2p", distill="kdp"), run)
    forget_class(run, NAMES[1])
    student, teacher, small = sorted(
        exported(run, tmp_path / "out", shrink=Shrink(("fp16",))),
        key=lambda item: item.bundle.path.name != "student.onnx",
    )
    left = tuple(name for name in NAMES if name != NAMES[1])
    for item in (student, teacher, small):
        assert item.bundle.classes == left
        assert item.bundle.tasks[0] == (NAMES[0],)
        assert item.bundle.parity.images == 4 * len(left)
        constants = {value.name: list(value.dims) for value in onnx.load(item.bundle.path).graph.initializer}
        assert constants["head.bias"] == [len(left)]
        assert f'"{NAMES[1]}"' not in item.bundle.path.read_bytes().decode("latin-1")  # a hash may have its letters


def test_a_run_with_forgotten_classes_is_evaluated(trained, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(trained(), run)
    forget_class(run, NAMES[0])
    assert code_of(["evaluate", str(run), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["images"]) == len(NAMES) // 2
    forget_class(run, NAMES[1])
    assert code_of(["evaluate", str(run)]) == 2
    assert "every class of task 1 was forgotten" in capsys.readouterr().err


def feed_of(photos, size):
    from PIL import Image

    files = sorted((photos / "test").rglob("*.*"))
    return np.stack([np.asarray(Image.open(path).convert("RGB").resize((size, size))) for path in files])


def outputs_of(path, names, feed):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(names, {"image": feed})


@pytest.mark.parametrize(
    "options", [{"packaged": True}, {"random_features": 100}, {"head": "ncm"}], ids=["slda", "random", "ncm"]
)
def test_statistics_beside_the_file_give_its_head_and_its_distance(bundles, photos, options):
    path = bundles(**options) / "student.onnx"
    bundle = read_bundle(path)
    assert bundle.parity.top1_agreement == 1
    file = path.parent / bundle.statistics.file
    assert file.name == "student.statistics.safetensors"
    assert hashlib.sha256(file.read_bytes()).hexdigest() == bundle.statistics.sha256
    stored = read_statistics(file, bundle.features.sha256)
    assert stored.history.total.classes == bundle.classes
    assert not stored.history.additions
    assert bundle.features.parts == stored.features.name == "class+patches"
    constants = {value.name: onnx.numpy_helper.to_array(value) for value in onnx.load(path).graph.initializer}
    layer = solve_head(stored.history.total, stored.rule).calibrated
    weight = constants["head.weight"]
    weight = weight if weight.shape == layer.weight.shape else weight.T
    np.testing.assert_allclose(weight, layer.weight, rtol=1e-5, atol=1e-5 * np.abs(layer.weight).max())
    features, logits, distance = outputs_of(path, ["features", "logits", "distance"], feed_of(photos, 64))
    assert features.dtype == np.float32
    assert features.shape[1] == bundle.features.dimension
    phi = stored.features.transform(features)
    np.testing.assert_allclose(logits, layer.scores(phi), rtol=0, atol=2e-3 * np.abs(logits).max())
    expected = mahalanobis(stored.history.total, stored.rule.shrinkage).distance(phi)
    np.testing.assert_allclose(distance, expected, rtol=4e-3)  # rounded in the file


def test_without_statistics_it_is_a_classifier_and_nothing_else(trained, tmp_path):
    (item,) = exported(trained(), tmp_path / "out", statistics=False)
    names = [output.name for output in onnx.load(item.bundle.path).graph.output]
    assert names == ["logits", "probabilities", "topk_probability", "topk_index", "topk_label", "task_scores"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["student.json", "student.onnx"]
    keys = {"cdl.features", "cdl.statistics", "cdl.unknown_threshold", "cdl.unknown_rule"}
    assert not keys & {entry.key for entry in onnx.load(item.bundle.path).metadata_props}


def test_learned_heads_say_nothing_of_features(small_bundle):
    keys = [entry.key for entry in onnx.load(small_bundle / "student.onnx").metadata_props]
    assert "cdl.features" not in keys
    assert "cdl.unknown_threshold" not in keys


def test_smaller_variants_have_features_of_their_own(bundles):
    folder = bundles(packaged=True)
    whole, *smaller = [read_bundle(folder / f"student{kind}.onnx") for kind in ("", ".int8", ".fp16")]
    assert len({bundle.features.sha256 for bundle in (whole, *smaller)}) == 3
    assert whole.statistics is not None
    assert whole.unknown_threshold is not None
    int8, fp16 = smaller
    assert int8.statistics is not None
    assert int8.statistics != whole.statistics
    assert fp16.statistics is fp16.unknown_threshold is None


def test_an_int8_file_is_solved_from_sums_over_its_own_features(bundles, photos, tmp_path):
    """Oracle: scikit-learn's LDA on the features that onnxruntime computes with the file of the training images."""
    folder = tmp_path / "bundle"
    shutil.copytree(bundles(packaged=True), folder)
    bundle = read_bundle(folder / "student.int8.onnx")
    classifier = Classifier(bundle.path)
    stored = read_statistics(folder / bundle.statistics.file, bundle.features.sha256)
    total = stored.history.total
    files = [(name, path) for name in bundle.classes for path in sorted((photos / "train" / name).iterdir())]
    rows = np.concatenate([classifier.features(classifier.prepare(path)[None]) for _, path in files]).astype(float)
    labels = np.array([name for name, _ in files])
    assert total.classes == bundle.classes
    np.testing.assert_allclose(total.means, [rows[labels == name].mean(axis=0) for name in bundle.classes], atol=1e-5)
    rho = shrunk_covariance(total, None)[1]
    known = LinearDiscriminantAnalysis("lsqr", rho, [1 / len(bundle.classes)] * len(bundle.classes)).fit(rows, labels)
    expected = known.decision_function(rows)[:, [list(known.classes_).index(name) for name in bundle.classes]]
    session = onnxruntime.InferenceSession(bundle.path)
    found = np.concatenate([session.run(["logits"], {"image": classifier.prepare(path)[None]})[0] for _, path in files])
    expected, found = (values - values.mean(axis=1, keepdims=True) for values in (expected, found))
    np.testing.assert_allclose(
        found * (expected * found).sum() / (found**2).sum(), expected, atol=2e-3 * expected.max()
    )

    learner = Learner(bundle.path).add("new", [path for _, path in files[:3]])
    learner.save()
    assert Classifier(bundle.path).classes == (*bundle.classes, "new")
    Learner(bundle.path).undo().save()
    assert bundle.path.read_bytes() == (bundles(packaged=True) / "student.int8.onnx").read_bytes()


@pytest.mark.parametrize("options", [{"method": "l2p", "adapt": "first"}, {}], ids=["first", "none"])
def test_an_added_task_changes_head_labels_and_table_alone(first_task, bundles, options):
    before, after = (folder(**options) / "student.onnx" for folder in (first_task, bundles))
    old, new = (
        {value.name: value.SerializeToString() for value in onnx.load(path).graph.initializer}
        for path in (before, after)
    )
    changed = {name for name in old.keys() | new.keys() if old.get(name) != new.get(name)}
    known = ("head.", "distance.", "labels/", "selection.scores")
    assert changed
    assert all(name.startswith(known) or onnx_size(new.get(name)) < 200 for name in changed), changed
    assert read_bundle(before).features.sha256 == read_bundle(after).features.sha256


def onnx_size(content):
    return 0 if content is None else len(content)


def test_rejection_from_the_command_line(bundles, photos, tmp_path, capsys):
    model = bundles(packaged=True) / "student.onnx"
    odd = tmp_path / "odd"
    odd.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), np.uint8)
    from PIL import Image

    for number, pixels in enumerate(noise):
        Image.fromarray(pixels).save(odd / f"{number}.png")
    for kind in ("jsonl", "csv", "table"):
        assert code_of(["predict", str(model), str(odd), "--reject", "--format", kind]) == 0
        assert capsys.readouterr().out.count("unknown") == 4, kind
    assert code_of(["predict", str(model), str(odd), "--reject", "--format", "jsonl", "--top-k", "2"]) == 0
    row = json.loads(capsys.readouterr().out.splitlines()[0])
    assert row["label"] == "unknown"
    assert row["top_k"][0]["label"] == NAMES[row["index"]]
    assert code_of(["evaluate", str(model), "--data", str(photos), "--unknown", str(odd), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["unknown"]
    assert found["auroc"] == 100
    assert found["found"] == 100
    assert found["known_images"] == 4 * len(NAMES)
    assert code_of(["evaluate", str(model), "--data", str(photos), "--unknown", str(odd)]) == 0
    assert "false alarms" in capsys.readouterr().out
    assert code_of(["inspect", str(model)]) == 0
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("class+patches", "student.statistics.safetensors", "unknown above"))


def test_a_model_without_a_distance_cannot_reject(small_bundle, tmp_path, photos, capsys):
    model = small_bundle / "student.onnx"
    assert code_of(["predict", str(model), str(photos), "--reject"]) == 2
    error = capsys.readouterr().err
    assert "cannot tell unknown images: it has no distance with a threshold" in error
    assert error.count("\n") == 1
    assert code_of(["evaluate", str(model), "--data", str(photos), "--unknown", str(photos)]) == 2
    assert "cannot tell unknown images" in capsys.readouterr().err


def test_statistics_of_another_model_are_refused(bundles):
    other = read_bundle(bundles(random_features=100) / "student.onnx").features.sha256
    with pytest.raises(CdlError, match="holds statistics of model"):
        read_statistics(bundles(packaged=True) / "student.statistics.safetensors", other)


def test_auroc_counts_pairs():
    low, high = np.array([1.0, 2, 3, 3]), np.array([3.0, 0, 5])
    pairs = [(h > m) + (h == m) / 2 for h in high for m in low]
    assert auroc(low, high) == pytest.approx(np.mean(pairs))
