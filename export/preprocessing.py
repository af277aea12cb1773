"""The evaluation transform as ONNX nodes: decoded images of any size → the pixels the network was trained on.

    image [B, H, W, 3] uint8  →  pixels [B, 3, height, width] float, whole numbers from 0 to 255

Resizing is two matrix products, one an axis, and the centre crop leaves out those of their rows that nobody reads:

    pixels = ⌊V · ⌊X · Uᵀ⌉⌉         U_ij ∝ f(|(j + ½) − (i + offset + ½)·W / W′| / max(W / W′, 1))

for an image X of W columns resized to W′; rows of U add up to 1, and V does the same for the rows of X. f is PIL's
filter, columns come first and each product is rounded and clipped, as in PIL: these are PIL's pixels but for the last
bit of a tie. (Pillow 13 takes the rows first where an image is more than twice as high as wide, which makes a
difference where the filter overshoots black or white; `cdl_deploy.data.images` has it take the columns first always.)
U and V are worked out in the graph from the shape of the image, in whole numbers up to the last division, so a wide
image loses nothing. They are mostly zero: outputs are cut into groups, and each is a product with the window that it
reads. Of an image whose shorter edge is right already they are ones and zeros, and its pixels stay what they are.

Not the Resize operator: it resizes what the crop then throws away (a 1 × 40000 image would become 224 × 9 million),
rounds once where PIL rounds twice, and runtimes differ on it: OpenVINO, MNN and ncnn drop its antialiasing in silence
(findings/openvino_antialias.sh), MNN and ncnn its cubic coefficient as well. No `If` for images that need no resizing
either: few runtimes take one.
"""

from __future__ import annotations

import math
from collections.abc import Callable

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
END = 2**63 - 1
"""Behind the last one of any axis."""
GROUP = 28
"""Outputs of an axis that share a window of inputs, about: what they do not read is not multiplied by zero."""


def preprocessing_graph(preprocessing: ResizeCrop, name: str = PIXELS_NAME) -> Nodes:
    """Nodes from `image` to `name`. Raises OptionError for a filter they do not have."""
    check_filter(preprocessing.interpolation)
    prefix = "preprocessing" if name == PIXELS_NAME else f"preprocessing/{name}"
    g = Nodes(prefix)
    height, width = preprocessing.height, preprocessing.width
    rows, columns = g("Shape", INPUT_NAME, start=1, end=2), g("Shape", INPUT_NAME, start=2, end=3)
    shorter = g("Min", rows, columns)
    row, row_weights = _axis(g, rows, shorter, height, preprocessing)
    column, column_weights = _axis(g, columns, shorter, width, preprocessing)
    # Only rows that the crop is made of: of a tall photograph little more than half.
    first, behind = g("ReduceMin", row, keepdims=0), g("Add", g("ReduceMax", row, keepdims=0), g.integers(1))
    part = g("Slice", INPUT_NAME, g("Reshape", first, g.integers(1)), behind, g.integers(1))
    planes = g("Cast", g("Transpose", part, perm=[0, 3, 1, 2]), to=TensorProto.FLOAT)
    weights, parts = g("Transpose", column_weights, perm=[0, 2, 1]), []
    for group in range(width // group_of(width)):  # slices: a Gather copies number by number where columns lie together
        own, last = g("Gather", column, g.constant(group, np.int64), axis=0), g.integers(-1)
        begin, end = g("Slice", own, g.integers(0), g.integers(1)), g("Slice", own, last, g.integers(END))
        window = g("Slice", planes, begin, g("Add", end, g.integers(1)), g.integers(3))
        parts.append(g("MatMul", window, g("Gather", weights, g.constant(group, np.int64), axis=0)))
    narrow = g("Concat", *parts, axis=3) if len(parts) > 1 else parts[0]
    spread = g("Gather", _as_bytes(g, narrow), g("Sub", row, first), axis=2)  # [B, 3, groups, window, width]
    pixels = g("Reshape", g("MatMul", row_weights, spread), g.integers(-1, 3, height, width))
    _as_bytes(g, pixels, name)
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


def _axis(g: Nodes, size: str, shorter: str, crop: int, preprocessing: ResizeCrop) -> tuple[str, str]:
    """Of one axis, whose outputs are cut into groups: the input pixels that each group reads [groups, window], and the
    weights of those [groups, outputs, window]."""
    reach, filter_of = FILTERS[preprocessing.interpolation]
    one, two, count = g.integers(1), g.integers(2), group_of(crop)
    new = g("Div", g("Mul", size, g.integers(preprocessing.resize)), shorter)  # torchvision: int(resize·long / short)
    offset = _offset(g, new, g.integers(crop))
    larger = g("Max", size, new)
    margin = g("Add", g("Div", g("Mul", larger, g.integers(reach)), new), two)
    starts = g("Add", g.constant(np.arange(0, crop, count), np.int64), offset)
    first = g("Max", g("Sub", g("Div", g("Mul", starts, size), new), margin), g.integers(0))
    behind = g("Div", g("Mul", g("Add", starts, g.integers(count)), size), new)
    behind = g("Min", g("Add", behind, margin), size)
    # All windows are as wide as the widest; the last ones begin earlier for it.
    window = g("ReduceMax", g("Sub", behind, first), keepdims=0)
    first = g("Min", first, g("Sub", size, window))
    steps = g("Range", g.constant(0, np.int64), window, g.constant(1, np.int64))
    read = g("Add", g("Unsqueeze", first, g.integers(-1)), steps)
    # 2·size·new times the position of the middle of every output, and of every input that is read
    outputs = g("Add", g.constant(np.arange(crop).reshape(-1, count, 1), np.int64), offset)
    outputs = g("Mul", g("Add", g("Mul", outputs, two), one), size)
    inputs = g("Unsqueeze", g("Mul", g("Add", g("Mul", read, two), one), new), one)
    distance = g("Abs", g("Sub", inputs, outputs))
    scale = g("Mul", larger, two)
    t = g("Div", g("Cast", distance, to=TensorProto.FLOAT), g("Cast", scale, to=TensorProto.FLOAT))
    weights = filter_of(g, t)
    return read, g("Div", weights, g("ReduceSum", weights, g.integers(-1), keepdims=1))


def _offset(g: Nodes, sizes: str, crop: str) -> str:
    """Where a centre crop begins: Python's round((size − crop) / 2), so a half goes to the even."""
    two = g.integers(2)
    spare = g("Sub", sizes, crop)
    half = g("Div", spare, two)
    return g("Add", half, g("Mul", g("Mod", spare, two), g("Mod", half, two)))


def _as_bytes(g: Nodes, values: str, name: str | None = None) -> str:
    """Rounded as PIL does, halves up, and clipped to 0 … 255."""
    return g("Clip", g("Floor", g("Add", values, g.number(0.5))), g.number(0), g.number(255), name=name)


def _bilinear(g: Nodes, t: str) -> str:
    """1 − t below 1."""
    return g("Max", g("Sub", g.number(1), t), g.number(0))


def _bicubic(g: Nodes, t: str) -> str:
    """With a = −½: ((a + 2)·t − (a + 3))·t² + 1 below 1, a·(t − 1)·(t − 2)² below 2."""
    slope = g("Sub", g("Mul", t, g.number(1.5)), g.number(2.5))
    near = g("Add", g("Mul", g("Mul", slope, t), t), g.number(1))
    before_two = g("Min", g("Sub", t, g.number(2)), g.number(0))
    far = g("Mul", g("Mul", before_two, before_two), g("Sub", t, g.number(1)))
    return g("Where", g("Less", t, g.number(1)), near, g("Mul", far, g.number(-0.5)))


FILTERS: dict[str, tuple[int, Callable[[Nodes, str], str]]] = {"bilinear": (1, _bilinear), "bicubic": (2, _bicubic)}
"""How far each filter reaches, in units of its own scale, and f(t) for t ≥ 0 (Pillow, src/libImaging/Resample.c)."""


def image_input() -> onnx.ValueInfoProto:
    """`image`, uint8 [batch, height, width, 3]."""
    return helper.make_tensor_value_info(INPUT_NAME, TensorProto.UINT8, ["batch", "height", "width", 3])
