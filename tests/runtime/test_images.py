"""Preprocessing: equal to torchvision's, for any size; any file is decoded or refused in one line."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from cdl_deploy.data import images
from cdl_deploy.data.images import load_image, to_square, to_tensor
from cdl_deploy.data.preprocessing import INTERPOLATIONS, Preprocessing
from cdl_deploy.errors import DataError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def torchvision_resize(image: Image.Image, p: Preprocessing):
    """Its steps of resizing; of a tall image the columns first, where some Pillows would take the rows."""
    from torchvision import transforms as T

    mode = T.InterpolationMode[p.interpolation.upper()]
    width, height = image.size
    sizes = [p.resize] if height <= width else [(height, p.resize), (int(p.resize * height / width), p.resize)]
    return [T.Resize(size, mode, antialias=True) for size in sizes]


def torchvision_tensor(image: Image.Image, p: Preprocessing) -> np.ndarray:
    from torchvision import transforms as T

    pipeline = T.Compose(
        [*torchvision_resize(image, p), T.CenterCrop((p.height, p.width)), T.ToTensor(), T.Normalize(p.mean, p.std)]
    )
    return pipeline(image).numpy()


edge = st.integers(1, 70)


@given(
    size=st.tuples(edge, edge),
    resize=st.integers(1, 40),
    crop=st.tuples(st.integers(1, 48), st.integers(1, 48)),
    how=st.sampled_from(INTERPOLATIONS),
)
@example(size=(33, 50), resize=32, crop=(31, 32), how="bicubic")  # odd differences: banker's rounding
@example(size=(64, 64), resize=64, crop=(64, 64), how="bicubic")  # nothing to do
@example(size=(5, 70), resize=8, crop=(40, 40), how="bilinear")  # the crop reaches outside one edge only
@settings(max_examples=150, deadline=None)
def test_equal_to_torchvision(size, resize, crop, how):
    image = noise(size[0], size[1], resize)
    p = Preprocessing(crop[0], crop[1], resize, how, MEAN, STD)
    ours = to_tensor(image, p)
    assert ours.dtype == np.float32
    assert ours.flags.c_contiguous
    np.testing.assert_array_equal(ours, torchvision_tensor(image, p))


def test_extreme_shape_needs_no_huge_image(monkeypatch):
    p = Preprocessing(24, 24, 32, "bicubic", MEAN, STD)
    image = noise(900, 8)
    expected = to_tensor(image, p)
    monkeypatch.setattr(images, "MAX_RESIZED_PIXELS", 1000)
    step = 1 / 255 / min(STD)
    assert np.abs(to_tensor(image, p) - expected).max() <= step * 1.01  # the box is rounded to float32: 1 grey level
    monkeypatch.undo()
    assert to_tensor(noise(40_000, 1), Preprocessing(24, 24, 2048, "bicubic", MEAN, STD)).shape == (3, 24, 24)


def saved(tmp_path, image: Image.Image, name: str, **options):
    path = tmp_path / name
    image.save(path, **options)
    return path


def test_exif_rotation_is_applied(tmp_path):
    upright = Image.new("RGB", (30, 20), "red")
    ImageDraw.Draw(upright).rectangle((0, 0, 29, 9), fill="blue")
    # How a camera held sideways stores it: turned, with a note to turn it back.
    stored = upright.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6
    loaded = load_image(saved(tmp_path, stored, "p.png", exif=exif))
    assert loaded.size == (30, 20)
    np.testing.assert_array_equal(np.asarray(loaded), np.asarray(upright))


def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path):
    values = np.linspace(0, 65535, 256, dtype=np.uint16).reshape(16, 16)
    path = tmp_path / "deep.png"
    Image.fromarray(values).save(path)
    grey = np.asarray(load_image(path))[:, :, 0]
    np.testing.assert_array_equal(grey, np.arange(256).reshape(16, 16))
    wide = Image.fromarray(values.astype(np.int32))  # mode I
    np.testing.assert_array_equal(np.asarray(load_image(wide))[:, :, 2], np.arange(256).reshape(16, 16))


def test_every_mode_becomes_rgb(tmp_path):
    colour = (200, 100, 50)
    rgb = Image.new("RGB", (4, 3), colour)
    palette = rgb.convert("P", palette=Image.Palette.ADAPTIVE)
    for name, image, options in (
        ("rgba.png", rgb.convert("RGBA"), {}),
        ("palette.gif", palette, {}),
        ("palette.png", palette, {"transparency": b"\x00\x80\xff"}),
        ("one.png", Image.new("1", (4, 3), 1), {}),
        ("grey.png", rgb.convert("L"), {}),
        ("grey_alpha.png", rgb.convert("LA"), {}),
        ("cmyk.tif", rgb.convert("CMYK"), {}),
        ("photo.webp", rgb, {"lossless": True}),
    ):
        loaded = load_image(saved(tmp_path, image, name, **options))
        assert (loaded.mode, loaded.size) == ("RGB", (4, 3)), name
        if "grey" not in name and name != "one.png":
            assert np.abs(np.asarray(loaded).astype(int) - colour).max() <= 2, name
    assert load_image(tmp_path / "one.png").getpixel((0, 0)) == (255, 255, 255)


def test_first_frame_of_an_animation(tmp_path):
    frames = [Image.new("RGB", (4, 4), c) for c in ("red", "blue")]
    path = saved(tmp_path, frames[0], "a.gif", save_all=True, append_images=frames[1:], duration=50)
    assert load_image(path).getpixel((0, 0)) == (255, 0, 0)


def test_arrays_and_pil_images():
    array = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
    np.testing.assert_array_equal(np.asarray(load_image(array)), array[:, :, :3])
    for grey in (array[:, :, 0], array[:, :, :1]):
        np.testing.assert_array_equal(np.asarray(load_image(grey))[:, :, 1], array[:, :, 0])
    np.testing.assert_array_equal(np.asarray(load_image(Image.fromarray(array[::-1, :, :3]))), array[::-1, :, :3])
    for wrong in (array.astype(np.float32), array[0, 0], array[:, :, :2], array[:0]):
        with pytest.raises(DataError, match=r"expected uint8 \[H, W, 3\] with values from 0 to 255"):
            load_image(wrong)


def refusal(path) -> str:
    with pytest.raises(DataError) as caught:
        load_image(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value).removeprefix(f"{path}: ")


def test_what_is_no_image(tmp_path):
    (tmp_path / "empty.jpg").touch()
    assert refusal(tmp_path / "empty.jpg") == "empty file (0 bytes), expected an image"
    (tmp_path / "clip.jpg").write_bytes(b"\x00\x00\x00\x20ftypisom" + bytes(500))
    assert refusal(tmp_path / "clip.jpg") == "not an image of a known format"
    assert refusal(tmp_path / "none.jpg") == "No such file or directory"
    assert refusal(tmp_path) == "a folder, expected an image"
    os.mkfifo(tmp_path / "pipe.jpg")
    assert refusal(tmp_path / "pipe.jpg") == "a device or a pipe, expected an image file"
    (tmp_path / "drawing.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")
    assert refusal(tmp_path / "drawing.jpg") == "not an image of a known format"  # PIL would start Ghostscript
    path = saved(tmp_path, Image.fromarray(np.zeros((3, 3), np.float32)), "f.tif")
    assert refusal(path) == "floating-point pixels have no fixed range; save it with 8 or 16 bits a channel"


def test_half_a_photograph(tmp_path):
    path = saved(tmp_path, noise(64, 64), "half.jpg")
    path.write_bytes(path.read_bytes()[:2000])
    assert refusal(path).startswith("damaged image (image file is truncated")


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that claims to be huge."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_decompression_bombs(tmp_path):
    path = tmp_path / "bomb.png"
    path.write_bytes(bomb(40_000, 3_000))
    assert refusal(path).startswith("40000×3000 = 120 million pixels, expected at most 100 million; shrink it first")
    path.write_bytes(bomb(100_000, 100_000))
    assert refusal(path).startswith("too large to be a photograph (Image size (10000000000 pixels)")


PICTURES = []
for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"):
    buffer = io.BytesIO()
    noise(12, 9).save(buffer, kind)
    PICTURES.append(buffer.getvalue())


@given(
    picture=st.sampled_from(PICTURES),
    cut=st.floats(0.02, 1),
    changes=st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), max_size=6),
)
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.filterwarnings("ignore")  # PIL warns about odd metadata; whether it does is not our matter
def test_damaged_files_are_decoded_or_refused(tmp_path, picture, cut, changes):
    content = bytearray(picture[: max(1, int(len(picture) * cut))])
    for place, value in changes:
        content[int(place * len(content))] = value
    path = tmp_path / "damaged.img"
    path.write_bytes(content)
    message = str(path)
    try:
        assert load_image(path).mode == "RGB"
    except DataError as error:
        message = str(error)
    assert str(path) in message
    assert "\n" not in message


def in_graph_crop(image: Image.Image, p: Preprocessing) -> np.ndarray:
    """What a graph that resizes and crops by itself makes of pixels: the same steps as in training, on any image."""
    from torchvision import transforms as T

    return np.asarray(T.Compose([*torchvision_resize(image, p), T.CenterCrop((p.height, p.width))])(image))


@given(size=st.tuples(edge, edge), resize=st.integers(1, 40), smaller=st.tuples(st.integers(0, 39), st.integers(0, 39)))
@example(size=(33, 50), resize=32, smaller=(1, 0))
@example(size=(40, 32), resize=32, smaller=(4, 4))  # already small enough: only cropped
@settings(max_examples=150, deadline=None)
def test_small_pixels_are_cropped_like_the_photograph(size, resize, smaller):
    crop = [max(1, resize - less) for less in smaller]
    image = noise(size[0], size[1], resize)
    p = Preprocessing(crop[0], crop[1], resize, "bicubic", MEAN, STD)
    pixels = to_square(image, p)
    assert pixels.dtype == np.uint8
    assert pixels.shape == (resize, resize, 3)  # the graph has nothing to resize, and they stack
    np.testing.assert_array_equal(in_graph_crop(Image.fromarray(pixels), p), in_graph_crop(image, p))


def test_pixels_of_the_right_size_are_not_touched():
    image = noise(32, 32)
    p = Preprocessing(28, 28, 32, "bicubic", MEAN, STD)
    np.testing.assert_array_equal(to_square(image, p), np.asarray(image))


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer and not the image itself"),
        (b"\n<!DOCTYPE html>", "a web page and not an image"),
        (b"hello, world", "not an image of a known format"),
    ],
)
def test_what_is_no_image_is_named(tmp_path, head, message):
    (tmp_path / "a.jpg").write_bytes(head)
    with pytest.raises(DataError, match=message):
        load_image(tmp_path / "a.jpg")


HEIC = b"\0\0\0\x18ftypheic\0\0\0\0"


def test_heic_without_what_decodes_it(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "_known_formats", lambda: ("JPEG", "PNG"))
    (tmp_path / "a.heic").write_bytes(HEIC)
    with pytest.raises(DataError, match="a HEIC image, which needs pillow-heif: pip install 'cdl-deploy\\[heif\\]'"):
        load_image(tmp_path / "a.heic")


def test_heic_as_phones_write_it(tmp_path):
    """Upright, as its EXIF data say, and with the pixels that pillow-heif itself decodes."""
    heif = pytest.importorskip("pillow_heif")
    image = Image.linear_gradient("L").resize((64, 48)).convert("RGB")
    ImageDraw.Draw(image).rectangle((0, 0, 20, 12), fill=(200, 30, 30))
    exif = Image.Exif()
    exif[0x0112] = 6  # its top is at the right; pillow-heif writes it as HEIF's own turn, too
    for name, more, expected in (
        ("a.heic", {}, image),
        ("turned.heic", {"exif": exif.tobytes()}, image.transpose(Image.Transpose.ROTATE_270)),
    ):
        heif.from_pillow(image).save(tmp_path / name, quality=100, chroma=444, **more)
        found = load_image(tmp_path / name)
        assert (found.mode, found.size) == ("RGB", expected.size)
        difference = np.abs(np.asarray(found, np.int16) - np.asarray(expected, np.int16))
        assert difference.max() <= 8  # it is lossy
        assert images.is_image_name(name)
    whole = (tmp_path / "a.heic").read_bytes()
    for content in (HEIC, whole[: len(whole) // 2]):
        (tmp_path / "torn.heic").write_bytes(content)
        with pytest.raises(DataError, match="damaged"):
            load_image(tmp_path / "torn.heic")


@pytest.mark.parametrize("how", ["bicubic", "bilinear", "lanczos"])
@pytest.mark.parametrize(("width", "height"), [(20, 300), (31, 63), (300, 20), (5, 200)])
def test_columns_are_resized_first_whatever_the_pillow(width, height, how):
    """Pillow asked for one axis at a time, columns and then rows: no version has an order to choose there."""
    image = noise(width, height)
    p = Preprocessing(16, 16, 18, how, MEAN, STD)
    new = (18, int(18 * height / width)) if width <= height else (int(18 * width / height), 18)
    narrow = image
    for size in ((new[0], height), new):
        narrow = narrow.resize(size, Image.Resampling[how.upper()])
    left, top = (round((side - 16) / 2) for side in new)
    expected = np.asarray(narrow.crop((left, top, left + 16, top + 16)))
    np.testing.assert_array_equal(images.to_crop(image, p), expected)


OLD_PILLOW = """
import hashlib, sys, numpy, PIL
sys.path.insert(0, sys.argv[1])
from PIL import Image
from cdl_deploy.data.images import to_crop
from cdl_deploy.data.preprocessing import ResizeCrop
pixels = numpy.random.default_rng(5).integers(0, 256, (500, 90, 3), dtype=numpy.uint8)
crop = to_crop(Image.fromarray(pixels), ResizeCrop(32, 32, 36, "bicubic"))
print(PIL.__version__, hashlib.sha256(crop.tobytes()).hexdigest())
"""
"""Imports of this package what needs numpy and Pillow alone."""


@pytest.mark.runtimes
def test_an_older_pillow_gives_the_same_pixels_of_a_tall_image():
    root = Path(__file__).parents[2]
    python = Path(os.environ.get("CDL_RUNTIMES", root / ".runtimes")) / "onnxruntime-1.15" / "bin" / "python"
    if not python.exists():
        pytest.skip(f"no {python}: make targets")
    said = [
        subprocess.run([it, "-c", OLD_PILLOW, root], capture_output=True, text=True, check=True).stdout.split()
        for it in (python, sys.executable)
    ]
    assert int(said[0][0].split(".")[0]) < 13
    assert said[0][1] == said[1][1]
