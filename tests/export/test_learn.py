"""What a device learns from a file is what training and export would have made: the same graph, head and sums."""

from __future__ import annotations

import shutil

import numpy as np
import onnx
import onnxruntime
import pytest
from PIL import Image

from cdl_deploy import Learner
from cdl_deploy.closed_form.statistics_file import read_statistics
from cdl_deploy.export.features_hash import features_hash
from cdl_deploy.runtime.bundle import read_bundle
from tests.export.learning import NEW, OLD, check_same_model, error_of, images_of, run, statistics_of, task


def outputs(path, photos, names=("logits", "distance", "probabilities", "task_scores")):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    size = session.get_inputs()[0].shape[1]
    files = sorted((photos / "test").rglob("*.*"))
    size = read_bundle(path).preprocessing.resize
    feed = np.stack([np.asarray(Image.open(file).convert("RGB").resize((size, size))) for file in files])
    return session.run(list(names), {"image": feed})


def parts_of(path):
    """Every part of a model but the metadata: name → bytes."""
    loaded = onnx.load(path)
    graph = loaded.graph
    found = {f"constant {it.name}": it.SerializeToString() for it in graph.initializer}
    found |= {f"value {it.name}": it.SerializeToString() for it in (*graph.value_info, *graph.output, *graph.input)}
    found |= {f"node {place}": it.SerializeToString() for place, it in enumerate(graph.node)}
    return found


METHODS = [
    {},
    {"head": "ridge", "random_features": 100},
    {"head": "ncm"},
    {"method": "l2p", "adapt": "first"},
    {"method": "coda", "adapt": "first"},
]


@pytest.mark.parametrize("method", METHODS, ids=lambda it: "-".join(map(str, it.values())) or "slda")
def test_the_same_as_training_and_export(model, bundles, photos, method):
    path = model(**method)
    learner = Learner(path)
    learner.add_classes(task(photos))
    learner.save()
    whole = bundles(**method) / "student.onnx"
    learned, trained = read_bundle(path), read_bundle(whole)
    (logits, distance, *rest), (true_logits, true_distance, *true_rest) = (outputs(it, photos) for it in (path, whole))
    np.testing.assert_allclose(logits, true_logits, rtol=0, atol=1e-5 * max(1, np.abs(true_logits).max()))
    np.testing.assert_allclose(distance, true_distance, rtol=2e-3)  # its factor is rounded in the file
    for found, expected in zip(rest, true_rest, strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    same = ("classes", "tasks", "top_k", "preprocessing", "method", "weights", "features", "parameters", "unknown_rule")
    for name in same:
        assert getattr(learned, name) == getattr(trained, name), name
    assert learned.unknown_threshold == pytest.approx(trained.unknown_threshold, rel=2e-3)
    assert learned.accuracy is None
    onnx.checker.check_model(onnx.load(path), full_check=True)
    assert features_hash(onnx.load(path)) == learned.features.sha256
    mine, theirs = (statistics_of(it).history.total for it in (path, whole))
    assert mine.counts.tolist() == theirs.counts.tolist()
    np.testing.assert_allclose(mine.scatter, theirs.scatter, rtol=0, atol=1e-5 * np.abs(theirs.scatter).max())
    np.testing.assert_allclose(mine.overconfidence, theirs.overconfidence, rtol=1e-3, atol=1e-6)


def both(*names):
    return {f"{kind} {name}" for kind in ("constant", "value") for name in names}


def test_nothing_else_of_the_file_changes(model, photos):
    path = model()
    before, old = path.read_bytes(), parts_of(path)
    learner = Learner(path)
    learner.add_classes(task(photos))
    learner.save()
    new = parts_of(path)
    assert old.keys() == new.keys()
    changed = {name for name in old if old[name] != new[name]}
    table = both("head.weight", "head.bias", "selection.scores")
    distance = both(*(f"distance.{name}" for name in ("centre", "factor", "means", "squares")))
    outs = {
        f"value {name}"
        for name in ("logits", "probabilities", "topk_probability", "topk_index", "topk_label", "task_scores")
    }
    labels = {"constant labels/names", "constant labels/constant_0"}
    sizes = {name for name in changed if name.startswith(("value matmul", "value add"))}
    assert changed - sizes <= table | distance | outs | labels, changed
    assert {"constant head.weight", "constant labels/names", "value logits"} <= changed
    at = before.index(b"image")  # behind the size of the graph
    assert before[:20] == path.read_bytes()[:20]
    assert before[at : at + 2000] == path.read_bytes()[at : at + 2000]


def test_undo_gives_the_exported_files_back(model, photos):
    path = model()
    before = {file.name: file.read_bytes() for file in path.parent.iterdir()}
    learner = Learner(path).add(NEW[0], images_of(photos, NEW[0]))
    learner.save()
    Learner(path).add(NEW[1], images_of(photos, NEW[1])).add(OLD[0], images_of(photos, OLD[0], "test")).save()
    assert read_bundle(path).tasks == (tuple(OLD), (NEW[0],), (NEW[1],))
    assert len(Learner(path).additions) == 3
    Learner(path).undo().save()
    Learner(path).undo().undo().save()
    after = {file.name: file.read_bytes() for file in path.parent.iterdir()}
    check_same_model(after.pop(path.name), before.pop(path.name))
    assert after == before


def test_one_by_one_in_any_order_is_all_at_once(model, photos):
    path = model()
    once = Learner(path)
    once.add_classes(task(photos))
    together, apart = (path.with_name(f"{name}.onnx") for name in ("together", "apart"))
    once.save(together)
    images = [(name, file) for name in NEW for file in images_of(photos, name)]
    learner = Learner(path)
    for name, files in (
        (NEW[1], [file for name, file in images if name == NEW[1]][:3]),
        (NEW[0], [file for name, file in images if name == NEW[0]]),
        (NEW[1], [file for name, file in images if name == NEW[1]][3:]),
    ):
        learner.add(name, files)
    learner.save(apart)
    one, other = (
        read_statistics(it.parent / read_bundle(it).statistics.file).history.total for it in (together, apart)
    )
    other = other.arranged(one.classes)
    for name in ("counts", "means", "spread", "scatter"):
        expected = getattr(one, name)
        np.testing.assert_allclose(getattr(other, name), expected, rtol=0, atol=1e-9 * np.abs(expected).max())
    order = [read_bundle(apart).classes.index(name) for name in read_bundle(together).classes]
    factor = one.temperature_factor  # the only number that depends on which classes came together
    np.testing.assert_allclose(
        outputs(apart, photos)[0][:, order], outputs(together, photos)[0] * factor, rtol=0, atol=1e-3
    )


def test_two_devices_merged_are_one_that_saw_both(model, photos):
    path = model()
    a, b, both, merged, again = (path.with_name(f"{name}.onnx") for name in "abcde")
    Learner(path).add(NEW[0], images_of(photos, NEW[0])).save(a)
    Learner(path).add(NEW[1], images_of(photos, NEW[1])).add(OLD[0], images_of(photos, OLD[0], "test")).save(b)
    (
        Learner(path)
        .add(NEW[0], images_of(photos, NEW[0]))
        .add(NEW[1], images_of(photos, NEW[1]))
        .add(OLD[0], images_of(photos, OLD[0], "test"))
        .save(both)
    )
    assert run("merge", a, b, "-o", merged) == 0
    assert run("merge", merged, a, path, b, "-o", again) == 0
    for found in (merged, again):
        assert parts_of(found) == parts_of(both)
        assert read_bundle(found).classes == read_bundle(both).classes
        assert read_bundle(found).tasks == read_bundle(both).tasks
        assert read_bundle(found).statistics.sha256 == read_bundle(both).statistics.sha256
    assert len(list(path.parent.glob("*.safetensors"))) == 6
    Learner(a).forget(OLD[1]).save()
    assert "did not learn from the same base" in error_of("merge", a, b, "-o", merged)


def test_nothing_that_holds_a_forgotten_class_stays_beside_the_model(model, photos, capsys):
    path = model()
    other = path.with_name("other.onnx")
    Learner(path).add(NEW[0], images_of(photos, NEW[0])).save(path.with_name("new.onnx"))
    path.with_name("new.onnx").replace(path)  # it names the statistics of new.onnx
    path.with_name("new.json").unlink()
    (beside,) = path.parent.glob("new.statistics.*")
    shutil.copy(path, other)
    Learner(path).forget(OLD[0]).save()
    assert beside.exists()  # the other model names them
    Learner(other).forget(OLD[1]).save()
    assert not beside.exists()
    assert run("learn", path, "--forget", NEW[0], "-o", path) == 0
    capsys.readouterr()
    assert run("learn", path, "--undo", "-o", path) == 0
    told = "taken back an addition whose classes were all forgotten before; now 1 class\n"
    assert capsys.readouterr().out == f"{path}: {told}"
    assert run("inspect", path) == 0
    said = capsys.readouterr().out
    assert "1 class in 1 task" in said
    assert said.count("│    1 │") == 1


def test_forgetting(model, photos, capsys):
    path = model()
    Learner(path).add(NEW[0], images_of(photos, NEW[0])).save()
    assert run("learn", path, "--forget", OLD[1], "-o", path) == 0
    assert capsys.readouterr().out == f"{path}: forgotten {OLD[1]}; now 2 classes\n"
    bundle = read_bundle(path)
    assert bundle.classes == (OLD[0], NEW[0])
    assert bundle.tasks == ((OLD[0],), (NEW[0],))
    assert OLD[1].encode() not in b"".join(file.read_bytes() for file in path.parent.iterdir())
    Learner(path).undo().save()
    assert read_bundle(path).classes == (OLD[0],)
    assert read_bundle(path).accuracy is None
    assert "is the only one" in error_of("learn", path, "--forget", OLD[0], "-o", path)


def test_prompts_that_belong_to_tasks_do_so_again_after_undo(model, photos):
    path = model(method="coda", adapt="first")
    assert read_bundle(path).method.task_scores == "selected"
    before = {file.name: file.read_bytes() for file in path.parent.iterdir()}
    Learner(path).add(NEW[0], images_of(photos, NEW[0])).save()
    Learner(path).add(OLD[0], images_of(photos, OLD[0], "test")).add(NEW[1], images_of(photos, NEW[1])).save()
    assert read_bundle(path).method.task_scores is None
    np.testing.assert_allclose(outputs(path, photos, ["task_scores"])[0], 1 / 3, rtol=1e-6)
    Learner(path).undo().save()
    Learner(path).undo().undo().save()
    after = {file.name: file.read_bytes() for file in path.parent.iterdir()}
    check_same_model(after.pop(path.name), before.pop(path.name))
    assert after == before
