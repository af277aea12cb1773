"""The evaluation transform as ONNX nodes: decoded images of any size → the pixels the network was trained on.

    image [B, H, W, 3] uint8  →  pixels [B, 3, height, width] float, whole numbers from 0 to 255

Resizing is two matrix products, one an axis, and the centre crop leaves out those of their rows that nobody reads:

    pixels = ⌊V · ⌊X · Uᵀ⌉⌉         U_ij ∝ f(|(j + ½) − (i + offset + ½)·W / W′| / max(W / W′, 1))

for an image X of W columns resized to W′; rows of U add up to 1, and V does the same for the rows of X. f is PIL's
filter, columns come first and each product is rounded and clipped, as in PIL: these are PIL's pixels but for the last
bit of a tie. (Pillow 13 takes the rows first where an image is more than twice as high as wide, which makes a
difference where the filter overshoots black or white; `cdl_deploy.data.images` has it take the columns first always.)
U and V are worked out in the graph from the shape of the image, in whole numbers up to the last division, so a wide
image loses nothing. Of an image whose shorter edge is right already they are ones and zeros, and its pixels stay what
they are.

Not the Resize operator: it resizes what the crop then throws away (a 1 × 40000 image would become 224 × 9 million),
rounds once where PIL rounds twice, and runtimes differ on it: OpenVINO, MNN and ncnn drop its antialiasing in silence,
MNN and ncnn its cubic coefficient as well. No `If` for images that need no resizing either: few runtimes take one.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from onnx import TensorProto, helper

from cdl_deploy.data.preprocessing import Preprocessing
from cdl_deploy.errors import OptionError
from cdl_deploy.export.nodes import Nodes
from cdl_deploy.runtime.bundle import INPUT_NAME

PIXELS_NAME = "pixels"


def preprocessing_graph(preprocessing: Preprocessing) -> Nodes:
    """Nodes from `image` to `pixels`. Raises OptionError for a filter they do not have."""
    check_filter(preprocessing.interpolation)
    g = Nodes("preprocessing")
    rows, columns = g("Shape", INPUT_NAME, start=1, end=2), g("Shape", INPUT_NAME, start=2, end=3)
    shorter = g("Min", rows, columns)
    first_row, last_row, rows_weights = _axis(g, rows, shorter, preprocessing.height, preprocessing)
    first_column, last_column, columns_weights = _axis(g, columns, shorter, preprocessing.width, preprocessing)
    # Only what the crop is made of: of a wide photograph little more than half.
    begin, end = g("Concat", first_row, first_column, axis=0), g("Concat", last_row, last_column, axis=0)
    part = g("Slice", INPUT_NAME, begin, end, g.integers(1, 2))
    planes = g("Cast", g("Transpose", part, perm=[0, 3, 1, 2]), to=TensorProto.FLOAT)
    narrow = _as_bytes(g, g("MatMul", planes, g("Transpose", columns_weights, perm=[1, 0])))
    _as_bytes(g, g("MatMul", rows_weights, narrow), PIXELS_NAME)
    return g


def check_filter(interpolation: str) -> None:
    """Raise OptionError for a filter that only PIL has."""
    if interpolation not in FILTERS:
        raise OptionError(
            f"this model's images are resized with {interpolation}, and the graph knows only "
            f"{' and '.join(sorted(FILTERS))}: export with --input tensor and preprocess outside"
        )


def _axis(g: Nodes, size: str, shorter: str, crop: int, preprocessing: Preprocessing) -> tuple[str, str, str]:
    """First input pixel that is read, the one behind the last, and the weights [crop, pixels read] of one axis."""
    reach, filter_of = FILTERS[preprocessing.interpolation]
    one, two, count = g.integers(1), g.integers(2), g.integers(crop)
    new = g("Div", g("Mul", size, g.integers(preprocessing.resize)), shorter)  # torchvision: int(resize·long / short)
    offset = _offset(g, new, count)
    larger = g("Max", size, new)
    margin = g("Add", g("Div", g("Mul", larger, g.integers(reach)), new), two)
    first = g("Max", g("Sub", g("Div", g("Mul", offset, size), new), margin), g.integers(0))
    behind = g("Div", g("Mul", g("Add", offset, count), size), new)
    behind = g("Min", g("Add", behind, margin), size)
    # 2·size·new times the position of the middle of every output, and of every input that is read
    outputs = g("Add", g.constant(np.arange(crop), np.int64), offset)
    outputs = g("Mul", g("Add", g("Mul", outputs, two), one), size)
    inputs = g("Range", g("Squeeze", first), g("Squeeze", behind), g.constant(1, np.int64))
    inputs = g("Mul", g("Add", g("Mul", inputs, two), one), new)
    distance = g("Abs", g("Sub", inputs, g("Unsqueeze", outputs, g.integers(-1))))
    scale = g("Mul", larger, two)
    t = g("Div", g("Cast", distance, to=TensorProto.FLOAT), g("Cast", scale, to=TensorProto.FLOAT))
    weights = filter_of(g, t)
    return first, behind, g("Div", weights, g("ReduceSum", weights, g.integers(-1), keepdims=1))


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
