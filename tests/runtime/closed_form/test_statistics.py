"""Sums over images against plain loops and exact arithmetic; in any split and order they are the same."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cdl_deploy.closed_form.errors import StatisticsError
from cdl_deploy.closed_form.history import History
from cdl_deploy.closed_form.statistics import CHUNK, empty, gather
from tests.runtime.closed_form.worlds import assert_same, classes, draw, task_by_task


def test_the_formulas_word_by_word():
    features, labels = draw(0, 3, 4, 40)
    sums = gather(features, labels, classes(3))
    exact = features.astype(np.float64)
    gram, scatter = np.zeros((4, 4)), np.zeros((4, 4))
    for image, label in zip(exact, labels, strict=True):
        gram += np.outer(image, image)
        mean = exact[labels == label].mean(axis=0)
        scatter += np.outer(image - mean, image - mean)
    assert sums.counts.tolist() == [(labels == c).sum() for c in range(3)]
    np.testing.assert_allclose(sums.means * sums.counts[:, None], [exact[labels == c].sum(axis=0) for c in range(3)])
    np.testing.assert_allclose(sums.gram(), gram)
    np.testing.assert_allclose(sums.scatter, scatter)
    np.testing.assert_allclose(sums.spread.sum(), np.trace(scatter))
    np.testing.assert_allclose(sums.centred_gram(), np.cov(exact.T, bias=True) * 40)
    assert (sums.scatter == sums.scatter.T).all()


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(1, 9), st.integers(0, 60), st.data())
def test_any_split_into_tasks_in_any_order(seed, count, D, more, data):
    features, labels = draw(seed, count, D, count + more, mean=data.draw(st.sampled_from([0.0, 100.0])))
    order = np.random.default_rng(seed + 1).permutation(len(labels))
    cuts = sorted(data.draw(st.lists(st.integers(1, max(len(order) - 1, 1)), max_size=5, unique=True)))
    pieces = [piece for piece in np.split(order, cuts) if len(piece)]
    assert_same(
        task_by_task(features, labels, classes(count), pieces), gather(features, labels, classes(count)), rtol=1e-9
    )


def test_more_images_than_a_chunk_and_single_images():
    features, labels = draw(1, 5, 3, 2 * CHUNK + 7)
    whole = gather(features, labels, classes(5))
    assert_same(
        task_by_task(features, labels, classes(5), np.array_split(np.arange(len(labels)), 3)), whole, rtol=1e-12
    )
    few = slice(0, 12)
    single = task_by_task(features[few], labels[few], classes(5), [[i] for i in range(12)])
    assert_same(single, gather(features[few], labels[few], classes(5)), rtol=1e-12)


def test_a_million_images_with_large_means_against_exact_sums():
    """Means of 1e4, noise of 1e-2: Σ φφᵀ − Σ n μμᵀ has no digit left, here all but the last few hold."""
    n, D = 1_000_000, 2
    rng = np.random.default_rng(2)
    labels = rng.integers(0, 2, n)
    # multiples of 2^-20 as whole numbers, so that sums over them can be exact
    whole = (rng.normal(size=(n, D)) * 1e-2 * 2**20).astype(np.int64) + (10_000 + labels[:, None] * 7) * 2**20
    features = whole / 2**20
    assert ((features * 2**20).astype(np.int64) == whole).all()
    once = gather(features, labels, classes(2))
    pieces = np.array_split(rng.permutation(n), 10)
    tasks = task_by_task(features, labels, classes(2), pieces)
    scatter = [[Fraction(0)] * D for _ in range(D)]
    for c in range(2):
        own = whole[labels == c]
        shift = own[0]
        left = own - shift  # below 2^24, so products and sums stay exact in 64 bits
        sums = left.sum(axis=0)
        products = left.T @ left
        for i in range(D):
            mean = shift[i] + Fraction(int(sums[i]), len(own))
            for sides in (once, tasks):
                assert sides.means[c, i] == pytest.approx(float(mean / 2**20), rel=1e-15)
            for j in range(D):
                scatter[i][j] += Fraction(int(products[i, j])) - Fraction(int(sums[i]) * int(sums[j]), len(own))
    exact = np.array([[float(value / 2**40) for value in row] for row in scatter])
    for sides in (once, tasks):
        np.testing.assert_allclose(sides.scatter, exact, rtol=1e-10, atol=1e-10 * exact.max())
    naive = features.T @ features - sum(
        (labels == c).sum() * np.outer(features[labels == c].mean(axis=0), features[labels == c].mean(axis=0))
        for c in range(2)
    )
    assert np.abs(naive - exact).max() > 1e-3 * exact.max()  # what this is for


def test_exact_where_arithmetic_is():
    features = np.array([[0.1], [0.2], [0.3], [0.7]])
    sums = gather(features, [0, 0, 0, 0], ["a"])
    mean = math.fsum([0.1, 0.2, 0.3, 0.7]) / 4
    assert sums.means[0, 0] == mean
    assert sums.scatter[0, 0] == pytest.approx(math.fsum((x - mean) ** 2 for x in [0.1, 0.2, 0.3, 0.7]), rel=1e-15)


def test_subtracting_takes_a_union_apart():
    features, labels = draw(3, 4, 5, 80, mean=10)
    names = classes(4)
    a, b = np.arange(50), np.arange(50, 80)
    both = task_by_task(features, labels, names, [a, b])
    assert_same(
        both.subtract(task_by_task(features, labels, names, [b])), task_by_task(features, labels, names, [a]), 1e-9
    )
    of_one = labels == 3
    left = both.subtract(gather(features[of_one], labels[of_one], names).arranged(names))
    assert left.classes == names[:3]
    assert_same(left, gather(features[~of_one], labels[~of_one], names[:3]), 1e-9)
    nothing = both.subtract(both)
    assert (nothing.classes, nothing.noise_images, nothing.scatter.any()) == ((), 0, False)


def test_two_devices_from_one_base():
    """Sums add, and the base that both have counts once."""
    features, labels = draw(4, 4, 5, 90)
    base, a, b = (task_by_task(features, labels, classes(4), [piece]) for piece in np.split(np.arange(90), [30, 60]))
    merged = base.merge(a).merge(base.merge(b)).subtract(base)
    assert_same(merged, gather(features, labels, classes(4)), 1e-9)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(1, 5))
def test_undo_is_exact_bit_by_bit(seed, keep, additions):
    features, labels = draw(seed, 4, 6, 4 + 10 * (additions + 1), mean=3)
    pieces = np.array_split(np.random.default_rng(seed).permutation(len(labels)), additions + 1)
    parts = [task_by_task(features, labels, classes(4), [piece]) for piece in pieces]
    histories = [History(parts[0], keep=keep)]
    for part in parts[1:]:
        histories.append(histories[-1].add(part))
    assert_same(histories[-1].total, gather(features, labels, classes(4)), 1e-9)
    back = histories[-1]
    for before in reversed(histories[:-1][-keep:]):
        back = back.undo()
        assert_same(back.total, before.total)
    if keep >= additions:
        with pytest.raises(StatisticsError, match=r"there is no addition to undo: the last \d can be taken back"):
            back.undo()


def test_undo_then_add_again_is_the_same():
    features, labels = draw(5, 3, 4, 40)
    parts = [task_by_task(features, labels, classes(3), [piece]) for piece in np.array_split(np.arange(40), 4)]
    history = History(parts[0]).add(parts[1]).add(parts[2])
    assert len(history.additions) == 1
    assert_same(history.undo().add(parts[2]).total, history.total)


def test_forgetting_leaves_noise_and_nothing_else():
    features, labels = draw(6, 3, 4, 60)
    sums = gather(features, labels, classes(3))
    left = sums.forget("c1")
    kept = labels != 1
    others = gather(features[kept], [0 if c == 0 else 1 for c in labels[kept]], ["c0", "c2"])
    assert left.classes == ("c0", "c2")
    np.testing.assert_allclose(left.means, others.means)
    assert left.counts.tolist() == others.counts.tolist()
    np.testing.assert_array_equal(left.scatter, sums.scatter)
    assert (left.images, left.noise_images) == (kept.sum(), 60)
    # as if its images had been moved to the grand mean of the others
    own = features[~kept].astype(np.float64)
    moved = own - own.mean(axis=0) + left.grand_mean()
    both = np.r_[features[kept].astype(np.float64), moved]
    np.testing.assert_allclose(left.centred_gram(), np.cov(both.T, bias=True) * 60)


def test_forgetting_reaches_every_addition():
    features, labels = draw(7, 3, 4, 60)
    parts = [task_by_task(features, labels, classes(3), [piece]) for piece in np.array_split(np.arange(60), 2)]
    history = History(parts[0]).add(parts[1])
    forgotten = history.forget("c2")
    assert "c2" not in forgotten.total.classes
    assert "c2" not in forgotten.undo().total.classes
    assert_same(forgotten.total, history.total.forget("c2"), 1e-12)
    assert_same(forgotten.undo().total, parts[0].forget("c2"))
    with pytest.raises(StatisticsError, match="class 'c9' is not in the statistics of 3 classes"):
        history.forget("c9")


def test_forgetting_from_parts_with_a_teacher():
    features, labels = draw(7, 4, 3, 60)
    outputs = np.random.default_rng(7).normal(size=(60, 4))
    early, late = np.flatnonzero(labels < 3)[:20], np.r_[np.flatnonzero(labels < 3)[20:], np.flatnonzero(labels == 3)]
    first = gather(features[early], labels[early], classes(3), outputs[early, :3])
    second = gather(features[late], labels[late], classes(4), outputs[late])
    history = History(first, keep=2).add(second)
    for name in classes(4):
        assert_same(history.forget(name).total, history.total.forget(name), 1e-12)


def test_forgotten_classes_can_come_back():
    features, labels = draw(8, 3, 4, 60)
    sums = gather(features, labels, classes(3))
    own = labels == 1
    again = sums.forget("c1").merge(gather(features[own], np.zeros(own.sum(), int), ["c1"])).arranged(classes(3))
    np.testing.assert_allclose(again.means, sums.means)
    assert again.noise_images == 60 + own.sum()


def test_hard_cases():
    one_each = gather(np.eye(3), [0, 1, 2], classes(3))
    assert not one_each.scatter.any()
    assert not one_each.spread.any()
    constant = gather(np.c_[np.full(50, 0.1), np.arange(50.0)], np.arange(50) % 2, classes(2))
    assert constant.scatter[0, 0] < 1e-28
    assert empty(3).merge(one_each).classes == classes(3)
    assert gather(np.ones((2, 1), np.float16), [0, 0], ["a", "never seen"]).counts.tolist() == [2, 0]


def test_size_does_not_grow_with_the_number_of_additions():
    features, labels = draw(9, 10, 64, 100)
    part = gather(features, labels, classes(10))
    history = History(part)
    for _ in range(200):
        history = history.add(part)
    assert len(history.additions) == 1
    assert history.total.images == 201 * 100


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_refused_with_its_image(bad):
    features = np.ones((3000, 4), np.float32)
    features[2500, 2] = bad
    with pytest.raises(StatisticsError) as caught:
        gather(features, np.zeros(3000, int), ["a"], first=100)
    assert str(caught.value) == (
        f"the feature of image 2600 holds {bad}, expected finite numbers: is the image damaged, or the model in half "
        "precision?"
    )


@pytest.mark.parametrize(
    ("features", "labels", "names", "message"),
    [
        (np.ones(3), [0], ["a"], r"features have shape \(3,\), expected \[images, dimensions\]"),
        (np.ones((0, 3)), [], ["a"], "there are no images to add"),
        (np.ones((2, 3)), [0], ["a"], r"labels are int64 of shape \(1,\), expected 2 whole numbers"),
        (np.ones((2, 3)), [0, 2], ["a", "b"], "image 1 has label 2, expected 0 to 1"),
        (np.ones((2, 3)), [0, -1], ["a", "b"], "image 1 has label -1"),
        (np.ones((2, 3)), [0, 1], ["a", "a"], "class 'a' is named twice among 2 classes"),
    ],
)
def test_what_cannot_be_summed(features, labels, names, message):
    with pytest.raises(StatisticsError, match=message):
        gather(features, np.array(labels, int), names)


def test_what_cannot_be_combined():
    three = gather(np.eye(3), [0, 1, 2], classes(3))
    with pytest.raises(StatisticsError, match="features with 3 and 4 dimensions, expected the same"):
        three.merge(empty(4))
    with pytest.raises(StatisticsError, match="cannot subtract 2 images of class 'c0' from 1"):
        three.subtract(gather(np.ones((2, 3)), [0, 0], ["c0"]))
    with pytest.raises(StatisticsError, match="class 'c2' has statistics and no place"):
        three.arranged(["c0", "c1"])
    with pytest.raises(StatisticsError, match="class 'C1' is not in the statistics of 3 classes; did you mean 'c1'"):
        three.forget("C1")
    taught = gather(np.eye(3), [0, 1, 2], classes(3), teacher=np.eye(3))
    with pytest.raises(StatisticsError, match="some images have a teacher's outputs and others have none"):
        three.merge(taught)
    assert empty(3).merge(taught).teacher is not None
