"""The arithmetic that the web page learns with, in Node.js: the products, and the head that it makes of sums."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from cdl_deploy.closed_form.head_rule import HeadRule, solve_distance, solve_head
from cdl_deploy.closed_form.stable_random import normals
from cdl_deploy.closed_form.statistics import gather
from tests.export.test_learn_in_javascript import in_node

SCRIPT = Path(__file__).with_name("head.mjs")
D, CLASSES = 70, ("one", "two", "three")
RULES = [HeadRule(), HeadRule(shrinkage=0.2, priors="observed"), HeadRule("ridge"), HeadRule("ncm")]


def asked(tasks):
    return in_node(SCRIPT, given=tasks)


def test_products_of_any_shape_and_of_what_is_zero():
    random = np.random.default_rng(0)
    made, expected = [], []
    for n, m, k in ((1, 1, 1), (5, 3, 2), (67, 9, 300), (130, 70, 513), (66, 66, 66)):
        for options in (
            {},
            {"lower": "b"},
            {"upper": "b"},
            {"lower": "a", "upper": "b"},
            {"lower": "ab", "half": True},
        ):
            a, b = random.normal(size=(n, k)), random.normal(size=(m, k))
            if "a" in options.get("lower", ""):
                a = np.tril(a)
            if "b" in options.get("lower", ""):
                b = np.tril(b)
            if "upper" in options:
                b = np.triu(b)
            if "half" in options:
                b, m = a, n
            made.append(["product", _given(a=a, b=b, n=n, m=m, k=k, options=options)])
            expected.append(a @ b.T)
    for got, true, (_, given) in zip(asked(made), expected, made, strict=True):
        np.testing.assert_allclose(np.reshape(got, true.shape), true, rtol=0, atol=1e-11, err_msg=str(given["options"]))


@pytest.mark.parametrize("size", [1, 5, 64, 131])
def test_solves_of_any_size(size):
    random = np.random.default_rng(size)
    root, rows = random.normal(size=(size, size + 9)), random.normal(size=(7, size))
    matrix = root @ root.T
    (got,) = asked([["triangular", _given(matrix=matrix, rows=rows, n=7, D=size)]])
    L = np.linalg.cholesky(matrix)
    found = {name: np.reshape(value, (-1, size)) for name, value in got.items()}
    near = {"rtol": 0, "atol": 1e-9}
    np.testing.assert_allclose(found["L"], L, **near)
    np.testing.assert_allclose(found["lower"] @ L.T, rows, **near)
    np.testing.assert_allclose(found["upper"] @ L, rows, **near)
    np.testing.assert_allclose(found["inverse"] @ L, np.eye(size), **near)
    assert not np.triu(found["inverse"], 1).any()


def test_random_numbers_that_are_drawn_in_parts_are_the_same():
    seeds = (12, 2**53 - 5)
    drawn = asked([["normals", {"seed": seed, "counts": [7, 3, 5000]}] for seed in seeds])
    for seed, got in zip(seeds, drawn, strict=True):
        assert np.array_equal(got, normals(seed, 5000))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.kind}-{rule.priors}")
def test_the_head_of_few_and_of_many_images(rule):
    """Fewer images than features, more, and so many that the scatter is not drawn image by image."""
    random = np.random.default_rng(3)
    across = random.normal(size=(D, D)) / 8 + np.eye(D)
    sums, tasks = [], []
    for images in (40, 150, 400):
        labels = np.arange(images) % 3
        features = random.normal(size=(images, D)) @ across + random.normal(size=(3, D))[labels]
        sums.append(gather(features, labels, CLASSES))
        of = sums[-1]
        values = {name: getattr(of, name) for name in ("counts", "means", "spread", "scatter", "overconfidence")}
        given = {**_given(**values), "classes": CLASSES, "noiseImages": of.noise_images}
        tasks.append(["head", {"sums": given, "rule": asdict(rule)}])
    for of, got in zip(sums, asked(tasks), strict=True):
        true = solve_head(of, rule).calibrated
        distance, threshold = solve_distance(of, rule)
        weight = np.reshape(got["weight"], (3, D))
        np.testing.assert_allclose(weight, true.weight, rtol=0, atol=1e-5 * np.abs(true.weight).max())
        np.testing.assert_allclose(got["bias"], true.bias, rtol=0, atol=1e-5 * max(1, np.abs(true.bias).max()))
        assert got["threshold"] == pytest.approx(threshold, rel=1e-3)
        fresh = random.normal(size=(20, D)) @ across
        inverse, means = (np.reshape(got["distance"][name], (-1, D)) for name in ("inverse", "means"))
        z = (fresh - got["distance"]["centre"]) @ inverse.T
        found = np.sqrt(((z[:, None] - means) ** 2).sum(axis=2).min(axis=1))
        np.testing.assert_allclose(found, distance.distance(fresh), rtol=5e-3)


def _given(**values):
    """As JSON has it."""
    return {name: value.ravel().tolist() if isinstance(value, np.ndarray) else value for name, value in values.items()}
