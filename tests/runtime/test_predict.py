"""The pipeline: rows in order, bad images as rows, bounded reading ahead; and the paths that sources stand for."""

from __future__ import annotations

import itertools
import threading

import pytest
from PIL import Image

from cdl_deploy import Classifier
from cdl_deploy.errors import DataError, OptionError
from cdl_deploy.predict import check_sources, expand_paths, predict_rows


@pytest.mark.parametrize("batch_size", [1, 3, 64])
@pytest.mark.parametrize("workers", [1, 4])
def test_rows_are_those_of_a_bare_loop(model_path, photos, tmp_path, batch_size, workers):
    (tmp_path / "bad.png").write_text("no image")
    paths = [*photos.values(), tmp_path / "bad.png", *photos.values(), tmp_path / "none.png"] * 3
    classifier = Classifier(model_path)
    rows = list(predict_rows(classifier, paths, batch_size, top_k=2, workers=workers))
    assert [row.path for row in rows] == [str(path) for path in paths]
    for row, path in zip(rows, paths, strict=True):
        if path in photos.values():
            (expected,) = classifier.predict(path, top_k=2)
            assert row.error is None
            assert row.prediction is not None
            assert (row.prediction.label, row.prediction.task) == (expected.label, expected.task)
            assert row.prediction.probability == pytest.approx(expected.probability, abs=1e-6)
        else:
            assert row.prediction is None
            assert row.error in (f"{path}: not an image that PIL can read", f"{path}: No such file or directory")


def test_only_bad_images(model_path, tmp_path):
    assert [r.prediction for r in predict_rows(Classifier(model_path), [tmp_path / "no.png"] * 5, 2)] == [None] * 5
    assert list(predict_rows(Classifier(model_path), [])) == []


def test_endless_paths_are_read_two_batches_ahead(model_path, photos):
    taken, before = 0, set(threading.enumerate())

    def paths():
        nonlocal taken
        for path in itertools.cycle(photos.values()):
            taken += 1
            yield path

    rows = predict_rows(Classifier(model_path), paths(), batch_size=4, workers=2)
    for count in range(1, 41):
        next(rows)
        assert taken <= count + 3 * 4
    rows.close()
    assert not [t for t in set(threading.enumerate()) - before if t.name.startswith("cdl-decode")]


def test_numbers_below_one_are_refused_at_once(model_path):
    for name in ("batch_size", "top_k", "workers"):
        with pytest.raises(OptionError, match=f"{name} is 0, expected at least 1"):
            predict_rows(Classifier(model_path), [], **{name: 0})


@pytest.fixture
def folder(tmp_path):
    for name in ("b/2.JPG", "b/10.png", "a.jpeg", "c.txt", "b/.hidden.png", ".git/x.png", "z[1].png", "empty/x.txt"):
        path = tmp_path / "f" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (1, 1)).save(path, "PNG")
    return tmp_path / "f"


def expanded(folder, *sources, stdin=()):
    return [path.removeprefix(f"{folder}/") for path in expand_paths(map(str, sources), stdin)]


def test_sources(folder, monkeypatch):
    everything = ["a.jpeg", "b/10.png", "b/2.JPG", "z[1].png"]
    assert expanded(folder, folder) == everything
    assert expanded(folder, folder / "c.txt", folder / "a.jpeg") == ["c.txt", "a.jpeg"]  # as named, whatever they are
    assert expanded(folder, folder / "b" / "*.png") == ["b/10.png"]
    assert expanded(folder, folder / "**" / "*.JPG") == ["b/2.JPG"]
    assert expanded(folder, folder / "b*") == ["b/10.png", "b/2.JPG"]
    assert expanded(folder, folder / "z[1].png") == ["z[1].png"]  # a file, not a pattern
    assert expanded(folder, "-", folder / "b", stdin=["x y.png\n", "\n", "ü.png\r\n", "last"]) == [
        "x y.png", "ü.png", "last", "b/10.png", "b/2.JPG",
    ]  # fmt: skip
    (folder / "b" / "loop").symlink_to(folder)
    assert expanded(folder, folder) == everything


def test_sources_that_name_nothing(folder):
    for source, message in (
        (folder / "none.jpg", "none.jpg: no such file or folder"),
        (folder / "*.gif", r"\*.gif: no file matches this pattern"),
        (folder / "empty", r"empty: no images in this folder \(looked for .bmp, .gif, .jpeg"),
    ):
        with pytest.raises(DataError, match=message):
            check_sources([str(folder), "-", str(source)])
    check_sources([str(folder), "-"])
