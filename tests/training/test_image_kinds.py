"""Every kind of image file is the same pixels to training and to a device, or is refused by both with one line."""

from __future__ import annotations

import io
import os
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from cdl_deploy.data import images
from cdl_deploy.data.images import load_image, to_crop
from cdl_deploy.data.preprocessing import ResizeCrop
from cdl_deploy.data.sources import image_folder, open_source
from cdl_deploy.errors import DataError
from cdl_deploy.training.data.loading import batches
from cdl_deploy.training.data.transforms import evaluation_transform

WHOLE = ResizeCrop.square(24, 24, "bicubic")
PICTURE = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
GREY = np.arange(576, dtype=np.uint16).reshape(24, 24) * 113
RGB = Image.fromarray(PICTURE)
"""As large as the model sees, so that pixels are compared and not their means."""


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def turned(kind: str, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    back = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}[orientation]  # PIL's transposition that stores it
    return saved(RGB if back is None else RGB.transpose(Image.Transpose(back)), kind, exif=exif)


def grey_png(depth_bytes: bytes, bits: int = 16) -> bytes:
    """Written by hand, so that the oracle is the standard and not Pillow."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    rows = b"".join(b"\x00" + depth_bytes[i : i + 48] for i in range(0, len(depth_bytes), 48))
    header = struct.pack(">IIBBBBB", 24, 24, bits, 0, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


GREY_8 = np.repeat(((GREY.astype(np.int64) * 255 + 32767) // 65535).astype(np.uint8)[:, :, None], 3, axis=2)
PALETTE = RGB.quantize(16)
ALPHA = Image.fromarray(np.dstack([PICTURE, np.random.default_rng(1).integers(0, 256, (24, 24), dtype=np.uint8)]))
KINDS = {
    "plain.png": (saved(RGB, "PNG"), PICTURE),
    "plain.bmp": (saved(RGB, "BMP"), PICTURE),
    "plain.tif": (saved(RGB, "TIFF"), PICTURE),
    "plain.webp": (saved(RGB, "WEBP", lossless=True), PICTURE),
    "alpha.png": (saved(ALPHA, "PNG"), PICTURE),
    "grey16.png": (grey_png(GREY.astype(">u2").tobytes()), GREY_8),
    "grey16.tif": (saved(Image.fromarray(GREY), "TIFF"), GREY_8),
    "grey16.pgm": (b"P5 24 24 65535\n" + GREY.astype(">u2").tobytes(), GREY_8),
    "grey32.tif": (saved(Image.fromarray(GREY.astype(np.int32)), "TIFF"), GREY_8),
    "palette.png": (saved(PALETTE, "PNG"), np.asarray(PALETTE.convert("RGB"))),
    "palette_bytes.png": (saved(PALETTE, "PNG", transparency=bytes(range(16))), np.asarray(PALETTE.convert("RGB"))),
    "palette_one.png": (saved(PALETTE, "PNG", transparency=3), np.asarray(PALETTE.convert("RGB"))),
    "bits.png": (saved(Image.fromarray(GREY_8[:, :, 0] > 99), "PNG"), (GREY_8 > 99) * np.uint8(255)),
    **{f"turned_{n}.{k.lower()}": (turned(k, n), PICTURE) for k in ("PNG", "TIFF") for n in range(1, 9)},
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", KINDS)
def test_the_same_pixels_in_training_and_on_a_device(tmp_path, name):
    content, expected = KINDS[name]
    file = tmp_path / name
    file.write_bytes(content)
    ((pixels, _),) = batches([file], [0], evaluation_transform(WHOLE), 1)
    assert torch.equal(pixels[0], torch.from_numpy(np.array(expected)).permute(2, 0, 1))
    np.testing.assert_array_equal(to_crop(load_image(file), WHOLE), expected)


def damaged_exif() -> dict[str, bytes]:
    good = turned("JPEG", 6)
    start = good.index(b"Exif\x00\x00") + 6
    size = int.from_bytes(good[start - 8 : start - 6], "big") - 8  # of the segment, without its length and `Exif\\0\\0`
    damages = {f"byte_{at}_{value}": (at, bytes([value])) for at in range(size) for value in (0, 1, 255)}
    damages |= {"all": (0, b"\xff" * size)}
    return {name: good[: start + at] + new + good[start + at + len(new) :] for name, (at, new) in damages.items()}


@pytest.mark.filterwarnings("ignore")
def test_damaged_exif_data_never_end_a_run(tmp_path):
    expected = {(24, 24)}
    for name, content in damaged_exif().items():
        (tmp_path / f"{name}.jpg").write_bytes(content)
        assert {load_image(tmp_path / f"{name}.jpg").size} == expected


def test_whatever_pillow_raises_for_exif_data_the_pixels_are_there(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(KINDS["plain.png"][0])
    for error in (RecursionError, OverflowError, AttributeError, ZeroDivisionError, MemoryError, AssertionError):
        monkeypatch.setattr(Image.Image, "getexif", lambda self, error=error: (_ for _ in ()).throw(error))
        np.testing.assert_array_equal(np.asarray(load_image(tmp_path / "a.png")), PICTURE)


def folder_with(tmp_path, name: str, content: bytes):
    for kind in ("ant", "bee"):
        (tmp_path / "data" / kind).mkdir(parents=True)
        for number in range(3):
            RGB.save(tmp_path / "data" / kind / f"{number}.png")
    (tmp_path / "data/bee" / name).write_bytes(content)
    return tmp_path / "data"


@pytest.mark.parametrize(
    ("highest", "said"),
    [
        ((4000, 65535), ["1 of 2 images of 16 bits uses the lower 12 alone (values below 4,096), and 65,535 is white"]),
        ((4000, 16000), ["2 of 2 images of 16 bits use the lower 14 alone (values below 16,384)"]),
        ((60000, 65535), []),
    ],
)
def test_sixteen_bits_of_which_a_camera_wrote_twelve(tmp_path, highest, said):
    ramp = np.linspace(0, 1, 576).reshape(24, 24)
    root = folder_with(tmp_path, "0.png", KINDS["plain.png"][0])
    for number, high in enumerate(highest):
        Image.fromarray(np.uint16(ramp * high)).save(root / "bee" / f"{number}.png")
    notes = image_folder(root, 0.5).notes
    assert [note.startswith(text) for note, text in zip(notes, said, strict=True)] == [True] * len(said)


@pytest.mark.parametrize(
    ("stacks", "said"),
    [
        (0, []),
        (1, ["1 of 8 images is a TIFF file of several pages, of which the first alone is looked at: save each page"]),
        (2, ["2 of 8 images are TIFF files of several pages, of which the first alone is looked at: save each page"]),
    ],
)
def test_stacks_of_pages(tmp_path, stacks, said):
    root = folder_with(tmp_path, "0.png", KINDS["plain.png"][0])
    for number in range(2):
        more = [RGB] * (2 if number < stacks else 0)
        RGB.save(root / "bee" / f"{number}.tif", save_all=True, append_images=more)
    notes = image_folder(root, 0.5).notes
    assert [note.startswith(text) for note, text in zip(notes, said, strict=True)] == [True] * len(said)


def test_postscript_starts_no_program(tmp_path, monkeypatch):
    """A program that is called as Ghostscript is would leave a file."""
    for name in ("gs", "gswin32c", "gswin64c"):
        (tmp_path / name).write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    program = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
    root = folder_with(tmp_path, "drawing.png", program)
    with pytest.raises(
        DataError, match=r"cannot read image .*drawing\.png: not an image of a known format.*--skip-bad"
    ):
        image_folder(root, 0.2)
    assert image_folder(root, 0.2, skip_bad=True).skipped == (str(root / "bee/drawing.png"),)
    assert not (tmp_path / "started").exists()


def icon(width: int, height: int, png: bool = True) -> bytes:
    """An icon whose directory says 16×16, and whose image says otherwise."""
    if png:
        header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
        body = (
            b"\x89PNG\r\n\x1a\n"
            + struct.pack(">I", 13)
            + b"IHDR"
            + header
            + struct.pack(">I", zlib.crc32(b"IHDR" + header))
        )
    else:
        body = struct.pack("<IiiHHIIiiII", 40, width, 2 * height, 1, 24, 0, 0, 0, 0, 0, 0)
    return struct.pack("<HHH", 0, 1, 1) + struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 24, len(body), 22) + body


@pytest.mark.parametrize("png", [True, False])
def test_a_huge_image_inside_an_icon_is_refused_before_it_is_decoded(tmp_path, monkeypatch, png):
    (tmp_path / "favicon.ico").write_bytes(icon(13_000, 13_000, png))
    monkeypatch.setattr(images.Image, "open", None)
    with pytest.raises(
        DataError, match=r"favicon\.ico: 13000×13000 = 169 million pixels, expected at most 100 million"
    ):
        load_image(tmp_path / "favicon.ico")


def test_an_icon_is_read(tmp_path):
    RGB.save(tmp_path / "favicon.ico", sizes=[(24, 24)])
    np.testing.assert_array_equal(np.asarray(load_image(tmp_path / "favicon.ico")), PICTURE)


def test_broken_pixels_of_a_png_are_refused(tmp_path):
    """Its EXIF data are asked for, which decodes it; the failure of that must not be taken for theirs."""
    content = bytearray(saved(RGB, "PNG"))
    start = content.index(b"IDAT")
    content[start + 300 : start + 340] = bytes(40)
    (tmp_path / "broken.png").write_bytes(content)
    with pytest.raises(DataError, match=r"broken\.png: damaged image"):
        load_image(tmp_path / "broken.png")


@pytest.mark.parametrize("name", ["class", "file"])
def test_names_that_are_not_utf_8_are_refused_before_anything_is_trained(tmp_path, name):
    root = folder_with(tmp_path, "a.png", KINDS["plain.png"][0])
    odd = os.fsdecode(b"caf\xe9")
    (root / "bee").rename(root / odd) if name == "class" else (root / "bee/a.png").rename(root / "bee" / f"{odd}.png")
    with pytest.raises(DataError, match=r"the name caf\\xe9(\.png)? in .* is not UTF-8: rename it") as caught:
        open_source(str(root), 0.2, skip_bad=True)
    str(caught.value).encode()


def test_data_sets_of_other_packages(tmp_path, monkeypatch):
    """A package of its own says so by an entry point; training, evaluation and inspection all find it."""
    from cdl_deploy.data.sources import is_named, open_test_images

    (tmp_path / "dots.py").write_text(
        "import numpy as np\nfrom cdl_deploy.data.labelled import LabelledImages\n"
        "from cdl_deploy.data.sources import ImageSource\n"
        "def dots():\n"
        "    part = LabelledImages('dots', [np.zeros((4, 4), np.uint8)] * 2, ['big', 'small'])\n"
        "    return ImageSource('dots', ('big', 'small'), part, part, photographs=False)\n"
    )
    (tmp_path / "dots-1.dist-info").mkdir()
    (tmp_path / "dots-1.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: dots\nVersion: 1\n")
    (tmp_path / "dots-1.dist-info/entry_points.txt").write_text("[cdl_deploy.data]\ndots = dots:dots\n")
    assert not is_named("dots")
    monkeypatch.syspath_prepend(tmp_path)
    assert open_source("dots", None, skip_bad=False).classes == ("big", "small")
    assert open_test_images("--data", "dots", None).names == ["big", "small"]
    with pytest.raises(DataError, match="--data dots has a fixed test split, so --holdout cannot apply"):
        open_test_images("--data", "dots", 0.2)
