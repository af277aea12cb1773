"""The pipeline: rows in order, bad images as rows, bounded reading ahead."""

from __future__ import annotations

import itertools
import threading

import pytest

from cdl_deploy import Classifier
from cdl_deploy.errors import OptionError
from cdl_deploy.runtime.pipeline import run_in_order
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
    started = [t for t in set(threading.enumerate()) - before if t.name.startswith("cdl-images")]
    assert len(started) == 2
    rows.close()
    for thread in started:
        thread.join(timeout=60)
    assert not any(thread.is_alive() for thread in started)


def test_nobody_waits_for_the_threads_of_a_generator_that_is_let_go():
    """The collector may let go of it while it holds the lock of all threads: waiting there would last for ever."""
    preparing, may_go_on, let_it_go = threading.Event(), threading.Event(), threading.Event()

    def prepare(item: int) -> int:
        if item:
            preparing.set()
            assert may_go_on.wait(60)
        return item

    def let_go() -> None:
        results = run_in_order(prepare, lambda batch: batch, itertools.count(), batch_size=1, workers=1)
        assert next(results) == (0, 0)
        assert preparing.wait(60)  # the second is under way
        del results
        let_it_go.set()

    thread = threading.Thread(target=let_go, daemon=True)
    thread.start()
    gone = let_it_go.wait(20)
    may_go_on.set()
    thread.join(60)
    assert gone


def test_numbers_below_one_are_refused_at_once(model_path):
    for name in ("batch_size", "top_k", "workers"):
        with pytest.raises(OptionError, match=f"{name} is 0, expected at least 1"):
            predict_rows(Classifier(model_path), [], **{name: 0})
