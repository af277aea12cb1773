"""Any image file → RGB pixels → what a bundle's graph takes, equal to torchvision's evaluation transforms.

`load_image` turns whatever PIL can open into upright 8-bit RGB; `to_input` makes of it what the graph takes: pixels for
a graph that preprocesses, otherwise the tensor, resized, cropped and normalised as `cdl.preprocessing` says. Alpha is
dropped rather than blended, as `convert("RGB")` does in every training loader.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from cdl_deploy.bundle import Preprocessing
from cdl_deploy.errors import DataError

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".pgm", ".tif", ".tiff", ".webp"})
"""Lower-case suffixes taken for images when a folder is searched; a file named on its own may have any."""

MAX_PIXELS = 100_000_000
"""Larger images are refused before they are decoded: one needs 300 MB as RGB, and several are decoded at a time."""

MAX_RESIZED_PIXELS = 16_000_000
"""Above this, only the crop is resized: a 1×40000 image would otherwise grow to many times its size first."""

FloatArray = NDArray[np.float32]
ByteArray = NDArray[np.uint8]


def load_image(source: str | Path | Image.Image | NDArray[Any]) -> Image.Image:
    """Upright 8-bit RGB image from a file, a PIL image, or a uint8 array [H, W], [H, W, 1], [H, W, 3] or [H, W, 4].

    EXIF rotation is applied; of an animation the first frame is taken; 16-bit grey is scaled to 8 bit.
    Raises `DataError`, naming the file, for anything that cannot be decoded or is too large.
    """
    if isinstance(source, np.ndarray):
        return _from_array(source)
    if isinstance(source, Image.Image):
        return _convert(source, "image")
    path = Path(source)
    try:
        if path.stat().st_size == 0:
            raise DataError(f"{path}: empty file (0 bytes), expected an image")
        with Image.open(path) as image:
            return _convert(image, str(path))
    except DataError:
        raise
    except UnidentifiedImageError as error:
        raise DataError(f"{path}: not an image that PIL can read") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"{path}: too large to be a photograph ({error})") from error
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or f'damaged image ({error})'}") from error
    except Exception as error:  # PIL's readers raise almost anything on damaged data: struct.error, KeyError, ...
        raise DataError(f"{path}: damaged image ({type(error).__name__}: {' '.join(str(error).split())})") from error


def to_input(image: Image.Image, preprocessing: Preprocessing) -> FloatArray | ByteArray:
    """What the graph takes of an RGB image, without the batch dimension; all images give the same shape."""
    return to_square(image, preprocessing) if preprocessing.input == "image" else to_tensor(image, preprocessing)


def to_square(image: Image.Image, preprocessing: Preprocessing) -> ByteArray:
    """The middle [resize, resize, 3] uint8 of the resized image, for a graph that preprocesses.

    The graph then has nothing to resize and crops what it would have cropped: the same pixels as from the whole image,
    but images of any size can share a batch, and PIL is faster.
    """
    side = preprocessing.resize
    inner = preprocessing.width, preprocessing.height
    return np.asarray(_resize_and_crop(image, preprocessing, (side, side), inner), dtype=np.uint8)


def to_tensor(image: Image.Image, preprocessing: Preprocessing) -> FloatArray:
    """Normalised float32 [3, height, width] of an RGB image, bit for bit what torchvision computes from

    Resize(resize, interpolation), CenterCrop((height, width)), ToTensor(), Normalize(mean, std)
    """
    crop = preprocessing.width, preprocessing.height
    pixels = np.asarray(_resize_and_crop(image, preprocessing, crop, crop), dtype=np.uint8)
    scaled = pixels.astype(np.float32) / np.float32(255)
    mean = np.asarray(preprocessing.mean, dtype=np.float32)
    std = np.asarray(preprocessing.std, dtype=np.float32)
    return np.ascontiguousarray(((scaled - mean) / std).transpose(2, 0, 1))


def resized_size(width: int, height: int, shorter: int) -> tuple[int, int]:
    """(width, height) whose shorter edge is `shorter`, the longer one rounded down as torchvision does; in pixels."""
    if width <= height:
        return shorter, int(shorter * height / width)
    return int(shorter * width / height), shorter


def crop_offset(size: int, crop: int) -> int:
    """First row (or column) of a centre crop, as torchvision rounds it; negative where padding is needed."""
    return round((size - crop) / 2.0) if size >= crop else -((crop - size) // 2)


def _resize_and_crop(
    image: Image.Image, preprocessing: Preprocessing, crop: tuple[int, int], inner: tuple[int, int]
) -> Image.Image:
    """The part `crop` (width, height) of the resized image whose own centre crop `inner` is that of the whole."""
    resample = Image.Resampling[preprocessing.interpolation.upper()]
    width, height = resized_size(*image.size, preprocessing.resize)
    left, top = (
        crop_offset(size, middle) - crop_offset(outer, middle)
        for size, middle, outer in zip((width, height), inner, crop, strict=True)
    )
    right, bottom = left + crop[0], top + crop[1]
    if width * height <= MAX_RESIZED_PIXELS:
        resized = image if (width, height) == image.size else image.resize((width, height), resample)
        # A box that reaches outside the image is filled with black, which is also torchvision's padding.
        return resized.crop((left, top, right, bottom))
    inside = (max(left, 0), max(top, 0), min(right, width), min(bottom, height))
    scale_x, scale_y = image.width / width, image.height / height
    box = (
        inside[0] * scale_x,
        inside[1] * scale_y,
        min(inside[2] * scale_x, image.width),
        min(inside[3] * scale_y, image.height),
    )
    part = image.resize((inside[2] - inside[0], inside[3] - inside[1]), resample, box=box)
    canvas = Image.new("RGB", crop)
    canvas.paste(part, (inside[0] - left, inside[1] - top))
    return canvas


def _convert(image: Image.Image, name: str) -> Image.Image:
    """Upright 8-bit RGB of an opened image of any mode."""
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise DataError(
            f"{name}: {width}×{height} = {width * height / 1e6:.0f} million pixels, "
            f"expected at most {MAX_PIXELS / 1e6:.0f} million; shrink it first"
        )
    if min(width, height) < 1:
        raise DataError(f"{name}: {width}×{height} pixels, expected at least 1×1")
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        image = _eight_bit(image, name)
    elif image.mode == "F":
        raise DataError(f"{name}: floating-point pixels have no fixed range; save it with 8 or 16 bits a channel")
    elif image.mode in ("P", "PA") and "transparency" in image.info:
        image = image.convert("RGBA")  # straight to RGB, PIL warns about transparency given as bytes
    return image if image.mode == "RGB" else image.convert("RGB")


def _eight_bit(image: Image.Image, name: str) -> Image.Image:
    """8-bit grey of a 16-bit image: 65535 becomes 255. PIL's own conversion of some of these modes clips instead."""
    values = np.asarray(image).astype(np.int64)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        raise DataError(f"{name}: pixel values from {low} to {high}, expected 0 to 65535; save it with 8 or 16 bits")
    return Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))


def _from_array(array: NDArray[Any]) -> Image.Image:
    grey = array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 1)
    if array.dtype != np.uint8 or not (grey or (array.ndim == 3 and array.shape[2] in (3, 4))) or array.size == 0:
        raise DataError(
            f"array of {array.dtype} {list(array.shape)}, expected uint8 [H, W, 3] with values from 0 to 255 "
            "(or [H, W], [H, W, 1], [H, W, 4])"
        )
    if grey:
        return Image.fromarray(array.reshape(array.shape[:2])).convert("RGB")
    return Image.fromarray(np.ascontiguousarray(array[:, :, :3]))
