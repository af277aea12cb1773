"""Any image file → RGB pixels → the array a model asks for, equal to torchvision's evaluation transforms.

`load_image` turns any still image into upright 8-bit RGB; `to_input` resizes and crops it as `cdl.preprocessing` says,
and normalises it where the graph does not do so itself. Alpha is dropped rather than blended, as `convert("RGB")` does
in every training loader.
"""

from __future__ import annotations

import importlib
import math
import os
import stat
import struct
import threading
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from cdl_deploy.data.preprocessing import Preprocessing, ResizeCrop
from cdl_deploy.errors import DataError, PassingError, is_passing

SUFFIXES = frozenset({
    ".apng", ".avif", ".bmp", ".dib", ".gif", ".heic", ".heif", ".hif", ".ico", ".j2c", ".j2k", ".jfif", ".jp2", ".jpc",
    ".jpe", ".jpeg", ".jpf", ".jpg", ".jpx", ".pbm", ".pcx", ".pgm", ".png", ".pnm", ".ppm", ".qoi", ".tga", ".tif",
    ".tiff", ".webp",
})  # fmt: skip
"""Lower-case suffixes taken for images when a folder is searched; a file named on its own may have any."""
USUAL_SUFFIXES = ".bmp, .gif, .jpeg, .jpg, .png, .tiff, .webp or another of an image"
"""In messages."""

FORMATS = (
    "JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "AVIF", "JPEG2000", "DIB", "ICO", "TGA", "PCX", "QOI", "HEIF",
)  # fmt: skip
"""What is read, whatever the file is called, if PIL can. Others start a program (EPS) or are no images."""

MAX_PIXELS = 100_000_000
"""Larger images are refused before they are decoded: one needs 300 MB as RGB."""

LARGE_PIXELS = 25_000_000
"""Of images above this size one is decoded at a time, however many threads decode: memory stays bounded."""

MAX_RESIZED_PIXELS = 16_000_000
"""Above this, only the crop is resized: a 1×40000 image would otherwise grow to many times its size first."""

MAX_REACH = 3
"""Pixels of the smaller image to each side that a pixel depends on, of the filter that reaches farthest: Lanczos."""

_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation → what undoes it."""

HIGHEST = "highest of 16 bits"
"""In the `info` of a decoded image that had 16 bits: its largest value."""
PAGES = "first of several pages"
"""In the `info` of a decoded image that is the first page of a TIFF file with more, such as a stack of planes."""

FloatArray = NDArray[np.float32]
ByteArray = NDArray[np.uint8]


def is_image_name(name: str) -> bool:
    """Whether a file in a folder is taken for an image."""
    return os.path.splitext(name)[1].lower() in SUFFIXES


def load_image(source: str | Path | Image.Image | NDArray[Any]) -> Image.Image:
    """Upright 8-bit RGB image from a file, a PIL image, or a uint8 array [H, W], [H, W, 1], [H, W, 3] or [H, W, 4].

    EXIF rotation is applied; of an animation the first frame is taken; 16-bit grey is scaled to 8 bit.
    Raises `DataError`, naming the file, for anything that cannot be decoded or is too large; `PassingError` where it is
    not the file that is at fault but the machine: no memory, too many open files, a lost server, a failing disk.
    """
    try:
        return _load_image(source)
    except MemoryError:
        with _one_at_a_time:  # of the large ones, so that there is more room
            try:
                return _load_image(source)
            except MemoryError:
                name = source if isinstance(source, str | Path) else "image"
                if _memory_is_short():
                    raise PassingError(f"{name}: not enough memory to decode it; use fewer threads") from None
                raise DataError(f"{name}: damaged image (it asks for more memory than any photograph needs)") from None


def _load_image(source: str | Path | Image.Image | NDArray[Any]) -> Image.Image:
    if isinstance(source, np.ndarray):
        return _from_array(source)
    name = "image" if isinstance(source, Image.Image) else str(source)
    try:
        if isinstance(source, Image.Image):
            return _convert(source, name)
        _check_file(source, name)
        with open(source, "rb") as file:
            icon = _largest_in_icon(file)  # which Pillow decodes as soon as it is opened
            with _bounded(*icon, name), Image.open(file, formats=_known_formats()) as image:
                return _convert(image, name)
    except DataError:
        raise
    except UnidentifiedImageError as error:
        raise DataError(f"{name}: {_what_it_is(source)}") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"{name}: too large to be a photograph ({error})") from error
    except MemoryError:
        raise
    except OSError as error:
        if is_passing(error):
            raise PassingError(f"{name}: {error.strerror}, which is no fault of the image: try again later") from error
        if error.errno is None and "out of memory" in str(error):  # how PIL tells what its C code met
            raise MemoryError from error
        raise DataError(f"{name}: {error.strerror or f'damaged image ({_one_line(error)})'}") from error
    except Exception as error:  # PIL's readers raise almost anything on damaged data: struct.error, KeyError, ...
        raise DataError(f"{name}: damaged image ({type(error).__name__}: {_one_line(error)})") from error


def _memory_is_short() -> bool:
    """Whether there is less room than the largest image needs; an image that asks for more than that is damaged."""
    try:
        np.empty(4 * MAX_PIXELS, dtype=np.uint8)
    except MemoryError:
        return True
    return False


@lru_cache(maxsize=1)
def _known_formats() -> tuple[str, ...]:
    Image.init()
    with suppress(ImportError):  # HEIC, where it is installed
        importlib.import_module("pillow_heif").register_heif_opener()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _what_it_is(source: Any) -> str:
    """Why Pillow does not know a file, where its first bytes tell, and what helps."""
    head = b""
    if isinstance(source, str | Path):
        with suppress(OSError), open(source, "rb") as file:
            head = file.read(64)
    if head[4:8] == b"ftyp":
        if head[8:12] in _HEIC_BRANDS and "HEIF" in _known_formats():
            return "a HEIC image that is damaged, or not complete: copy it again"
        if head[8:12] in _HEIC_BRANDS:
            return "a HEIC image, which needs pillow-heif: pip install 'cdl-deploy[heif]', or save it as JPEG"
        if head[8:12] in (b"avif", b"avis"):
            return "an AVIF image, which this Pillow cannot read: update Pillow, or save it as JPEG"
    if head.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer and not the image itself: fetch it with git lfs pull"
    if head.lstrip().lower().startswith((b"<!doctype html", b"<html")):
        return "a web page and not an image: download it again"
    return "not an image of a known format"


def _check_file(path: str | Path, name: str) -> None:
    """Raise `DataError` or `OSError` unless there is a file with something in it; opening a pipe would wait forever."""
    status = os.stat(path)
    if stat.S_ISDIR(status.st_mode):
        os.scandir(path).close()  # a folder that may not be read says so
        raise DataError(f"{name}: a folder, expected an image")
    if not stat.S_ISREG(status.st_mode):
        raise DataError(f"{name}: a device or a pipe, expected an image file")
    if status.st_size == 0:
        raise DataError(f"{name}: empty file (0 bytes), expected an image")


def to_input(image: Image.Image, preprocessing: Preprocessing) -> ByteArray | FloatArray:
    """What the graph takes of one RGB image: `to_square` or `to_tensor`, as `preprocessing.input` says."""
    return to_square(image, preprocessing) if preprocessing.input == "image" else to_tensor(image, preprocessing)


def to_square(image: Image.Image, preprocessing: Preprocessing) -> ByteArray:
    """uint8 [resize, resize, 3] of an RGB image: small, and of one size, so that images stack to a batch.

    A graph with preprocessing of its own makes of it what it makes of the whole photograph, up to PIL's rounding: its
    shorter edge is `resize` already, and the graph's centre crop finds the same pixels.
    """
    side = preprocessing.resize  # at least as large as the crop
    if image.size == (side, side):
        return np.asarray(image, dtype=np.uint8)
    width, height = resized_size(*image.size, side)
    # Where the graph cuts the square has to be where it would cut the whole image.
    left = crop_offset(width, preprocessing.width) - crop_offset(side, preprocessing.width)
    top = crop_offset(height, preprocessing.height) - crop_offset(side, preprocessing.height)
    return np.asarray(_resize_and_crop(image, preprocessing, (left, top, left + side, top + side)), dtype=np.uint8)


def to_crop(image: Image.Image, preprocessing: ResizeCrop) -> ByteArray:
    """uint8 [height, width, 3] of an RGB image: resized and cropped, and nothing else."""
    width, height = resized_size(*image.size, preprocessing.resize)
    left, top = crop_offset(width, preprocessing.width), crop_offset(height, preprocessing.height)
    box = (left, top, left + preprocessing.width, top + preprocessing.height)
    return np.asarray(_resize_and_crop(image, preprocessing, box), dtype=np.uint8)


def to_tensor(image: Image.Image, preprocessing: Preprocessing) -> FloatArray:
    """Normalised float32 [3, height, width] of an RGB image, bit for bit what torchvision computes from

    Resize(resize, interpolation), CenterCrop((height, width)), ToTensor(), Normalize(mean, std)
    """
    pixels = to_crop(image, preprocessing)
    levels = _normalised_levels(preprocessing.mean, preprocessing.std)
    return np.stack([levels[channel][pixels[:, :, channel]] for channel in range(3)])


def resized_size(width: int, height: int, shorter: int) -> tuple[int, int]:
    """(width, height) whose shorter edge is `shorter`, the longer one rounded down as torchvision does; in pixels."""
    if width <= height:
        return shorter, int(shorter * height / width)
    return int(shorter * width / height), shorter


def crop_offset(size: int, crop: int) -> int:
    """First row (or column) of a centre crop, as torchvision rounds it; negative where padding is needed."""
    return round((size - crop) / 2.0) if size >= crop else -((crop - size) // 2)


@lru_cache(maxsize=8)
def _normalised_levels(mean: tuple[float, float, float], std: tuple[float, float, float]) -> FloatArray:
    """[3, 256]: each grey level of each channel, normalised. A look-up costs a quarter of the arithmetic."""
    scaled = np.arange(256, dtype=np.float32) / np.float32(255)
    means, stds = np.asarray(mean, dtype=np.float32), np.asarray(std, dtype=np.float32)
    return (scaled - means[:, None]) / stds[:, None]


def _resize_and_crop(image: Image.Image, preprocessing: ResizeCrop, box: tuple[int, int, int, int]) -> Image.Image:
    """The part `box` (left, top, right, bottom) of the resized image; black where it reaches outside."""
    resample = Image.Resampling[preprocessing.interpolation.upper()]
    width, height = resized_size(*image.size, preprocessing.resize)
    left, top, right, bottom = box
    if width * height <= MAX_RESIZED_PIXELS:
        resized = image if (width, height) == image.size else _resize(image, (width, height), resample)
        # A box that reaches outside the image is filled with black, which is also torchvision's padding.
        return resized if box == (0, 0, width, height) else resized.crop(box)
    inside = (max(left, 0), max(top, 0), min(right, width), min(bottom, height))
    scale_x, scale_y = image.width / width, image.height / height
    source = (
        inside[0] * scale_x,
        inside[1] * scale_y,
        min(inside[2] * scale_x, image.width),
        min(inside[3] * scale_y, image.height),
    )
    part = _resize(image, (inside[2] - inside[0], inside[3] - inside[1]), resample, source)
    canvas = Image.new("RGB", (right - left, bottom - top))
    canvas.paste(part, (inside[0] - left, inside[1] - top))
    return canvas


def _resize(
    image: Image.Image,
    size: tuple[int, int],
    resample: Image.Resampling,
    box: tuple[float, float, float, float] | None = None,
) -> Image.Image:
    """The part `box` of an image at another `size`; columns first, then rows, whatever the Pillow.

    Pillow 13 takes the rows of a tall image first, and between the two passes pixels are rounded and clipped: up to 5
    grey levels differ on photographs. The graph takes the columns first. So Pillow gets one axis at a time.
    """
    if image.height <= image.width:
        return image.resize(size, resample, box)
    left, top, right, bottom = box or (0, 0, *image.size)
    reach = math.ceil(MAX_REACH * max((bottom - top) / size[1], 1)) + 1
    first, behind = max(0, math.floor(top) - reach), min(image.height, math.ceil(bottom) + reach)
    rows = image if (first, behind) == (0, image.height) else image.crop((0, first, image.width, behind))
    narrow = rows.resize((size[0], rows.height), resample, (left, 0, right, rows.height))
    return narrow.resize(size, resample, (0, top - first, size[0], bottom - first))


def _convert(image: Image.Image, name: str) -> Image.Image:
    """Upright 8-bit RGB of an opened image of any mode."""
    width, height = image.size
    if min(width, height) < 1:
        raise DataError(f"{name}: {width}×{height} pixels, expected at least 1×1")
    with _bounded(width, height, name):
        return _upright_rgb(image, name)


_one_at_a_time = threading.RLock()


def _bounded(width: int, height: int, name: str) -> AbstractContextManager[object]:
    """Around whatever decodes an image of this size. Raises `DataError` for one that is too large to be decoded."""
    if width * height > MAX_PIXELS:
        raise DataError(
            f"{name}: {width}×{height} = {width * height / 1e6:.0f} million pixels, "
            f"expected at most {MAX_PIXELS / 1e6:.0f} million; shrink it first"
        )
    return _one_at_a_time if width * height > LARGE_PIXELS else nullcontext()


def _largest_in_icon(file: BinaryIO) -> tuple[int, int]:
    """(width, height) of the largest image inside an icon file, as that image itself says; (0, 0) for other files.

    The icon's own directory has a byte for each, whatever the PNG behind it holds. `file` is left at its beginning.
    """
    sizes = [(0, 0)]
    start = file.read(6)
    if start.startswith(b"\x00\x00\x01\x00") and len(start) == 6:
        entries = file.read(16 * int.from_bytes(start[4:], "little"))
        for at in range(0, len(entries) - 15, 16):
            file.seek(int.from_bytes(entries[at + 12 : at + 16], "little"))
            head = file.read(24)
            if len(head) == 24:
                png = head.startswith(b"\x89PNG\r\n\x1a\n")
                sizes.append(struct.unpack(">II", head[16:]) if png else _of_bitmap(head))
    file.seek(0)
    return max(sizes, key=lambda size: size[0] * size[1])


def _of_bitmap(head: bytes) -> tuple[int, int]:
    """(width, height) of a bitmap in an icon, whose header counts the rows of its mask as well."""
    width, height = struct.unpack("<ii", head[4:12])
    return abs(width), abs(height) // 2


def _upright_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode == "F":
        raise DataError(f"{name}: floating-point pixels have no fixed range; save it with 8 or 16 bits a channel")
    image.load()  # before its EXIF data are asked for: of a PNG they may stand behind the pixels, a TIFF turns itself
    turn = _exif_turn(image)
    if image.format == "TIFF" and getattr(image, "is_animated", False):
        image.info[PAGES] = True  # Pillow carries it on
    if image.mode.startswith("I"):
        image = _eight_bit(image, name)
    elif image.mode in ("P", "PA") and "transparency" in image.info:
        image = image.convert("RGBA")  # straight to RGB, PIL warns about transparency given as bytes
    if turn is not None:
        image = image.transpose(turn)
    return image if image.mode == "RGB" else image.convert("RGB")


def _exif_turn(image: Image.Image) -> Image.Transpose | None:
    """What brings a photograph upright, by its EXIF orientation. Damaged EXIF data say nothing about the pixels."""
    try:
        orientation: Any = image.getexif().get(_ORIENTATION)
        return _TURNS.get(orientation)
    except Exception:  # noqa: BLE001  whatever Pillow makes of the damage, the pixels are there
        return None


def _eight_bit(image: Image.Image, name: str) -> Image.Image:
    """8-bit grey of a 16-bit image: 65535 becomes 255. PIL's own conversion of some of these modes clips instead."""
    values = np.asarray(image)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        raise DataError(f"{name}: pixel values from {low} to {high}, expected 0 to 65535; save it with 8 or 16 bits")
    grey = np.empty(values.shape, dtype=np.uint8)
    for top in range(0, len(values), 256):  # a few rows at a time: in 64 bits the whole needs eight times the memory
        grey[top : top + 256] = (values[top : top + 256].astype(np.int64) * 255 + 32767) // 65535
    scaled = Image.fromarray(grey)
    scaled.info = {**image.info, HIGHEST: high}  # as Pillow carries on what a file says
    return scaled


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


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
