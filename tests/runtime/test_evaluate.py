"""Evaluation of a model on images whose classes are known, against scikit-learn and slow loops."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import accuracy_score, confusion_matrix

from cdl_deploy import Classifier
from cdl_deploy.errors import BundleError, DataError, OptionError
from cdl_deploy.evaluation import LabelledImages, evaluate, labelled_folder
from cdl_deploy.evaluation.calibration import confidence_bins, expected_calibration_error
from tests.runtime.test_foreign import save


def draw(folder, counts, seed=0):
    """Images of `counts[name]` mixed colours a class, so that a model of mean colours makes mistakes."""
    drawn = np.random.default_rng(seed)
    base = {"red": (150, 90, 90), "green": (90, 150, 90), "blue": (90, 90, 150)}
    for name, count in counts.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            colour = np.clip(drawn.normal(base.get(name, (120, 120, 120)), 45), 0, 255).astype(np.uint8)
            Image.new("RGB", (20, 16), tuple(colour.tolist())).save(folder / name / f"{i}.png")


@pytest.fixture
def folder(tmp_path):
    draw(tmp_path / "data", {"red": 12, "green": 9, "blue": 15, "grün ✓": 4})
    return tmp_path / "data"


def slow(tiny, classifier, images):
    """(true position, probabilities) of every image, by numpy, one at a time."""
    rows = []
    for item, name in zip(images.items, images.names, strict=True):
        rows.append((tiny.classes.index(name), tiny.probabilities(classifier.prepare(item)[None])[0]))
    return rows


@pytest.mark.parametrize(("batch_size", "workers"), [(1, 1), (7, 3), (64, None)])
def test_every_figure_by_a_slow_loop(tiny, model_path, folder, batch_size, workers):
    classifier, images = Classifier(model_path), labelled_folder(folder)
    seen = []
    report = evaluate(
        classifier, images, batch_size=batch_size, workers=workers, on_image=lambda *pair: seen.append(pair)
    )
    rows = slow(tiny, classifier, images)
    true, named = [label for label, _ in rows], [int(p.argmax()) for _, p in rows]
    assert 0.3 < accuracy_score(true, named) < 0.95  # mistakes were made
    assert report.images == 40
    assert report.accuracy == pytest.approx(100 * accuracy_score(true, named))
    assert np.array_equal(report.confusion, confusion_matrix(true, named, labels=range(4)))
    assert report.interval[0] < report.accuracy < report.interval[1]
    confidence = np.array([p.max() for _, p in rows])
    right = np.array(true) == np.array(named)
    expected = expected_calibration_error(confidence_bins(confidence, right))
    assert report.calibration_error == pytest.approx(expected, abs=0.01)
    assert report.confidence == pytest.approx(100 * confidence.mean(), abs=1e-3)
    for task, names in zip(report.tasks, tiny.bundle().tasks, strict=True):
        members = [tiny.classes.index(name) for name in names]
        own = [(label, p) for label, p in rows if label in members]
        assert task.images == len(own)
        assert task.accuracy == pytest.approx(100 * sum(p.argmax() == label for label, p in own) / len(own))
        assert task.right_task == pytest.approx(100 * sum(p.argmax() in members for _, p in own) / len(own))
        within = sum(max(members, key=lambda i: (p[i], -i)) == label for label, p in own)
        assert task.within_task == pytest.approx(100 * within / len(own))
    assert report.mean_over_tasks == pytest.approx(np.mean([task.accuracy for task in report.tasks]))
    for item in report.classes:
        assert item.images == images.names.count(item.name)
    assert seen == [(i + 1, 40) for i in range(40)]


def test_the_json_has_everything(model_path, folder):
    report = evaluate(Classifier(model_path), labelled_folder(folder))
    values = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert values["kind"] == "cdl-deploy evaluation"
    assert values["accuracy_at_export"] == 91.0
    assert [row["name"] for row in values["classes"]] == ["red", "green", "blue", "grün ✓"]
    assert [row["number"] for row in values["tasks"]] == [1, 2]
    assert np.sum(values["confusion"]) == 40
    assert len(values["bins"]) == 15
    most = values["mistakes"][0]
    names = [row["name"] for row in values["classes"]]
    assert values["confusion"][names.index(most["true"])][names.index(most["named"])] == most["images"]
    assert values["against"] is None


def test_tasks_and_classes_without_images(model_path, tmp_path):
    draw(tmp_path / "few", {"red": 3})
    report = evaluate(Classifier(model_path), labelled_folder(tmp_path / "few"))
    assert [task.images for task in report.tasks] == [3, 0]
    assert report.tasks[1].accuracy is None
    assert report.mean_over_tasks == report.tasks[0].accuracy
    assert [item.accuracy is None for item in report.classes] == [False, True, True, True]
    json.dumps(report.to_dict(), allow_nan=False)


def test_unknown_classes(model_path, folder):
    draw(folder, {"grene": 2, "pink": 1})
    with pytest.raises(DataError) as caught:
        evaluate(Classifier(model_path), labelled_folder(folder))
    assert str(caught.value) == (
        f"{model_path} does not know 'grene', 'pink' in {folder}; did you mean 'green'?: name folders by the model's "
        "classes, or leave 3 images out with --skip-unknown"
    )
    report = evaluate(Classifier(model_path), labelled_folder(folder), skip_unknown=True)
    assert (report.images, report.left_out) == (40, ("grene", "pink"))


@pytest.mark.parametrize("skip", [False, True])
def test_no_known_class_at_all(model_path, tmp_path, skip):
    draw(tmp_path / "others", {"ant": 1, "bee": 1, "cat": 1, "dog": 1})
    with pytest.raises(
        DataError, match=r"knows none of the 4 classes in .*others \('ant', 'bee', 'cat' and 1 more\): "
    ):
        evaluate(Classifier(model_path), labelled_folder(tmp_path / "others"), skip_unknown=skip)


def test_unreadable_images_are_listed_and_do_not_count(model_path, folder):
    clean = evaluate(Classifier(model_path), labelled_folder(folder))
    (folder / "red" / "a.png").write_text("no image")
    (folder / "blue" / "z.png").write_bytes(b"")
    report = evaluate(Classifier(model_path), labelled_folder(folder))
    assert [item.path for item in report.unreadable] == [str(folder / "blue/z.png"), str(folder / "red/a.png")]
    assert "empty file (0 bytes)" in report.unreadable[0].error
    assert dataclasses.replace(report, unreadable=()).to_dict() == clean.to_dict()


def test_no_readable_image(model_path, tmp_path):
    (tmp_path / "bad/red").mkdir(parents=True)
    (tmp_path / "bad/red/0.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"bad has no image that can be read: .*0.png: empty file"):
        evaluate(Classifier(model_path), labelled_folder(tmp_path / "bad"))


def test_pixels_instead_of_files(model_path, folder):
    images = labelled_folder(folder)
    arrays = [np.asarray(Image.open(path)) for path in images.items]
    report = evaluate(Classifier(model_path), LabelledImages(images.source, arrays, images.names))
    assert report.to_dict() == evaluate(Classifier(model_path), images).to_dict()


# ---- against a second model ------------------------------------------------------------------------------------------


def test_a_model_agrees_with_itself(model_path, make_model, folder):
    report = evaluate(Classifier(model_path), labelled_folder(folder), Classifier(make_model("copy.onnx")))
    against = report.against
    assert (against.same, against.images, against.shared_classes, against.p_value) == (100, 40, 4, 1)
    assert against.accuracy_first == against.accuracy_second == pytest.approx(report.accuracy)
    assert against.only_first == against.only_second == ()


def test_the_same_classes_in_another_order(model_path, make_model, folder):
    """The second graph puts out the same numbers, but calls them other names: it is compared by name."""
    names = ("green", "red", "blue", "grün ✓")
    other = make_model("other.onnx", classes=names, tasks=(names[:2], names[2:]))
    images = labelled_folder(folder)
    against = evaluate(Classifier(model_path), images, Classifier(other)).against
    said = [p.label for p in Classifier(model_path).predict(images.items)]
    also = [p.label for p in Classifier(other).predict(images.items)]
    assert against.same == 100 * sum(a == b for a, b in zip(said, also, strict=True)) / 40
    assert against.same < 100
    assert against.accuracy_second == 100 * sum(a == t for a, t in zip(also, images.names, strict=True)) / 40


def test_different_classes_are_compared_on_those_both_know(tiny, model_path, make_model, folder):
    """Each chooses among red and blue alone; images of other classes are left out."""
    names = ("blue", "lilac", "red", "pink")
    other = make_model("other.onnx", classes=names, tasks=(names[:2], names[2:]))
    images = labelled_folder(folder)
    (folder / "red" / "0.png").write_bytes(b"")
    report = evaluate(Classifier(model_path), images, Classifier(other))
    against = report.against
    true, first, second = [], [], []
    for item, name in zip(images.items, images.names, strict=True):
        if (name in ("red", "blue") and item.name != "0.png") or name == "blue":
            p = tiny.probabilities(Classifier(model_path).prepare(item)[None])[0]
            true.append(name)
            first.append("red" if p[0] >= p[2] else "blue")
            second.append("blue" if p[0] >= p[2] else "red")
    assert against.images == len(true) == 26
    assert against.shared_classes == 2
    assert against.only_first == ("green", "grün ✓")
    assert against.only_second == ("lilac", "pink")
    assert against.accuracy_first == pytest.approx(100 * accuracy_score(true, first))
    assert against.accuracy_second == pytest.approx(100 * accuracy_score(true, second))
    assert against.same == 0
    counts = (against.both_right, against.only_first_right, against.only_second_right, against.both_wrong)
    right = [(t == a, t == b) for t, a, b in zip(true, first, second, strict=True)]
    assert counts == tuple(right.count(pair) for pair in ((True, True), (True, False), (False, True), (False, False)))
    assert report.images == 39  # the model itself is still tested on all it knows


def test_too_few_common_classes(model_path, make_model, folder):
    for names, common in ((("red", "a", "b", "c"), "only 'red' in common"), (tuple("abcd"), "no class in common")):
        other = make_model("other.onnx", classes=names, tasks=(names[:2], names[2:]))
        with pytest.raises(OptionError) as caught:
            evaluate(Classifier(model_path), labelled_folder(folder), Classifier(other))
        assert str(caught.value) == (
            f"{model_path} (4 classes) and --against {other} (4 classes) have {common}, "
            "and two are needed to compare them: give a model of the same classes"
        )


def test_no_image_of_a_common_class(model_path, make_model, tmp_path):
    names = ("red", "blue", "a", "b")
    draw(tmp_path / "data", {"green": 3})
    other = Classifier(make_model("other.onnx", classes=names, tasks=(names[:2], names[2:])))
    with pytest.raises(DataError, match="has no image of the 2 classes that both models know"):
        evaluate(Classifier(model_path), labelled_folder(tmp_path / "data"), other)


# ---- models that cdl did not export ----------------------------------------------------------------------------------


@pytest.fixture
def foreign(tmp_path):
    """Another's classifier: it calls the tiny model's classes by the same names, in the same order."""
    return save(tmp_path / "theirs.onnx", metadata={"labels": json.dumps(("red", "green", "blue", "grün ✓"))})


def test_a_model_from_elsewhere_by_a_slow_loop(foreign, folder):
    images = labelled_folder(folder)
    report = evaluate(Classifier(foreign), images, batch_size=7)
    said = list(Classifier(foreign).predict(images.items, batch_size=1))
    assert report.accuracy == pytest.approx(100 * accuracy_score(images.names, [p.label for p in said]))
    labels = ["red", "green", "blue", "grün ✓"]
    assert np.array_equal(report.confusion, confusion_matrix(images.names, [p.label for p in said], labels=labels))
    assert report.confidence == pytest.approx(100 * np.mean([p.probability for p in said]), abs=1e-3)


def test_nothing_is_said_by_task_where_no_task_is_known(foreign, folder):
    report = evaluate(Classifier(foreign), labelled_folder(folder))
    assert (report.model, report.role, report.accuracy_at_export) == (str(foreign), None, None)
    assert (report.mean_over_tasks, report.tasks) == (None, ())
    assert [item.task for item in report.classes] == [None] * 4
    json.dumps(report.to_dict(), allow_nan=False)


def test_ours_and_anothers_on_the_classes_that_both_know(model_path, tmp_path, folder):
    """Both ways round, with a class on each side that the other does not know."""
    theirs = save(tmp_path / "theirs.onnx", metadata={"labels": json.dumps(("blue", "pink", "red", "green"))})
    images = labelled_folder(folder)
    probability = {
        path: [dict(p.top_k) for p in Classifier(path).predict(images.items, top_k=4)] for path in (model_path, theirs)
    }
    common = ("red", "green", "blue")
    rows = [i for i, name in enumerate(images.names) if name in common]
    said = {path: [max(common, key=found[i].__getitem__) for i in rows] for path, found in probability.items()}
    same = sum(a == b for a, b in zip(said[model_path], said[theirs], strict=True))
    assert 0 < same < len(rows)
    for first, second, skip in ((model_path, theirs, False), (theirs, model_path, True)):
        against = evaluate(Classifier(first), images, Classifier(second), skip_unknown=skip).against
        assert (against.images, against.shared_classes, against.model) == (36, 3, str(second))
        assert against.same == pytest.approx(100 * same / 36)
        assert against.only_first == (("grün ✓",) if first == model_path else ("pink",))
        pairs = [list(zip((images.names[i] for i in rows), said[path], strict=True)) for path in (first, second)]
        right = [sum(true == name for true, name in both) for both in pairs]
        assert [against.accuracy_first, against.accuracy_second] == pytest.approx([100 * n / 36 for n in right])


@pytest.mark.parametrize("place", ["first", "second"])
def test_two_classes_of_one_name_cannot_be_told_apart(model_path, tmp_path, folder, place):
    crane = save(tmp_path / "theirs.onnx", metadata={"labels": json.dumps(("red", "green", "blue", "red"))})
    models = [Classifier(crane), Classifier(model_path)]
    first, second = models if place == "first" else models[::-1]
    with pytest.raises(BundleError) as caught:
        evaluate(first, labelled_folder(folder), second)
    assert str(caught.value) == (
        f"{crane} has two classes called 'red', number 1 and 4, so the names of folders do not tell them apart: give "
        "each label a name of its own"
    )
