"""The pipeline: rows in order, bad images as rows, bounded reading ahead."""

from __future__ import annotations

import itertools
import threading

import pytest

from cdl_deploy import Classifier
from cdl_deploy.errors import OptionError
from cdl_deploy.runtime.predict import predict_rows


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
            assert row.error in (f"{path}: not an image of a known format", f"{path}: No such file or directory")


def test_only_bad_images(model_path, tmp_path):
    assert [r.prediction for r in predict_rows(Classifier(model_path), [tmp_path / "no.png"] * 5, 2)] == [None] * 5
    assert list(predict_rows(Classifier(model_path), [])) == []


def test_endless_paths_are_read_two_batches_a_worker_ahead(model_path, photos):
    taken, before = 0, set(threading.enumerate())

    def paths():
        nonlocal taken
        for path in itertools.cycle(photos.values()):
            taken += 1
            yield path

    rows = predict_rows(Classifier(model_path), paths(), batch_size=4, workers=2)
    for count in range(1, 41):
        next(rows)
        assert taken <= count + 2 * 2 * 4
    rows.close()
    assert not [t for t in set(threading.enumerate()) - before if t.name.startswith("cdl-predict")]


def test_numbers_below_one_are_refused_at_once(model_path):
    for name in ("batch_size", "top_k", "workers"):
        with pytest.raises(OptionError, match=f"{name} is 0, expected at least 1"):
            predict_rows(Classifier(model_path), [], **{name: 0})
