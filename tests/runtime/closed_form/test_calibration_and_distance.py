"""Temperature and threshold without images: on made-up classes they are right, on digits they help."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from sklearn.datasets import load_digits

from cdl_deploy.closed_form.errors import StatisticsError
from cdl_deploy.closed_form.features import FeatureMap
from cdl_deploy.closed_form.head_rule import HeadRule, solve_distance, solve_head
from cdl_deploy.closed_form.mahalanobis import mahalanobis, percentile_threshold
from cdl_deploy.closed_form.model_world import model_world
from cdl_deploy.closed_form.shrinkage import shrunk_covariance
from cdl_deploy.closed_form.statistics import gather
from cdl_deploy.closed_form.temperature import fit_temperature, softmax
from cdl_deploy.evaluation.calibration import confidence_bins, expected_calibration_error
from tests.runtime.closed_form.worlds import assert_same, classes, draw


def calibration_error(scores, labels):
    probabilities = softmax(scores)
    correct = probabilities.argmax(axis=1) == labels
    return expected_calibration_error(confidence_bins(probabilities.max(axis=1), correct))


@pytest.mark.parametrize("scale", [1e-3, 1.0, 50.0, 1e5])
def test_temperature_is_the_minimum(scale):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 300)
    scores = (rng.normal(size=(300, 4)) + 1.5 * np.eye(4)[labels]) * scale

    def loss(log_temperature):
        probabilities = softmax(scores / np.exp(log_temperature))
        targets = np.eye(4)[labels] * (1 - 1 / 300) + 1 / 300 / 4
        return -(np.log(probabilities) * targets).sum(axis=1).mean()

    centre = np.log(scale)
    oracle = minimize_scalar(loss, bounds=(centre - 3, centre + 3), method="bounded", options={"xatol": 1e-9})
    assert np.log(fit_temperature(scores, labels)) == pytest.approx(oracle.x, abs=1e-5)


def test_temperature_at_the_ends():
    right = np.eye(3) * 5
    many = np.tile(right, (100, 1))
    sure = softmax(many / fit_temperature(many, np.arange(300) % 3)).max(axis=1)
    assert sure == pytest.approx(1 - 1 / 300 + 1 / 900)  # all right: as sure as 300 images allow
    assert 100 < fit_temperature(right, np.array([1, 2, 0])) < np.inf  # all wrong: knows nothing
    assert fit_temperature(np.ones((3, 3)), np.arange(3)) == 1


def test_many_images_of_gaussian_classes_need_no_temperature():
    labels = np.arange(20_000) % 5
    features = np.random.default_rng(1).normal(size=(20_000, 8)) + 1.5 * np.eye(8)[labels]
    sums = gather(features, labels, classes(5))
    assert solve_head(sums, HeadRule(shrinkage=1e-6)).temperature == pytest.approx(1, abs=0.1)


def test_few_images_make_a_head_too_sure():
    labels = np.arange(60) % 5
    features = np.random.default_rng(1).normal(size=(60, 30)) + 1.5 * np.eye(30)[labels]
    assert solve_head(gather(features, labels, classes(5)), HeadRule()).temperature > 1.3


@pytest.fixture(scope="module")
def digits():
    features, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    return features[order] / 16, labels[order]


@pytest.mark.parametrize("kind", ["slda", "ridge", "ncm"])
@pytest.mark.parametrize("n", [100, 300, 900])
def test_calibration_error_falls_on_digits(digits, kind, n):
    features, labels = FeatureMap(normalise=kind == "ncm").transform(digits[0]), digits[1]
    head = solve_head(gather(features[:n], labels[:n], classes(10)), HeadRule(kind))
    before = calibration_error(head.layer.scores(features[n:]), labels[n:])
    after = calibration_error(head.calibrated.scores(features[n:]), labels[n:])
    assert after < 0.9 * before
    assert after < 8


@pytest.mark.parametrize("n", [100, 300, 900])
def test_false_alarms_on_digits(digits, n):
    features, labels = digits
    distance, threshold = solve_distance(gather(features[:n], labels[:n], classes(10)), HeadRule(), percent=95)
    alarms = (distance.distance(features[n:]) > threshold).mean()
    assert 0.02 < alarms < 0.10
    assert (distance.distance(1 - features[n:]) > threshold).mean() > 0.99  # negatives of digits are no digits
    if n < 900:  # what the images themselves would have said
        own = percentile_threshold(distance.distance(features[:n]), 95)
        assert (distance.distance(features[n:]) > own).mean() > 0.15


def test_distance_word_by_word():
    features, labels = draw(2, 4, 12, 150, mean=30)
    sums = gather(features, labels, classes(4))
    distance = mahalanobis(sums, 0.1)
    inverse = np.linalg.inv(shrunk_covariance(sums, 0.1)[0])
    steps = features[:, None].astype(np.float64) - sums.means
    np.testing.assert_allclose(
        distance.distance(features), np.sqrt(np.einsum("ncd,de,nce->nc", steps, inverse, steps).min(axis=1))
    )
    np.testing.assert_allclose(distance.factor @ distance.factor.T, inverse, rtol=1e-9, atol=1e-9)
    assert np.allclose(distance.factor, np.triu(distance.factor))
    assert distance.distance(sums.means).max() < 1e-5


def test_a_files_distance_has_fewer_bits_and_is_nearly_the_same():
    """Errors of z have at most the deviation of the docstring, and the numbers of F end in zeros."""
    features, labels = draw(3, 6, 40, 300, mean=5)
    sums = gather(features, labels, classes(6))
    short, whole = mahalanobis(sums, rounded=True), mahalanobis(sums)
    errors = (features - features.mean(axis=0)) @ (short.factor - whole.factor)
    assert 0 < np.sqrt((errors**2).mean(axis=0)).max() < 2.0**-2 / np.sqrt(12)
    assert np.abs(short.means - (sums.means - sums.means.mean(axis=0)) @ short.factor).max() <= 2.0**-7
    assert len(zlib.compress(np.float32(short.factor).tobytes())) < 0.6 * len(
        zlib.compress(np.float32(whole.factor).tobytes())
    )
    np.testing.assert_allclose(short.distance(features), whole.distance(features), rtol=0.02)


def test_the_threshold_of_gaussian_classes_is_chis():
    """Many images: d² of an image to its own mean is χ² with D degrees of freedom; far apart, that is the nearest."""
    rng = np.random.default_rng(3)
    labels = np.arange(20_000) % 4
    features = rng.normal(size=(20_000, 10)) + 30 * np.eye(10)[labels]
    _, threshold = solve_distance(gather(features, labels, classes(4)), HeadRule(shrinkage=0.0), percent=95)
    assert threshold**2 == pytest.approx(18.307, rel=0.04)  # χ²(10) at 95 %


@pytest.mark.parametrize("n", [40, 4000])  # summed from draws, and drawn by Bartlett's decomposition
def test_the_world_has_the_sums_it_comes_from(n):
    features, labels = draw(4, 3, 6, n)
    sums = gather(features, labels, classes(3))
    world = model_world(sums)
    assert np.linalg.eigvalsh(world.statistics.scatter).min() > 0
    assert np.trace(world.statistics.scatter) == pytest.approx(np.trace(sums.scatter), rel=4 / np.sqrt(n))
    for c in range(3):
        assert world.features[world.labels == c].mean(axis=0) == pytest.approx(sums.means[c], abs=0.2)
    assert_same(world.statistics, model_world(sums).statistics)


@pytest.mark.parametrize("percent", [0, -1, 101])
def test_percentiles_that_are_none(percent):
    with pytest.raises(StatisticsError, match=r"the percentile is .*, expected above 0 and at most 100"):
        percentile_threshold(np.ones(3), percent)
