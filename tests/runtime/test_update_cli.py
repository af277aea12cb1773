"""`cdl update` on models that describe themselves, and what it says they bring."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path

import pytest

from cdl_deploy.files import json_text
from cdl_deploy.runtime.bundle import description, read_bundle
from cdl_deploy.runtime.bundle_parts import Accuracy
from cdl_deploy.update.news import news
from cdl_deploy.update.patch import make_update
from tests.kill_points import every_kill


@pytest.fixture
def shop(tmp_path, make_model):
    """`old.onnx` knows three classes, `new.onnx` four; `a.cdlup` is between them."""
    known, tasks = ("red", "green", "blue"), (("green", "red"), ("blue",))
    make_model("old.onnx", classes=known, tasks=tasks, accuracy=Accuracy(93.21, None), classes_in_graph=3)
    make_model("new.onnx")
    make_update(tmp_path / "old.onnx", tmp_path / "new.onnx", tmp_path / "a.cdlup")
    return tmp_path


def test_it_says_what_the_update_brings(shop, cdl):
    told = "task 2 brings grün ✓: now 4 classes in 2 tasks, accuracy 93.2 → 91.0 %"
    code, out, err = cdl("update", shop / "old.onnx", shop / "a.cdlup", "-o", shop / "out.onnx")
    assert (code, out, err) == (0, f"{shop}/out.onnx: {told}\n", "")
    new = (shop / "new.onnx").read_bytes()
    assert (shop / "out.onnx").read_bytes() == new
    code, out, err = cdl("update", shop / "old.onnx", shop / "a.cdlup", "-o", shop / "old.onnx", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out) == {
        "path": str(shop / "old.onnx"),
        "bytes": len(new),
        "sha256": hashlib.sha256(new).hexdigest(),
        "applied": [str(shop / "a.cdlup")],
        "news": told,
    }
    code, out, err = cdl("update", shop / "old.onnx", shop / "a.cdlup", "-o", shop / "old.onnx")
    assert (code, out, err) == (0, f"{shop}/old.onnx: up to date already\n", "")


def test_a_result_that_cannot_run_here_is_refused(shop, cdl):
    """The bytes are as promised, but onnxruntime cannot open them: the device keeps what works."""
    (shop / "new.onnx").write_bytes((shop / "new.onnx").read_bytes()[:-40])
    make_update(shop / "old.onnx", shop / "new.onnx", shop / "b.cdlup")
    before = (shop / "old.onnx").read_bytes()
    files = sorted(shop.iterdir())
    code, out, err = cdl("update", shop / "old.onnx", shop / "b.cdlup", "-o", shop / "old.onnx")
    assert (code, out) == (2, "")
    assert err.startswith("error: the updated model cannot be used here, nothing was changed: ")
    assert err.count("\n") == 1
    assert ".tmp" not in err
    assert (shop / "old.onnx").read_bytes() == before
    assert sorted(shop.iterdir()) == files


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["new.onnx.gone", "a.cdlup", "-o", "x"], "new.onnx.gone: No such file or directory; expected a model file"),
        (["old.onnx", "new.onnx", "-o", "x"], "new.onnx is no update: expected a .cdlup file"),
        (["a.cdlup", "a.cdlup", "-o", "x"], "a.cdlup is not the model that a.cdlup is for: it has "),
        (["old.onnx", "a.cdlup"], "Missing option '--output' / '-o'"),
        (["old.onnx", "-o", "x"], "Missing argument 'UPDATE...'"),
    ],
)
def test_errors_are_one_line(shop, cdl, monkeypatch, arguments, error):
    monkeypatch.chdir(shop)
    code, out, err = cdl("update", *arguments)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {error}")
    assert err.count("\n") == 1
    assert not (shop / "x").exists()


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("ab", ["ab", "cd"], "task 2 brings c and d: now 4 classes in 2 tasks"),
        ("ab", ["ab", "c", "d"], "task 2 brings c; task 3 brings d: now 4 classes in 3 tasks"),
        ("ab", ["ab"], "trained anew, the same 2 classes in 1 task"),
        ("abz", ["ab"], "without z: now 2 classes in 1 task"),
        ("a", ["a", "bcdefghijk"], "task 2 brings b, c, d, e, f, g, h, i and 2 more: now 11 classes in 2 tasks"),
        (None, ["a"], "now 1 class in 1 task"),
    ],
)
def test_news_by_hand(tiny, old, new, expected):
    plain = tiny.bundle(accuracy=None, top_k=1)
    after = dataclasses.replace(plain, classes=tuple("".join(new)), tasks=tuple(tuple(task) for task in new))
    before = None if old is None else dataclasses.replace(plain, classes=tuple(old), tasks=(tuple(old),))
    assert news(before, after) == expected


def test_news_of_accuracy(tiny):
    plain, known = tiny.bundle(accuracy=None), tiny.bundle(accuracy=Accuracy(90.04, 1.0))
    same = "trained anew, the same 4 classes in 2 tasks"
    assert news(known, plain) == same
    assert news(plain, known) == f"{same}, accuracy 90.0 %"
    assert news(known, tiny.bundle(accuracy=Accuracy(80.06, 1.0))) == f"{same}, accuracy 90.0 → 80.1 %"


def test_killed_before_every_change_no_model_is_beside_the_description_of_another(shop, cdl):
    old, new = ((shop / f"{name}.onnx").read_bytes() for name in ("old", "new"))
    (shop / "b.onnx").write_bytes(new)
    model, beside = shop / "here" / "student.onnx", shop / "here" / "student.json"

    def texts(path):
        return json_text(description(read_bundle(path)))

    before, after = texts(shop / "old.onnx"), texts(shop / "new.onnx")

    def prepare():
        shutil.rmtree(model.parent, ignore_errors=True)
        model.parent.mkdir()
        model.write_bytes(old)
        beside.write_text(before, encoding="utf-8")

    def update():
        assert cdl("update", model, shop / "a.cdlup", "-o", model)[0] == 0

    kills = 0
    for _ in every_kill(model.parent, prepare, update):
        assert model.read_bytes() in (old, new)
        assert not beside.exists() or beside.read_text(encoding="utf-8") == (
            before if model.read_bytes() == old else after
        )
        update()
        assert (model.read_bytes(), beside.read_text(encoding="utf-8")) == (new, after)
        assert sorted(path.name for path in model.parent.iterdir()) == ["student.json", "student.onnx"]
        kills += 1
    assert kills >= 8


def test_an_update_that_cannot_take_its_place_leaves_the_description(shop, cdl, monkeypatch):
    (shop / "old.json").write_text("the old one")
    before = (shop / "old.onnx").read_bytes()

    def failing(self, target):
        if Path(target).suffix == ".onnx":
            raise OSError(5, "Input/output error")
        return move(self, target)

    move = Path.replace
    monkeypatch.setattr(Path, "replace", failing)
    code, out, err = cdl("update", shop / "old.onnx", shop / "a.cdlup", "-o", shop / "old.onnx")
    assert (code, out, err) == (2, "", f"error: {shop}/old.onnx: Input/output error; nothing was changed\n")
    assert ((shop / "old.json").read_text(), (shop / "old.onnx").read_bytes()) == ("the old one", before)


def test_a_description_that_an_earlier_update_did_not_come_to_is_written(shop, cdl):
    """Killed between the model and its description, the next run makes up for it, update or not."""
    (shop / "old.json").write_text('{"classes": ["red", "green", "blue"]}')
    assert cdl("update", shop / "old.onnx", shop / "a.cdlup", "-o", shop / "old.onnx")[0] == 0
    written = (shop / "old.json").read_text()
    assert len(json.loads(written)["classes"]) == 4
    (shop / "old.json").write_text('{"classes": ["red", "green", "blue"]}')
    code, out, _ = cdl("update", shop / "old.onnx", shop / "a.cdlup", "-o", shop / "old.onnx")
    assert (code, out) == (0, f"{shop}/old.onnx: up to date already\n")
    assert (shop / "old.json").read_text() == written
