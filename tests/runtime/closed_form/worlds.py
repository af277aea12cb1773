"""Features made up for the tests: Gaussian classes with correlated noise, in any number."""

from __future__ import annotations

import numpy as np

from cdl_deploy.closed_form.statistics import Statistics, empty, gather


def classes(count: int) -> tuple[str, ...]:
    return tuple(f"c{place}" for place in range(count))


def draw(seed: int, count: int, D: int, n: int, mean: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """`n` images of `count` classes, every class at least once, unbalanced; float32, as a backbone gives them."""
    rng = np.random.default_rng(seed)
    labels = np.r_[np.arange(count), rng.choice(count, size=n - count, p=rng.dirichlet(np.ones(count) * 3))]
    mixing = rng.normal(size=(D, D)) / np.sqrt(D)
    means = mean + rng.normal(size=(count, D))
    return (means[labels] + rng.normal(size=(n, D)) @ mixing).astype(np.float32), labels


def task_by_task(features, labels, names, pieces) -> Statistics:
    """The sums over `pieces`, arrays of image numbers, each with the class names in an order of its own."""
    total = empty(features.shape[1])
    for piece in pieces:
        here = [names[c] for c in dict.fromkeys(labels[piece].tolist())]
        total = total.merge(gather(features[piece], [here.index(names[c]) for c in labels[piece]], here))
    return total.arranged(names)


def assert_same(a: Statistics, b: Statistics, rtol: float = 0.0) -> None:
    """Equal; bit by bit unless `rtol` says otherwise."""
    assert a.classes == b.classes
    assert a.counts.tolist() == b.counts.tolist()
    assert a.noise_images == b.noise_images
    assert (a.teacher is None) == (b.teacher is None)
    pairs = [(a.means, b.means), (a.spread, b.spread), (a.scatter, b.scatter), (a.overconfidence, b.overconfidence)]
    if a.teacher and b.teacher:
        pairs += [(getattr(a.teacher, name), getattr(b.teacher, name)) for name in ("means", "cross", "square")]
    for left, right in pairs:
        np.testing.assert_allclose(left, right, rtol=rtol, atol=rtol * max(np.abs(right).max(initial=0), 1e-300))
