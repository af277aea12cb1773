"""What is done with calibration images: against least squares, numpy and the float model."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper
from scipy.special import erf

from cdl_deploy.export import equalise, outlier_units
from cdl_deploy.export.calibration import calibrated, evened
from cdl_deploy.export.outlier_units import companions, limit_of
from cdl_deploy.export.quantise import calibrate, prepare, quantise_static
from cdl_deploy.export.rounding import DAMPING, rounded

WIDTH, HIDDEN, CLASSES, TOKENS = 16, 24, 5, 40


def mlp(large_channel: float = 1, large_unit: float = 1, more: tuple[onnx.NodeProto, ...] = ()) -> onnx.ModelProto:
    """image [B, 40, 16] → LayerNormalization → fc1 → Gelu → fc2 → logits [B, 40, 5]; one channel and one unit may be
    much larger than all others."""
    random = np.random.default_rng(1)
    norm = np.ones(WIDTH, np.float32)
    norm[3] = large_channel
    first = random.normal(size=(WIDTH, HIDDEN)) / 4
    first[3] /= large_channel
    first[:, 7] *= large_unit
    second = random.normal(size=(HIDDEN, CLASSES))
    second[7] /= large_unit
    values = {
        "norm.weight": norm,
        "norm.bias": np.zeros(WIDTH),
        "mlp.fc1.weight": first,
        "mlp.fc1.bias": random.normal(size=HIDDEN) / 4,
        "mlp.fc2.weight": second,
        "mlp.fc2.bias": np.zeros(CLASSES),
    }
    nodes = [
        helper.make_node("LayerNormalization", ["image", "norm.weight", "norm.bias"], ["normed"], "norm"),
        helper.make_node("MatMul", ["normed", "mlp.fc1.weight"], ["first"], "first"),
        helper.make_node("Add", ["first", "mlp.fc1.bias"], ["hidden"], "hidden"),
        helper.make_node("Gelu", ["hidden"], ["gelu"], "gelu"),
        helper.make_node("MatMul", ["gelu", "mlp.fc2.weight"], ["second"], "second"),
        helper.make_node("Add", ["second", "mlp.fc2.bias"], ["logits"], "sum"),
        *more,
    ]
    outputs = ["logits", *(node.output[0] for node in more)]
    graph = helper.make_graph(
        nodes,
        "mlp",
        [helper.make_tensor_value_info("image", 1, ["B", TOKENS, WIDTH])],
        [helper.make_tensor_value_info(name, 1, ["B", TOKENS, None]) for name in outputs],
        [numpy_helper.from_array(np.asarray(numbers, np.float32), name) for name, numbers in values.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def tokens(count, seed=0):
    return np.random.default_rng(seed).normal(size=(count, TOKENS, WIDTH)).astype(np.float32)


def batches():
    return [{"image": tokens(1, seed)} for seed in range(10, 26)]


def run(model, image):
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(["logits"], {"image": image})[0]


def error(model, of):
    expected = run(of, tokens(8))
    return float((run(model, tokens(8)) - expected).std() / expected.std())


def everything(model):
    prepared, ranges, rounding = calibrated(prepare(model, static=True), batches())
    return quantise_static(prepared, ranges, rounding=rounding)


def plainly(model, changed=lambda prepared: prepared):
    prepared = changed(prepare(model, static=True))
    return quantise_static(prepared, calibrate(prepared, batches()))


def test_each_error_is_made_up_for_by_least_squares():
    """Whatever has been rounded, the weights still to come are what solves the rest best."""
    random = np.random.default_rng(0)
    weight, steps = random.normal(size=(9, 4)), np.full(4, 0.3)
    rows = random.normal(size=(50, 9)) @ random.normal(size=(9, 9))
    h = rows.T @ rows
    found = rounded(weight.astype(np.float32), steps.astype(np.float32), h.astype(np.float32), 64)
    h += DAMPING * np.diag(h).mean() * np.eye(9)
    order, expected = np.argsort(-np.diag(h)), np.zeros((9, 4))
    for i in range(9):
        done, rest = order[:i], order[i:]
        off = weight[done] - expected[done] * steps
        best = weight[rest] + np.linalg.solve(h[np.ix_(rest, rest)], h[np.ix_(rest, done)] @ off)
        expected[order[i]] = np.rint(best[0] / steps)
    np.testing.assert_array_equal(found, expected)
    off, alone = (weight - whole * steps for whole in (found, np.rint(weight / steps)))
    assert np.trace(off.T @ h @ off) < 0.7 * np.trace(alone.T @ h @ alone)


def test_many_rows_are_rounded_as_one_after_the_other(monkeypatch):
    random = np.random.default_rng(0)
    weight, rows = random.normal(size=(40, 3)).astype(np.float32), random.normal(size=(60, 40)).astype(np.float32)
    steps = (np.abs(weight).max(axis=0) / 64).astype(np.float32)
    whole = rounded(weight, steps, rows.T @ rows, 64)
    monkeypatch.setattr("cdl_deploy.export.rounding.TOGETHER", 7)
    np.testing.assert_array_equal(rounded(weight, steps, rows.T @ rows, 64), whole)
    assert np.abs(whole).max() <= 64


@pytest.mark.parametrize("h", [np.eye(6), np.zeros((6, 6))])
def test_where_nothing_goes_together_the_nearest_is_taken(h):
    weight = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
    steps = (np.abs(weight).max(axis=0) / 64).astype(np.float32)
    np.testing.assert_array_equal(rounded(weight, steps, h.astype(np.float32), 64), np.rint(weight / steps))


def test_a_large_channel_costs_the_others_nothing():
    model = mlp(large_channel=200)
    ready = evened(prepare(model, static=True), batches())
    np.testing.assert_allclose(run(ready.model, tokens(3)), run(model, tokens(3)), atol=1e-5)
    assert error(plainly(model), model) > 0.1
    assert error(everything(model), model) < 0.02


def test_scales_are_those_of_the_paper():
    x, w = np.array([1, 8, 2], np.float32), np.array([1, 1, 4], np.float32)
    found = equalise.scale_of(x, w)
    expected = x**equalise.ALPHA / w ** (1 - equalise.ALPHA)
    np.testing.assert_allclose(found / found[0], expected / expected[0], rtol=1e-6)
    nothing = equalise.scale_of(np.zeros(3, np.float32), np.zeros(3, np.float32))
    np.testing.assert_allclose(nothing, 1)


def test_a_norm_that_somebody_else_reads_is_left_alone():
    model = mlp(200, more=(helper.make_node("Relu", ["normed"], ["other"], "other"),))
    ready = evened(prepare(model, static=True), batches())
    stored = {value.name: numpy_helper.to_array(value) for value in ready.model.graph.initializer}
    assert stored["norm.weight"].tolist() == [200 if i == 3 else 1 for i in range(WIDTH)]


def test_a_large_hidden_unit_costs_the_others_nothing():
    model = mlp(large_unit=40)
    ready, ranges, rounding = calibrated(prepare(model, static=True), batches())
    ((name, (least, greatest)),) = ready.clipped.items()
    assert least == pytest.approx(-0.17, abs=0.005)
    assert 2 <= greatest < 20
    assert float(ranges[name].range_value[1]) == pytest.approx(greatest)
    assert [layer.shape for layer in ready.layers] == [(WIDTH, HIDDEN + 8), (HIDDEN + 8, CLASSES)]
    quantised = quantise_static(ready, ranges, rounding=rounding)
    assert error(plainly(model), model) > 0.1
    assert error(quantised, model) < 0.03
    for keep in (["mlp.fc2"], ["mlp.fc1"], ["mlp.fc1", "mlp.fc2"]):  # one of them, or both, in float
        assert error(quantise_static(ready, ranges, keep, rounding=rounding), model) < 0.03


def test_a_bias_that_stands_in_two_places_is_left_alone():
    model = mlp(large_unit=40, more=(helper.make_node("Add", ["hidden", "mlp.fc1.bias"], ["other"], "other"),))
    assert evened(prepare(model, static=True), batches()).clipped == {}
    model = mlp(large_unit=40, more=(helper.make_node("Neg", ["mlp.fc1.bias"], ["other"], "other"),))
    assert evened(prepare(model, static=True), batches()).clipped == {}


def test_companions_take_what_is_above():
    """Each clipped, their sum is the unit, to the 0.17 that GELU is off below zero."""
    largest = np.array([3, 21, 0.5, 9], np.float32)
    limit = 5.0
    added = companions(largest, limit)
    assert added == [(1, 1), (1, 2), (1, 3), (1, 4), (3, 1)]
    x = np.linspace(-3, 21, 500)
    gelu = lambda x: x * (1 + erf(x / np.sqrt(2))) / 2  # noqa: E731
    parts = sum(np.minimum(gelu(x - times * limit), limit) for times in range(5))
    assert np.abs(parts - gelu(x)).max() < 0.18


def test_the_limit_is_the_smallest_that_the_companions_reach():
    random = np.random.default_rng(0)
    largest = np.concatenate([random.uniform(0.5, 4, 60), [60, 30]]).astype(np.float32)
    limit = limit_of(largest)
    assert len(companions(largest, limit)) <= outlier_units.COMPANIONS
    step = outlier_units.WORTH_IT * 60 / outlier_units.STEPS
    assert len(companions(largest, limit - 2 * step)) > outlier_units.COMPANIONS
    assert limit_of(random.uniform(3, 4, 60).astype(np.float32)) is None, "no unit is larger than the others"
    assert limit_of(np.array([1.5, 0.1], np.float32)) is None, "too small for GELU to be the identity"


def test_calibration_images_decide_alone():
    """The same images, the same file, however often it is made."""
    first, second = (everything(mlp(20, 20)).SerializeToString(deterministic=True) for _ in range(2))
    assert first == second
    prepared, ranges, rounding = calibrated(prepare(mlp(20, 20), static=True), [{"image": 3 * tokens(2, 99)}])
    assert quantise_static(prepared, ranges, rounding=rounding).SerializeToString(deterministic=True) != first
