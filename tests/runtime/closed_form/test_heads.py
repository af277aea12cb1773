"""Heads against independent oracles: scikit-learn on all images at once, and RanPAC in ten lines."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sklearn.covariance import OAS
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import Ridge

from cdl_deploy.closed_form.cholesky import solve_definite
from cdl_deploy.closed_form.errors import StatisticsError
from cdl_deploy.closed_form.features import FeatureMap, RandomProjection
from cdl_deploy.closed_form.head_rule import HeadRule, solve_head
from cdl_deploy.closed_form.ncm import ncm
from cdl_deploy.closed_form.ridge import regression, ridge
from cdl_deploy.closed_form.ridge_penalty import GRID, gcv_penalty, gcv_scores
from cdl_deploy.closed_form.shrinkage import oas, shrunk_covariance, within_covariance
from cdl_deploy.closed_form.slda import slda
from cdl_deploy.closed_form.statistics import gather
from cdl_deploy.errors import OptionError
from tests.runtime.closed_form.worlds import classes, draw, task_by_task


def tasks(features, labels, count, seed=0):
    """The sums, gathered in five tasks."""
    pieces = np.array_split(np.random.default_rng(seed).permutation(len(labels)), 5)
    return task_by_task(features, labels, classes(count), pieces)


@pytest.mark.parametrize("n", [30, 400])  # fewer images than dimensions, and more
@pytest.mark.parametrize("shrinkage", [0.01, 0.3, 1.0])
def test_slda_is_scikit_learns_lda(n, shrinkage):
    features, labels = draw(1, 6, 40, n, mean=1)
    oracle = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage).fit(features.astype(np.float64), labels)
    head = slda(tasks(features, labels, 6), shrinkage, observed_priors=True)
    np.testing.assert_allclose(head.weight, oracle.coef_, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(head.bias, oracle.intercept_, rtol=1e-6)
    uniform = slda(tasks(features, labels, 6), shrinkage)
    np.testing.assert_array_equal(uniform.weight, head.weight)
    share = np.bincount(labels) / n
    np.testing.assert_allclose(uniform.bias - np.log(1 / 6), head.bias - np.log(share))


def test_slda_with_uniform_priors_is_scikit_learns_on_balanced_classes():
    features, _ = draw(2, 5, 20, 200)
    labels = np.arange(200) % 5
    features[:, :5] += np.eye(5)[labels]
    oracle = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.1, priors=np.full(5, 0.2))
    oracle.fit(features.astype(np.float64), labels)
    head = slda(tasks(features, labels, 5), 0.1)
    np.testing.assert_allclose(head.weight, oracle.coef_, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(head.bias, oracle.intercept_, rtol=1e-6)


@pytest.mark.parametrize("n", [30, 400])
def test_oas_is_scikit_learns(n):
    features, labels = draw(3, 4, 25, n)
    sums = tasks(features, labels, 4)
    exact = features.astype(np.float64)
    centred = exact - np.array([exact[labels == c].mean(axis=0) for c in range(4)])[labels]
    oracle = OAS().fit(centred)
    assert oas(within_covariance(sums), n) == pytest.approx(oracle.shrinkage_, rel=1e-9)
    covariance, rho = shrunk_covariance(sums)
    assert rho == pytest.approx(oracle.shrinkage_, rel=1e-9)
    np.testing.assert_allclose(covariance, oracle.covariance_, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("n", [30, 400])
@pytest.mark.parametrize("penalty", [1e-3, 1.0, 1e3])
def test_ridge_is_scikit_learns(n, penalty):
    features, labels = draw(4, 6, 40, n, mean=2)
    exact = features.astype(np.float64)
    oracle = Ridge(alpha=penalty, solver="cholesky").fit(exact, np.eye(6)[labels])
    head = ridge(tasks(features, labels, 6), penalty)
    np.testing.assert_allclose(head.weight, oracle.coef_, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(head.bias, oracle.intercept_, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_ridge_towards_a_teacher_is_scikit_learns_on_the_mixed_targets(seed):
    """Tasks one after the other, the teacher of a task knowing the classes so far only; other columns are 0."""
    features, labels = draw(seed, 6, 10, 120, mean=1)
    rng = np.random.default_rng(seed)
    outputs, sums, beta = np.zeros((120, 6)), None, 0.3
    for known in (2, 4, 6):
        own = np.flatnonzero((labels >= known - 2) & (labels < known))
        outputs[own, :known] = rng.normal(size=(len(own), known))
        for half in np.array_split(own, 2):
            part = gather(features[half], labels[half], classes(known), outputs[half, :known])
            sums = part if sums is None else sums.merge(part)
    exact = features.astype(np.float64)
    targets = (1 - beta) * np.eye(6)[labels] + beta * outputs
    oracle = Ridge(alpha=2.0, solver="cholesky").fit(exact, targets)
    head = ridge(sums, 2.0, teacher_weight=beta)
    np.testing.assert_allclose(head.weight, oracle.coef_, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(head.bias, oracle.intercept_, rtol=1e-6, atol=1e-9)
    problem = regression(sums, True, beta)
    assert problem.square == pytest.approx(((targets - targets.mean(axis=0)) ** 2).sum())
    raw = regression(sums, False, beta)
    assert raw.square == pytest.approx((targets**2).sum())
    np.testing.assert_allclose(raw.cross, exact.T @ targets, atol=1e-9)
    # and a class's sums with the teacher can be taken out again
    own = labels == 5
    rest = sums.subtract(gather(features[own], labels[own], classes(6), outputs[own]))
    oracle.fit(exact[~own], targets[~own][:, :5])
    np.testing.assert_allclose(ridge(rest, 2.0, teacher_weight=beta).weight, oracle.coef_, rtol=1e-6, atol=1e-9)


def test_ranpac_in_ten_lines():
    features, labels = draw(5, 5, 12, 300)
    mapping = FeatureMap(projection=RandomProjection(100, seed=3))
    head = ridge(tasks(mapping.transform(features), labels, 5), 10.0, intercept=False)
    R = mapping.projection.matrix(12)
    G, S = np.zeros((100, 100)), np.zeros((100, 5))
    for task in np.array_split(np.arange(300), 3):
        h = np.maximum(features[task].astype(np.float64) @ R, 0)
        G += h.T @ h
        S += h.T @ np.eye(5)[labels[task]]
    W = np.linalg.inv(G + 10.0 * np.eye(100)) @ S
    np.testing.assert_allclose(head.weight, W.T, rtol=1e-6, atol=1e-10)
    assert not head.bias.any()


@pytest.mark.parametrize(("n", "intercept"), [(30, True), (30, False), (300, True), (300, False)])
def test_generalised_cross_validation_on_raw_data(n, intercept):
    features, labels = draw(6, 4, 50, n, mean=0.5)
    exact, targets = features.astype(np.float64), np.eye(4)[labels]
    problem = regression(tasks(features, labels, 4), intercept)
    penalties = np.array([1e-2, 1.0, 100.0, 1e4])
    scores = gcv_scores(problem.gram, problem.cross, problem.square, problem.images, problem.free, penalties)
    centring = np.eye(n) - intercept / n
    X, T = centring @ exact, centring @ targets
    for penalty, score in zip(penalties, scores, strict=True):
        hat = X @ np.linalg.solve(X.T @ X + penalty * np.eye(50), X.T)
        residual = ((T - hat @ T) ** 2).sum()
        freedom = n - np.trace(hat) - intercept
        assert score == pytest.approx(n * residual / freedom**2, rel=1e-6)


def test_generalised_cross_validation_is_close_to_leaving_one_out():
    features, labels = draw(7, 4, 30, 60)
    exact, targets = features.astype(np.float64), np.eye(4)[labels]
    problem = regression(tasks(features, labels, 4))
    size = np.trace(problem.gram) / 30

    def left_out(penalty):
        errors = 0.0
        for image in range(60):
            others = np.arange(60) != image
            model = Ridge(alpha=penalty, solver="cholesky").fit(exact[others], targets[others])
            errors += ((model.predict(exact[image : image + 1])[0] - targets[image]) ** 2).sum()
        return errors

    chosen = gcv_penalty(problem.gram, problem.cross, problem.square, 60, 1)
    assert left_out(chosen) <= 1.02 * min(left_out(step * size) for step in GRID[6::2])


def test_ncm_is_the_nearest_mean_by_angle():
    features, labels = draw(8, 5, 10, 100)
    unit = FeatureMap(normalise=True).transform(features)
    head = ncm(tasks(unit, labels, 5))
    means = np.array([unit[labels == c].mean(axis=0) for c in range(5)])
    cosine = unit @ (means / np.linalg.norm(means, axis=1, keepdims=True)).T
    np.testing.assert_allclose(head.scores(unit), cosine)
    np.testing.assert_array_equal(head.scores(unit).argmax(axis=1), cosine.argmax(axis=1))


RULES = [
    HeadRule(),
    HeadRule(priors="observed", shrinkage=0.1),
    HeadRule("ridge"),
    HeadRule("ridge", intercept=False, penalty=1.0),
    HeadRule("ncm"),
]


@example(26, 2, 2, 28, HeadRule("ridge"))  # a temperature whose search ended in two places
@settings(deadline=None, max_examples=15)
@given(st.integers(0, 2**32 - 1), st.integers(2, 5), st.integers(2, 8), st.integers(20, 60), st.sampled_from(RULES))
def test_heads_do_not_depend_on_tasks_or_order(seed, count, D, n, rule):
    features, labels = draw(seed, count, D, n, mean=1)
    names = classes(count)
    once = solve_head(gather(features, labels, names), rule)
    rng = np.random.default_rng(seed)
    orders = (np.arange(n), rng.permutation(n))
    for pieces in (
        [[i] for i in orders[1]],
        np.array_split(orders[1], 10),
        [np.flatnonzero(labels == c) for c in range(count)],
    ):
        other = solve_head(task_by_task(features, labels, names, pieces), rule)
        for head in ("layer", "calibrated"):
            for part in ("weight", "bias"):
                a, b = getattr(getattr(once, head), part), getattr(getattr(other, head), part)
                np.testing.assert_allclose(b, a, rtol=1e-9, atol=1e-9 * max(np.abs(a).max(), 1e-3))
        assert other.temperature == pytest.approx(once.temperature, rel=1e-9)


@pytest.mark.parametrize("rule", [HeadRule(), HeadRule("ridge"), HeadRule("ncm")])
def test_hard_cases(rule):
    rng = np.random.default_rng(0)
    one_each = rng.normal(size=(4, 30))
    head = solve_head(gather(one_each, np.arange(4), classes(4)), rule)
    assert (head.calibrated.scores(one_each).argmax(axis=1) == np.arange(4)).all()
    single = solve_head(gather(one_each[:1], [0], ["a"]), rule)
    assert np.isfinite(single.calibrated.weight).all()
    constant = np.c_[rng.normal(size=(200, 5)) + 3 * np.eye(5)[np.arange(200) % 5], np.full(200, 7.0), np.zeros(200)]
    head = solve_head(gather(constant, np.arange(200) % 5, classes(5)), rule)
    assert (head.calibrated.scores(constant).argmax(axis=1) == np.arange(200) % 5).mean() > 0.8
    assert np.isfinite(head.calibrated.weight).all()
    zeros = solve_head(gather(np.zeros((6, 3)), np.arange(6) % 2, classes(2)), rule)
    assert np.isfinite(zeros.calibrated.weight).all()
    outlier = np.r_[constant[:, :5], rng.normal(size=(1, 5)) - 20]  # a new class of one image
    head = solve_head(gather(outlier, np.r_[np.arange(200) % 5, 5], classes(6)), rule)
    assert (head.calibrated.scores(outlier)[-1].argmax(), head.temperature > 0) == (5, True)


@pytest.mark.parametrize("kind", ["slda", "ridge", "ncm"])
def test_a_thousand_classes(kind):
    features, labels = draw(9, 1000, 384, 2000)
    sums = gather(features, labels, classes(1000))
    head = solve_head(sums, HeadRule(kind), calibrate=False)
    assert (head.layer.scores(features).argmax(axis=1) == labels).mean() > 0.9


def test_forgetting_is_as_if_the_images_had_been_moved():
    """Ridge without a class: its images at the mean of the others, with the mean target."""
    features, labels = draw(10, 3, 6, 90)
    exact = features.astype(np.float64)
    head = ridge(gather(features, labels, classes(3)).forget("c2"), 5.0)
    kept = labels != 2
    targets = np.eye(2)[labels[kept]]
    moved = exact[~kept] - exact[~kept].mean(axis=0) + exact[kept].mean(axis=0)
    oracle = Ridge(alpha=5.0, solver="cholesky")
    oracle.fit(np.r_[exact[kept], moved], np.r_[targets, np.tile(targets.mean(axis=0), (len(moved), 1))])
    np.testing.assert_allclose(head.weight, oracle.coef_, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(head.bias, oracle.intercept_, rtol=1e-6, atol=1e-9)


def test_centring_and_scaling_leave_the_answer():
    features, labels = draw(11, 4, 6, 80, mean=50)
    head = slda(gather(features, labels, classes(4)))
    plain, small = head.scores(features), head.centred().scores(features)
    np.testing.assert_allclose(
        small - small.max(axis=1, keepdims=True), plain - plain.max(axis=1, keepdims=True), atol=1e-7
    )
    np.testing.assert_allclose(head.scaled(4.0).scores(features) * 4, plain)
    assert np.abs(head.centred().bias).max() < 0.1 * np.abs(head.bias).max()


@pytest.mark.parametrize("D", [1, 63, 64, 65, 200])
def test_solving_by_blocks(D):
    rng = np.random.default_rng(D)
    root = rng.normal(size=(D, D + 5))
    matrix, right = root @ root.T, rng.normal(size=(D, 3))
    np.testing.assert_allclose(matrix @ solve_definite(matrix, right), right, atol=1e-7)


def test_what_cannot_be_solved():
    with pytest.raises(StatisticsError, match="the statistics have no class: add images first"):
        slda(gather(np.eye(2), [0, 1], classes(2)).forget("c0").forget("c1"))
    with pytest.raises(StatisticsError, match="class 'c1' has no image, expected at least one"):
        ridge(gather(np.eye(2), [0, 0], classes(2)))
    few = gather(np.random.default_rng(0).normal(size=(4, 9)), [0, 0, 1, 1], classes(2))
    with pytest.raises(StatisticsError, match="covariance is singular, as with fewer images than dimensions"):
        slda(few, shrinkage=0.0)
    with pytest.raises(StatisticsError, match=r"singular with penalty 0, .* expected a larger penalty"):
        ridge(gather(np.zeros((2, 2)), [0, 1], classes(2)), penalty=0.0)
    with pytest.raises(StatisticsError, match=r"the weight of the teacher is 0\.5 and the statistics hold no teacher"):
        ridge(few, teacher_weight=0.5)


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"kind": "sldaa"}, "head is 'sldaa', expected slda or ridge or ncm; did you mean 'slda'?"),
        ({"priors": "flat"}, "priors is 'flat', expected uniform or observed"),
        ({"shrinkage": 1.5}, "the shrinkage is 1.5, expected 0 to 1, or none"),
        ({"penalty": -1.0}, "the penalty is -1, expected a number from 0, or none"),
        ({"penalty": float("nan")}, "the penalty is nan, expected a number from 0, or none"),
        ({"teacher_weight": 2.0}, "the weight of the teacher is 2, expected 0 to 1"),
        ({"teacher_weight": 0.5}, "the head 'slda' has no targets, so none of a teacher: use ridge, or weight 0"),
    ],
)
def test_rules_that_cannot_be(choices, message):
    with pytest.raises(OptionError) as caught:
        HeadRule(**choices)
    assert str(caught.value) == message
