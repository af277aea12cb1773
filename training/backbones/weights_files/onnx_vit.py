"""The ViT inside an ONNX graph, whatever made the file: constants are matched by shape and order, then both are run.

What the graph and timm's network compute from the same random image decides what shapes leave open (how many heads;
which of three equal products is the query's), and whether the file is believed at all.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.layers import QuickGELU, SwiGLUPacked
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from cdl_deploy.errors import WeightsError
from cdl_deploy.training.backbones.weights_files.layouts.layout import State
from cdl_deploy.training.backbones.weights_files.onnx_graph import Array, Graph, Part
from cdl_deploy.training.backbones.weights_files.onnx_run import agreement, run_graph

SAME = 1e-3
"""Largest difference, of the largest value, at which two networks compute the same."""
SURELY = 1e-5
"""The same after one block, where nothing has added up yet: no other number of heads needs to be tried."""
NEARLY = 0.999
"""Smallest cosine between tokens at which they do nearly: a graph may resample positions in its own way."""
MOST_REGISTERS = 32
ORDERS = tuple(itertools.permutations(range(3)))


@dataclass(frozen=True)
class OnnxWeights:
    """Tensors by timm's names."""

    tensors: State
    heads: int
    layout: str
    like: str
    checked: str
    activation: str
    """`gelu` or `quick_gelu`, as transformers' configurations say it."""
    beside: tuple[str, ...]
    """Names of constants that are used after the last norm."""


@dataclass
class Block:
    """What a block of a ViT uses, in its order."""

    norm1: Part
    attention: list[Part]
    """One product for query, key and value, or three."""
    proj: Part
    norm2: Part
    fc1: Part
    fc2: Part
    scales: tuple[Part | None, Part | None] = (None, None)


@dataclass
class Encoder:
    """A ViT as it was found."""

    conv: Part
    rows: list[Part]
    norm_pre: Part | None
    blocks: list[Block]
    norm: Part
    activation: str

    @property
    def width(self) -> int:
        """Of a token."""
        return int(self.conv.weight.shape[0])


def read_onnx(file: Path) -> OnnxWeights:
    """Raises WeightsError where the graph is no ViT that is known, or computes something else than timm does."""
    graph = Graph(file)
    try:
        return _read(file, graph)
    except (ValueError, IndexError, TypeError, KeyError, AttributeError, RuntimeError, ArithmeticError) as error:
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise WeightsError(f"weights file {file} holds no ViT that is known: its graph is damaged ({reason})") from None


def _read(file: Path, graph: Graph) -> OnnxWeights:
    encoder = find_encoder(graph.parts())
    if isinstance(encoder, str):
        raise WeightsError(f"weights file {file} holds no ViT that is known: {encoder}")
    state = _embedding(encoder)
    if isinstance(state, str):
        raise WeightsError(f"weights file {file} holds no ViT that is known: {state}")
    rest = encoder.blocks[1].norm1 if len(encoder.blocks) > 1 else encoder.norm
    count, patch = state["pos_embed"].shape[1], encoder.conv.weight.shape[-1]
    side = patch * math.isqrt(count if math.isqrt(count) ** 2 == count else count - 1)
    wanted = (encoder.conv.input, rest.output, encoder.norm.output)
    seen, after_one, theirs = run_graph(file, graph.model, wanted, side)
    start = replace(encoder, blocks=encoder.blocks[:1], norm=rest)
    found = _first_block(start, state, seen, after_one)
    if found is not None:
        heads, order = found
        network = _network(encoder, state, heads, order)
        cosine, difference, largest = agreement(network, seen, theirs)
        if cosine > NEARLY:
            same = "the same" if difference <= SAME * largest else "nearly the same"
            checked = f"run beside its graph: {same}, largest difference {difference:.2g} of {largest:.3g}"
            quick = encoder.activation in ("Sigmoid", "QuickGelu")
            return OnnxWeights(
                dict(network.state_dict()),
                heads,
                "an ONNX graph's constants",
                _like(encoder),
                checked,
                "quick_gelu" if quick else "gelu",
                graph.used_after(encoder.norm.output),
            )
    raise WeightsError(
        f"weights file {file}: its {len(encoder.blocks)} blocks, {encoder.width} wide, look like a ViT's, but timm's "
        "network computes something else from them: give the weights that the graph was exported from"
    )


def _first_block(encoder: Encoder, state: State, seen: Array, theirs: Array) -> tuple[int, tuple[int, ...]] | None:
    """Number of heads, and which of three products is the query's, the key's and the value's, as they agree best."""
    orders = ORDERS[:1] if len(encoder.blocks[0].attention) == 1 else ORDERS
    best: tuple[float, int, tuple[int, ...]] | None = None
    for heads, order in itertools.product(_heads(encoder.width), orders):
        cosine, difference, largest = agreement(_network(encoder, state, heads, order), seen, theirs)
        if cosine > NEARLY and (best is None or difference < best[0]):
            best = difference, heads, order
            if difference <= SURELY * largest:
                break
    return None if best is None else best[1:]


def _like(encoder: Encoder) -> str:
    """Which of timm's models is meant, where several have these shapes."""
    if encoder.norm_pre is not None:
        return "_clip_"
    return "dinov2" if encoder.blocks[0].scales[0] is not None else r"^vit_\w+_patch\d+_\d+$"


def find_encoder(parts: Sequence[Part]) -> Encoder | str:
    """The ViT in the order of what uses constants, or why there is none."""
    place = next((i for i, part in enumerate(parts) if part.kind == "conv" and part.weight.shape[1] == 3), None)
    if place is None or parts[place].weight.shape[2] != parts[place].weight.shape[3]:
        return "found no convolution that makes tokens of square patches"
    conv, width = parts[place], parts[place].weight.shape[0]
    rest = list(parts[place + 1 :])
    first = next((i for i, part in enumerate(rest) if part.kind == "linear"), len(rest))
    norms = [part for part in rest[:first] if part.kind == "norm" and part.weight.size == width]
    if len(norms) not in (1, 2):
        return f"found {len(norms)} norms between patches and the first product, expected 1 or 2"
    rows = [part for part in (*parts[:place], *rest[:first]) if part.kind == "rows"]
    steps = [part for part in rest[first:] if part.kind != "rows"]
    blocks: list[Block] = []
    norm, at = norms[-1], 0
    while (found := _block(norm, steps, at, width)) is not None:
        block, at = found
        blocks.append(block)
        after = next((i for i in range(at, len(steps)) if steps[i].kind == "norm"), None)
        if after is None:
            return f"found {len(blocks)} blocks, and no norm after the last"
        norm, at = steps[after], after + 1
    if not blocks:
        shapes = ", ".join(str(tuple(part.weight.shape)) for part in steps if part.kind == "linear")[:120]
        return f"after {width} wide patches found products {shapes or 'of no constants'}, expected those of attention"
    between = [part.operator for part in steps if part.kind == "activation"]
    return Encoder(conv, rows, norms[0] if len(norms) == 2 else None, blocks, norm, between[0] if between else "Erf")


def _block(norm1: Part, steps: Sequence[Part], at: int, width: int) -> tuple[Block, int] | None:
    """A block that begins at step `at`, and the step after it."""
    taken = [(i, part) for i, part in enumerate(steps[at:], at) if part.kind in ("linear", "norm", "scale")]
    shapes = [part.weight.shape if part.kind == "linear" else part.kind for _, part in taken[:12]]
    count = 1 if shapes[:1] == [(3 * width, width)] else 3
    expected = [(3 * width, width)] if count == 1 else [(width, width)] * 3
    if shapes[:count] != expected or shapes[count : count + 1] != [(width, width)]:
        return None
    following = taken[count + 1 :]
    scale1 = following.pop(0)[1] if following and following[0][1].kind == "scale" else None
    if len(following) < 3 or [part.kind for _, part in following[:3]] != ["norm", "linear", "linear"]:
        return None
    (_, norm2), (_, fc1), (end, fc2) = following[:3]
    if fc1.weight.shape[1] != width or fc2.weight.shape[0] != width:
        return None
    last = following[3] if len(following) > 3 and following[3][1].kind == "scale" else None
    scales = (scale1, None if last is None else last[1])
    block = Block(norm1, [part for _, part in taken[:count]], taken[count][1], norm2, fc1, fc2, scales)
    return block, (end if last is None else last[0]) + 1


def _embedding(encoder: Encoder) -> State | str:
    """Class token, registers and positions from the rows that are joined and added before the first block."""
    width = encoder.width
    rows: list[Array] = []
    for part in encoder.rows:
        if part.weight.size % width == 0 and part.weight.shape[-1] == width:
            value = part.weight.reshape(-1, width)
            if not any(value.shape == known.shape and np.array_equal(value, known) for known in rows):
                rows.append(value)
    positions = max(rows, key=len, default=None)
    if positions is None or (len(positions) <= MOST_REGISTERS and math.isqrt(len(positions) - 1) < 2):
        return "found no positions of patches; those with rotary position cannot be read from ONNX"
    single = [value for value in rows if len(value) == 1]
    registers = [value for value in rows if 1 < len(value) <= MOST_REGISTERS and value is not positions]
    of_class = math.isqrt(len(positions)) ** 2 != len(positions)
    if math.isqrt(len(positions) - of_class) ** 2 != len(positions) - of_class:
        return f"found positions of {len(positions)} tokens, expected those of a square, with or without a class token"
    state: State = {"patch_embed.proj.weight": _tensor(encoder.conv.weight)}
    if encoder.conv.bias is not None:
        state["patch_embed.proj.bias"] = _tensor(encoder.conv.bias)
    if not single:
        return {**state, "pos_embed": _tensor(positions[None])}
    own = positions[:1] if of_class else single[1] if len(single) > 1 else np.zeros_like(single[0])
    patches = positions[int(of_class) :]
    if registers:  # timm's positions are then those of patches alone
        state |= {"cls_token": _tensor((single[0] + own)[None]), "reg_token": _tensor(registers[0][None])}
        return {**state, "pos_embed": _tensor(patches[None])}
    joined = np.concatenate([own, patches])
    return {**state, "cls_token": _tensor(single[0][None]), "pos_embed": _tensor(joined[None])}


def _network(encoder: Encoder, embedding: State, heads: int, order: tuple[int, ...]) -> VisionTransformer:
    """timm's ViT of this shape with the graph's constants."""
    state = dict(embedding)
    for index, block in enumerate(encoder.blocks):
        layers = {"norm1": block.norm1, "attn.proj": block.proj, "norm2": block.norm2}
        for name, part in (layers | {"mlp.fc1": block.fc1, "mlp.fc2": block.fc2}).items():
            state |= _layer(f"blocks.{index}.{name}", part)
        parts = [block.attention[i] for i in order] if len(block.attention) == 3 else block.attention
        biases = [np.zeros(len(part.weight)) if part.bias is None else part.bias for part in parts]
        state[f"blocks.{index}.attn.qkv.weight"] = _tensor(np.concatenate([part.weight for part in parts]))
        if any(part.bias is not None for part in parts):
            state[f"blocks.{index}.attn.qkv.bias"] = _tensor(np.concatenate(biases))
        for number, scale in enumerate(block.scales, 1):
            if scale is not None:
                state[f"blocks.{index}.ls{number}.gamma"] = _tensor(scale.weight)
    state |= _layer("norm", encoder.norm)
    if encoder.norm_pre is not None:
        state |= _layer("norm_pre", encoder.norm_pre)
    network = _empty(encoder, state, heads)
    network.load_state_dict(state)
    return network


def _empty(encoder: Encoder, state: State, heads: int) -> VisionTransformer:
    first = encoder.blocks[0]
    patch, registers = encoder.conv.weight.shape[-1], state.get("reg_token")
    with_class = "cls_token" in state
    count = state["pos_embed"].shape[1]
    no_embed_class = registers is not None
    grid = math.isqrt(count - int(with_class and not no_embed_class))
    gated = len(first.fc1.weight) == 2 * first.fc2.weight.shape[1]
    activations = {"Tanh": partial(nn.GELU, approximate="tanh"), "Sigmoid": QuickGELU, "QuickGelu": QuickGELU}
    options: dict[str, Any] = {"mlp_layer": SwiGLUPacked, "act_layer": nn.SiLU} if gated else {}
    if not gated and encoder.activation in activations:
        options["act_layer"] = activations[encoder.activation]
    with torch.random.fork_rng(devices=[]):
        return VisionTransformer(
            img_size=grid * patch,
            patch_size=patch,
            embed_dim=encoder.width,
            depth=len(encoder.blocks),
            num_heads=heads,
            mlp_ratio=len(first.fc1.weight) / encoder.width,
            qkv_bias="blocks.0.attn.qkv.bias" in state,
            init_values=1.0 if first.scales[0] is not None else None,
            class_token=with_class,
            no_embed_class=no_embed_class,
            reg_tokens=0 if registers is None else registers.shape[1],
            pre_norm=encoder.norm_pre is not None,
            global_pool="token" if with_class else "avg",
            fc_norm=False,
            num_classes=0,
            norm_layer=partial(nn.LayerNorm, eps=encoder.norm.epsilon),
            **options,
        ).eval()


def _layer(name: str, part: Part) -> State:
    bias = {} if part.bias is None else {f"{name}.bias": _tensor(part.bias)}
    return {f"{name}.weight": _tensor(part.weight), **bias}


def _tensor(value: Array) -> Tensor:
    return torch.from_numpy(np.array(value, dtype=np.float32, order="C"))


def _heads(width: int) -> Iterator[int]:
    """Numbers of heads that divide the width, the usual 64 of width each first."""
    sizes = sorted((size for size in range(4, 257) if width % size == 0), key=lambda size: (abs(size - 64), size))
    yield from (width // size for size in sizes)
