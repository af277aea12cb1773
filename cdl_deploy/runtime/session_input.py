"""What an open session says about the shape of its input, and what fits there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cdl_deploy.data.images import ByteArray, FloatArray, to_input
from cdl_deploy.data.preprocessing import Preprocessing
from cdl_deploy.errors import DataError

if TYPE_CHECKING:
    import onnxruntime


def input_shape(
    session: onnxruntime.InferenceSession, preprocessing: Preprocessing
) -> tuple[int | None, tuple[int, int] | None]:
    """(images in one run, (height, width) of an image that the graph preprocesses); None where they are free."""
    shape = session.get_inputs()[0].shape
    batch = shape[0] if isinstance(shape[0], int) else None
    if preprocessing.input != "image" or not all(isinstance(side, int) for side in shape[1:3]):
        return batch, None
    return batch, (shape[1], shape[2])


def fitting_input(
    image: Image.Image, preprocessing: Preprocessing, size: tuple[int, int] | None = None
) -> ByteArray | FloatArray:
    """What the graph takes of one RGB image; `size`: the only (height, width) that it takes, if there is one.

    Raises `DataError` where it takes images of another size.
    """
    if size is None or size == (preprocessing.resize, preprocessing.resize):
        return to_input(image, preprocessing)
    if (image.height, image.width) != size:
        raise DataError(
            f"image of {image.height} × {image.width} pixels, expected {size[0]} × {size[1]} (height × width), for "
            "which the model was exported (--image-size)"
        )
    return np.asarray(image, dtype=np.uint8)


def in_batches(
    rows: Sequence[NDArray[Any]] | NDArray[Any],
    size: int | None,
    run: Callable[[NDArray[Any]], Sequence[FloatArray]],
) -> list[FloatArray]:
    """The outputs of `run` for all rows: at once, or `size` at a time, the last ones filled up with copies."""
    results, count = [], size or len(rows)
    for start in range(0, len(rows), count):
        part = np.stack(list(rows[start : start + count]))
        missing = count - len(part) if size else 0
        filled = np.concatenate([part, np.repeat(part[-1:], missing, axis=0)]) if missing else part
        results.append([found[: len(part)] for found in run(filled)])
    return [np.concatenate(parts) for parts in zip(*results, strict=True)]
