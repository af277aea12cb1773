"""The evaluation transform as ONNX nodes: decoded images of any size → the pixels the network was trained on.

    image [B, H, W, 3] uint8  →  pixels [B, 3, height, width] float, whole numbers from 0 to 255

Resizing is two matrix products, one an axis, and the centre crop leaves out those of their rows that nobody reads:

    pixels = ⌊V · ⌊X · Uᵀ⌉⌉         U_ij ∝ f(|(j + ½) − (i + offset + ½)·W / W′| / max(W / W′, 1))

for an image X of W columns resized to W′; rows of U add up to 1, and V does the same for the rows of X. f is PIL's
filter, columns come first and each product is rounded and clipped, as in PIL: these are PIL's pixels but for the last
bit of a tie. (Pillow 13 takes the rows first where an image is more than twice as high as wide, which makes a
difference where the filter overshoots black or white; `cdl_deploy.data.images` has it take the columns first always.)
U and V are worked out in the graph from the shape of the image, in whole numbers up to the last division, so a wide
image loses nothing, and for both axes together, as at batch 1 every node counts. They are mostly zero: outputs are cut
into groups, and each is a product with the window that it reads.

Of an image whose shorter edge is right already the pixels stay what they are, and the crop is copied. Both are in the
graph always, and the image's shape says how much each has to do: `_Share`. No `If` does that, as few runtimes take one,
and nothing is ever empty, as some do not take that either.

Not the Resize operator: it resizes what the crop then throws away (a 1 × 40000 image would become 224 × 9 million),
rounds once where PIL rounds twice, and runtimes differ on it: OpenVINO, MNN and ncnn drop its antialiasing in silence
(findings/openvino_antialias.sh), MNN and ncnn its cubic coefficient as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper

from cdl_deploy.data.preprocessing import ResizeCrop
from cdl_deploy.errors import OptionError
from cdl_deploy.export.nodes import Nodes
from cdl_deploy.runtime.bundle import INPUT_NAME

PIXELS_NAME = "pixels"
QUERY_PIXELS_NAME = "query_pixels"
"""What the query sees, where a teacher sees images at another size."""
GROUP = 28
"""Outputs of an axis that share a window of inputs, about: what they do not read is not multiplied by zero."""


def preprocessing_graph(preprocessing: ResizeCrop, name: str = PIXELS_NAME) -> Nodes:
    """Nodes from `image` to `name`. Raises OptionError for a filter they do not have."""
    check_filter(preprocessing.interpolation)
    prefix = "preprocessing" if name == PIXELS_NAME else f"preprocessing/{name}"
    g = Nodes(prefix)
    height, width = preprocessing.height, preprocessing.width
    size = g("Reshape", g("Shape", INPUT_NAME, start=1, end=3), g.integers(-1, 1, 1, 1))
    shorter = g("ReduceMin", size, keepdims=0)
    share = _share(g, shorter, preprocessing)
    if height == width:
        counts = share.groups if share else [None]
        (begin, behind, *origin), (row, column) = _axes(g, size, shorter, height, 2, preprocessing, counts[0])
    else:
        counts = share.groups if share else [None, None]
        both = zip(g.split(size, 1, 1, axis=0), (height, width), counts, strict=True)
        ends, ((row,), (column,)) = zip(
            *(_axes(g, own, shorter, crop, 1, preprocessing, count) for own, crop, count in both), strict=True
        )
        begin, behind, *origin = (g("Concat", *it, axis=0) for it in zip(*ends, strict=True))
    # Only pixels that the crop is made of: of a tall photograph little more than half.
    part = g("Slice", INPUT_NAME, begin, behind, g.integers(1, 2))
    # Bytes are moved and not floats, and what is gathered lies together: a Gather of single numbers is slow.
    read = g("Gather", g("Transpose", part, perm=[0, 2, 3, 1]), column.read, axis=1)  # [B, 1, groups, window, 3, rows]
    read = g("Cast", g("Transpose", read, perm=[0, 1, 2, 4, 5, 3]), to=TensorProto.FLOAT)
    read = g("Reshape", read, g.integers(0, 0, 0, 0, 0, -1))  # as it is; onnxruntime would transpose floats otherwise
    weights = g("Transpose", g("Unsqueeze", column.weights, g.integers(2)), perm=[0, 1, 2, 4, 3])
    narrow = g("Squeeze", _rounded(g, g("MatMul", read, weights)), g.integers(1))  # LiteRT has products of six axes
    narrow = g("Transpose", narrow, perm=[0, 2, 3, 1, 4])  # from [B, groups, 3, rows, outputs]: one axis moves, fast
    narrow = g("Reshape", narrow, g.integers(0, 0, 0, -1))
    read = g("Cast", g("Gather", narrow, row.read, axis=2), to=TensorProto.FLOAT)  # [B, 3, 1, groups, window, width]
    pixels = _rounded(g, g("MatMul", row.weights, read))
    if share:
        copied = g("Slice", INPUT_NAME, *origin, g("Add", *origin, share.copied), g.integers(1, 2))
        copied = g("Transpose", copied, perm=[0, 3, 1, 2])
        flat = (g("Reshape", it, g.integers(0, -1)) for it in (pixels, copied))
        pixels = g("Slice", g("Concat", *flat, axis=1), share.begin, share.behind, g.integers(1))
    pixels = g("Reshape", pixels, g.integers(-1, 3, height, width))
    g("Cast", pixels, to=TensorProto.FLOAT, name=name)
    return g


def check_filter(interpolation: str) -> None:
    """Raise OptionError for a filter that only PIL has."""
    if interpolation not in FILTERS:
        raise OptionError(
            f"this model's images are resized with {interpolation}, and the graph knows only "
            f"{' and '.join(sorted(FILTERS))}: export with --input tensor and preprocess outside"
        )


def group_of(crop: int) -> int:
    """How many outputs of an axis share a window of inputs: its divisor that is by ratio nearest `GROUP`."""
    return min((it for it in range(1, crop + 1) if crop % it == 0), key=lambda it: abs(math.log(it / GROUP)))


class _Share(NamedTuple):
    """How much is computed and how much is copied: of an image whose shorter edge is right already one group of outputs
    and the crop, of any other all groups and one pixel. What is not wanted is left out at the end."""

    groups: list[str]
    """How many groups of outputs are computed, for every crop of another length [1]."""
    copied: str
    """How far what is copied reaches [axes]."""
    begin: str
    """Where the crop begins among what was computed and what was copied, in this order [1]."""
    behind: str
    """And what is behind its last value [1]."""


class _Axis(NamedTuple):
    """Of one axis, whose outputs are cut into groups."""

    read: str
    """Which pixels of the part that is read each group reads [1, groups, window]."""
    weights: str
    """What they weigh in each output of the group [1, groups, outputs, window]."""


def _share(g: Nodes, shorter: str, preprocessing: ResizeCrop) -> _Share | None:
    """None where copying saves nothing, as there is but one group."""
    height, width = preprocessing.height, preprocessing.width
    crops = (height,) if height == width else (height, width)
    groups, ones = [crop // group_of(crop) for crop in crops], [1] * len(crops)
    if max(groups) == 1:
        return None
    computed, wanted = 3 * group_of(height) * group_of(width), 3 * height * width
    right = g("Equal", shorter, g.constant(preprocessing.resize, np.int64))
    copy = g.integers(*ones, *crops, computed, computed + wanted)
    compute = g.integers(*groups, *ones, 0, wanted)
    *counts, copied, begin, behind = g.split(g("Where", right, copy, compute), *ones, len(ones), 1, 1, axis=0)
    return _Share(counts, copied, begin, behind)


def _axes(
    g: Nodes, size: str, shorter: str, crop: int, count: int, preprocessing: ResizeCrop, group_count: str | None
) -> tuple[list[str], list[_Axis]]:
    """Of `count` axes of lengths `size` [count, 1, 1, 1], which are cropped to the same length: where the part begins
    that is read, what is behind it, and with a `group_count` [1] where the crop of an image that is not resized begins
    [count]; and each axis. They are worked out together, [axis, group, output, input]: every node takes its time,
    however little it computes."""
    reach, filter_of = FILTERS[preprocessing.interpolation]
    integers, one, two, outputs = g.integers, g.integers(1), g.integers(2), group_of(crop)
    new = g("Div", g("Mul", size, integers(preprocessing.resize)), shorter)  # torchvision: int(resize·long / short)
    twice_new, larger = g("Mul", new, two), g("Max", size, new)
    scale = g("Mul", larger, two)
    margin = g("Add", g("Div", scale if reach == 2 else g("Mul", larger, integers(reach)), new), two)
    # size · (twice the position in the resized image): where each group begins and ends, and the middles of its outputs
    starts = np.arange(0, crop, outputs).reshape(1, -1, 1, 1)
    within = np.array([0, 2 * outputs, *range(1, 2 * outputs, 2)]).reshape(1, 1, -1, 1)
    places = g("Mul", g("Add", g.constant(2 * starts + within, np.int64), _twice_offset(g, new, crop)), size)
    if group_count:
        places = g("Slice", places, integers(0), group_count, one)
    start, end, middles = g.split(places, 1, 1, outputs, axis=2)
    start = g("Div", start, twice_new)
    first = g("Max", g("Sub", start, margin), integers(0))
    behind = g("Min", g("Add", g("Div", end, twice_new), margin), size)
    # All windows of an axis are as wide as the widest; the last ones begin earlier for it.
    window = g("ReduceMax", g("Sub", behind, first), one, keepdims=1)
    first = g("Min", first, g("Sub", size, window))
    steps = g("Range", g.constant(0, np.int64), g("ReduceMax", window, keepdims=0), g.constant(1, np.int64))
    read = g("Add", first, steps)
    # 2·size·new times how far every input that is read is from every output
    distance = g("Sub", g("Add", g("Mul", read, twice_new), new), middles)
    distance, scale = (g("Cast", it, to=TensorProto.FLOAT) for it in (distance, scale))
    weights = filter_of(g, g("Div", g("Abs", distance), scale))
    behind = g("Add", g("ReduceMax", read, integers(1, 2, 3), keepdims=0), one)
    begin = g("Slice", first, integers(0), one, one)
    read = g("Squeeze", g("Sub", read, begin), two)
    window, begin = (g("Reshape", it, integers(-1)) for it in (window, begin))
    ends = [begin, behind]
    if group_count:
        ends.append(g("ReduceMin", start, integers(1, 2, 3), keepdims=0))
    if count == 1:
        return ends, [_Axis(read, _normalised(g, weights))]
    axes, each = [], [1] * count
    for parts in zip(*(g.split(it, *each, axis=0) for it in (window, read, weights)), strict=True):
        own_read, own_weights = (g("Slice", it, integers(0), parts[0], integers(-1)) for it in parts[1:])
        axes.append(_Axis(own_read, _normalised(g, own_weights)))
    return ends, axes


def _normalised(g: Nodes, weights: str) -> str:
    return g("Div", weights, g("ReduceSum", weights, g.integers(-1), keepdims=1))


def _twice_offset(g: Nodes, sizes: str, crop: int) -> str:
    """Twice where a centre crop begins [axes, 1, 1, 1]: twice Python's round((size − crop) / 2), so a half goes to the
    even. With s = size − crop that is ⌊(s + 1) / 4⌋ + ⌊(s + 2) / 4⌋."""
    quarters = g("Div", g("Add", sizes, g.integers(1 - crop, 1 - crop, 2 - crop, 2 - crop)), g.integers(4))
    return g("ReduceSum", quarters, g.integers(-1), keepdims=1)


def _rounded(g: Nodes, values: str) -> str:
    """Bytes, as PIL makes them: rounded with halves up, and clipped."""
    return g("Cast", g("Clip", g("Add", values, g.number(0.5)), g.number(0), g.number(255)), to=TensorProto.UINT8)


def _bilinear(g: Nodes, t: str) -> str:
    """1 − t below 1."""
    return g("Max", g("Sub", g.number(1), t), g.number(0))


def _bicubic(g: Nodes, t: str) -> str:
    """−2 times PIL's filter, whose a is −½: ((a + 2)·t − (a + 3))·t² + 1 below 1, a·(t − 1)·(t − 2)² below 2. Each is
    exactly 0 at the ends of its part, so the sum of the two with t clipped to their parts is what a slower Where would
    choose."""
    below_one = g("Min", t, g.number(1))
    slope = g("Sub", g.number(5), g("Mul", below_one, g.number(3)))
    near = g("Sub", g("Mul", g("Mul", slope, below_one), below_one), g.number(2))
    past_one = g("HardSigmoid", t, alpha=1.0, beta=-1.0)  # t − 1, clipped to 0 … 1
    before_two = g("Sub", past_one, g.number(1))
    return g("Add", near, g("Mul", g("Mul", before_two, before_two), past_one))


FILTERS: dict[str, tuple[int, Callable[[Nodes, str], str]]] = {"bilinear": (1, _bilinear), "bicubic": (2, _bicubic)}
"""How far each filter reaches, in units of its own scale, and f(t) or a multiple of it for t ≥ 0 (Pillow,
src/libImaging/Resample.c): weights are divided by their sum."""


def image_input() -> onnx.ValueInfoProto:
    """`image`, uint8 [batch, height, width, 3]."""
    return helper.make_tensor_value_info(INPUT_NAME, TensorProto.UINT8, ["batch", "height", "width", 3])
