"""How sure a head may be, where classes are no Gaussians: measured on each addition, and added up."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from sklearn.datasets import load_digits

from cdl_deploy.closed_form.features import FeatureMap
from cdl_deploy.closed_form.head_rule import HeadRule, solve_head
from cdl_deploy.closed_form.overconfidence import measure_overconfidence
from cdl_deploy.closed_form.statistics import empty, gather
from cdl_deploy.closed_form.temperature import fit_temperature

D, COUNT = 24, 10
NAMES = tuple(f"c{place}" for place in range(COUNT))


def clusters(seed, n, modes):
    """Classes of `modes` clusters each; labels in turn."""
    world, drawn = np.random.default_rng(0), np.random.default_rng(seed)
    centres = world.normal(size=(COUNT, modes, D)) * (1.3 if modes > 1 else 0.7)
    labels = np.arange(n) % COUNT
    return centres[labels, drawn.integers(0, modes, n)] + drawn.normal(size=(n, D)), labels


def sums(features, labels, rule):
    """Two tasks of five classes each."""
    total = empty(features.shape[1])
    for task in (labels < 5, labels >= 5):
        own = gather(features[task], labels[task], NAMES).seen()
        total = total.merge(replace(own, overconfidence=measure_overconfidence(features[task], labels[task], rule)))
    return total.arranged(NAMES)


def nll(scores, labels):
    shifted = scores - scores.max(axis=1, keepdims=True)
    return float(np.mean(np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(labels)), labels]))


@pytest.mark.parametrize("kind", ["slda", "ridge", "ncm"])
@pytest.mark.parametrize("n", [300, 900])
def test_real_images_need_a_higher_temperature(kind, n):
    """scikit-learn's digits, pixels as features: what two tasks say of it is near what all other images say."""
    pixels, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    features, labels = FeatureMap(normalise=kind == "ncm").transform(pixels[order] / 16), labels[order]
    rule = HeadRule(kind)
    solved = solve_head(sums(features[:n], labels[:n], rule), rule)
    plain = solve_head(gather(features[:n], labels[:n], NAMES), rule)
    np.testing.assert_allclose(solved.layer.weight, plain.layer.weight, rtol=1e-6, atol=1e-9)
    assert solved.temperature == pytest.approx(plain.temperature * solved.factor)
    scores, truth = plain.layer.scores(features[n:]), labels[n:]
    needed = fit_temperature(scores, truth) / plain.temperature
    assert needed > 1.3, "the world of Gaussians is too sure here"
    assert abs(np.log(solved.factor / needed)) < 0.6 * np.log(needed)
    assert nll(scores / solved.temperature, truth) < nll(scores / plain.temperature, truth)


def test_gaussian_classes_need_none():
    features, labels = clusters(1, 1500, 1)
    images, log_factor = measure_overconfidence(features, labels, HeadRule())
    assert images == 1500
    assert 0 <= log_factor / images < 0.12


def test_it_is_the_same_in_any_order_and_can_be_taken_out():
    features, labels = clusters(3, 300, 4)
    rule = HeadRule()
    parts = []
    for pair in range(0, COUNT, 2):
        some = (labels == pair) | (labels == pair + 1)
        own = gather(features[some], labels[some], NAMES).seen()
        parts.append(replace(own, overconfidence=measure_overconfidence(features[some], labels[some], rule)))
    factors = []
    for order in ([0, 1, 2, 3, 4], [3, 0, 4, 2, 1]):
        total = empty(D)
        for place in order:
            total = total.merge(parts[place])
        factors.append(total.temperature_factor)
    assert factors[0] == pytest.approx(factors[1], rel=1e-12)
    mean = sum(part.overconfidence[1] for part in parts) / sum(part.overconfidence[0] for part in parts)
    assert factors[0] == pytest.approx(np.exp(mean))
    rest = total.subtract(parts[1]).overconfidence
    np.testing.assert_allclose(rest, total.overconfidence - parts[1].overconfidence, atol=1e-9)


@pytest.mark.parametrize("counts", [(50,), (50, 2), (2, 2, 2)])
def test_too_few_images_say_nothing(counts):
    labels = np.repeat(np.arange(len(counts)), counts)
    features = np.random.default_rng(0).normal(size=(len(labels), 4))
    assert measure_overconfidence(features, labels, HeadRule()).tolist() == [0, 0]


def test_images_that_are_all_told_apart_make_it_no_surer():
    labels = np.arange(60) % 3
    features = np.eye(3)[labels] * 100 + np.random.default_rng(0).normal(size=(60, 3))
    assert measure_overconfidence(features, labels, HeadRule()).tolist() == [60, 0]
