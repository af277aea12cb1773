"""Attention's scores in integers, against integer arithmetic written out in numpy."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from cdl_deploy.errors import QuantisationError
from cdl_deploy.export.attention_scores import check_scores, find_scores
from cdl_deploy.export.quantise import calibrate, prepare, quantise_static
from cdl_deploy.runtime.bundle_parts import SCORES

TOKENS, PROMPTS, HEADS, WIDTH = 11, 3, 2, 8
NAMES = ("q", "k", "v", "proj")
LAYERS = [f"attn.{name}" for name in NAMES]


def attention_graph(seed: int = 0, sizes: bool = False) -> onnx.ModelProto:
    """image [B, N, D] → logits [B, N, D]: one attention, with prompts before its keys and values, as export writes it.

    `sizes`: something is added to the scores, as where tokens were merged.
    """
    random, per_head = np.random.default_rng(seed), WIDTH // HEADS
    matrices = {name: random.normal(size=(WIDTH, WIDTH)).astype(np.float32) / WIDTH**0.5 for name in NAMES}
    prompts = {name: random.normal(size=(1, HEADS, PROMPTS, per_head)).astype(np.float32) for name in ("pk", "pv")}
    more = {"more": random.normal(size=PROMPTS + TOKENS).astype(np.float32)} if sizes else {}
    shapes = {"split": [0, -1, HEADS, per_head], "joined": [0, -1, WIDTH], "batch": [1], "all": [1, 1, 1]}
    values = {f"attn.{name}.weight": matrix for name, matrix in matrices.items()} | prompts | more
    values |= {name: np.array(shape, np.int64) for name, shape in shapes.items()}
    nodes = []
    for name in "qkv":
        nodes += [
            helper.make_node("MatMul", ["image", f"attn.{name}.weight"], [f"{name}.rows"], f"{name}.product"),
            helper.make_node("Reshape", [f"{name}.rows", "split"], [f"{name}.split"]),
            helper.make_node("Transpose", [f"{name}.split"], [name], perm=[0, 2, 1, 3]),
        ]
    nodes += [
        helper.make_node("Shape", ["image"], ["count"], start=0, end=1),
        helper.make_node("Concat", ["count", "all"], ["expanded"], axis=0),
        *(helper.make_node("Expand", [name, "expanded"], [f"{name}.all"]) for name in prompts),
        helper.make_node("Concat", ["pk.all", "k"], ["keys"], axis=2),
        helper.make_node("Concat", ["pv.all", "v"], ["values"], axis=2),
        helper.make_node("Transpose", ["keys"], ["keys.T"], perm=[0, 1, 3, 2]),
        helper.make_node("MatMul", ["q", "keys.T"], ["scores"], "scores.product"),
        *([helper.make_node("Add", ["scores", "more"], ["scores.more"])] if sizes else []),
        helper.make_node("Softmax", ["scores.more" if sizes else "scores"], ["shares"], axis=-1),
        helper.make_node("MatMul", ["shares", "values"], ["mixed"], "mixture.product"),
        helper.make_node("Transpose", ["mixed"], ["mixed.T"], perm=[0, 2, 1, 3]),
        helper.make_node("Reshape", ["mixed.T", "joined"], ["mixed.rows"]),
        helper.make_node("MatMul", ["mixed.rows", "attn.proj.weight"], ["logits"], "proj.product"),
    ]
    graph = helper.make_graph(
        nodes,
        "attention",
        [helper.make_tensor_value_info("image", 1, ["B", TOKENS, WIDTH])],
        [helper.make_tensor_value_info("logits", 1, ["B", TOKENS, WIDTH])],
        [numpy_helper.from_array(value, name) for name, value in values.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def run(model: onnx.ModelProto, image: np.ndarray, *values: str) -> list[np.ndarray]:
    """Values of the graph; those within it as the file has them, without what onnxruntime would make of it."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in values if name != "logits")
    options = onnxruntime.SessionOptions()
    if values != ("logits",):
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(copy.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(list(values), {"image": image})


def tokens(count: int = 4, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, TOKENS, WIDTH)).astype(np.float32)


def quantised(model: onnx.ModelProto, image: np.ndarray, keep: list[str]) -> onnx.ModelProto:
    prepared = prepare(model, static=True)
    return quantise_static(prepared, calibrate(prepared, [{"image": image}]), keep)


def by_hand(model: onnx.ModelProto, image: np.ndarray) -> np.ndarray:
    """The scores in whole numbers, with scales from the same images. logits [B, N, D]"""
    constants = {value.name: numpy_helper.to_array(value) for value in model.graph.initializer}
    q, keys, values = run(model, image, "q", "keys.T", "values")
    q_scale = (max(q.max(), 0) - min(q.min(), 0)) / 255
    zero = np.rint(-min(q.min(), 0) / q_scale)
    q_whole = np.clip(np.rint(q / q_scale) + zero, 0, 255).astype(np.int64) - int(zero)
    key_scale = np.abs(keys).max() / 64
    keys_whole = np.rint(keys / key_scale).astype(np.int64)
    scores = (q_whole @ keys_whole) * (q_scale * key_scale) + constants.get("more", 0)
    shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
    mixed = shares / shares.sum(axis=-1, keepdims=True) @ values
    return mixed.transpose(0, 2, 1, 3).reshape(image.shape) @ constants["attn.proj.weight"]


@pytest.mark.parametrize("sizes", [False, True])
def test_scores_are_integer_arithmetic(sizes):
    model, image = attention_graph(sizes=sizes), tokens()
    (found,) = run(quantised(model, image, LAYERS), image, "logits")
    (exact,) = run(model, image, "logits")
    np.testing.assert_allclose(found, by_hand(model, image), atol=2e-5)
    assert np.median(np.abs(exact - found)) > 1e-3, "it would not tell integers from float"


def test_an_answer_does_not_depend_on_its_batch():
    image = tokens(5)
    model = quantised(attention_graph(), image, [])
    (together,) = run(model, image, "logits")
    alone = np.concatenate([run(model, image[i : i + 1], "logits")[0] for i in range(5)])
    assert np.array_equal(alone, together), "bit for bit"


def test_scores_can_stay_float():
    model, image = attention_graph(), tokens()
    kept = quantised(model, image, [*LAYERS, SCORES])
    np.testing.assert_allclose(run(kept, image, "logits")[0], run(model, image, "logits")[0], atol=1e-5)


def test_pairs_of_their_products_fit_into_16_bits():
    """The largest of keys beside the greatest that queries can be, of tokens far beyond those of calibration:
    processors without VNNI add two such products in 16 bits."""
    found = quantised(attention_graph(), tokens(), LAYERS)
    product = next(node for node in found.graph.node if node.name == "scores.product")
    left, right = (next(node.input[0] for node in found.graph.node if node.output[0] == side) for side in product.input)
    for image in (tokens(), 5 * tokens(), -5 * tokens()):
        queries, keys = run(found, image, left, right)
        assert (queries.dtype, keys.dtype) == (np.uint8, np.int8)
        largest = int(np.abs(keys.astype(int)).max())
        assert largest == 64, "no more, and no bit less"
        assert 2 * 255 * largest < 2**15


def test_keys_are_transposed_as_bytes():
    """And the file's S8 is what onnxruntime multiplies by."""
    found = quantised(attention_graph(), tokens(), [])
    (transpose,) = (node for node in found.graph.node if node.output[0] == "scores.product.keys")
    assert transpose.op_type == "Transpose"
    (keys,) = run(found, tokens(), "scores.product.keys")
    assert (keys.dtype, keys.shape) == (np.int8, (4, HEADS, WIDTH // HEADS, PROMPTS + TOKENS))


def test_what_is_no_attention_of_tokens_is_not_taken_for_it():
    model = attention_graph()
    assert [(found.node, found.keys) for found in find_scores(model)] == [("scores.product", "keys.T")]
    nodes = {node.name or node.output[0]: node for node in model.graph.node}
    nodes["scores.product"].input[1] = "attn.k.weight"  # a constant
    assert find_scores(model) == []
    several = attention_graph()
    several.graph.node.append(helper.make_node("Identity", ["shares"], ["also"]))  # its shares are read elsewhere
    assert find_scores(several) == []


def test_scores_that_a_quantiser_overlooks_are_an_error():
    model, image = attention_graph(), tokens()
    prepared = prepare(model, static=True)
    with pytest.raises(
        QuantisationError, match=r"1 of 1 products of queries and keys were left in float .*scores.prod"
    ):
        check_scores(prepared.model, prepared.scores)
    check_scores(quantised(model, image, []), prepared.scores)
