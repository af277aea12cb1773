"""A folder of everything that is no plain photograph: each file gives the right result or one clear line."""

from __future__ import annotations

import io
import json
import threading

import numpy as np
import pytest
from PIL import Image, ImageDraw

from cdl_deploy import Classifier
from cdl_deploy.data import images
from cdl_deploy.runtime.predict import predict_rows
from tests.runtime.test_images import bomb
from tests.runtime.test_row_file import write

RED, BLUE = (230, 10, 20), (5, 25, 240)


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def two_halves(mode: str = "RGB") -> Image.Image:
    """Red above, blue below: the centre crop of a tall one is different when it is turned."""
    image = Image.new("RGB", (30, 90), RED)
    ImageDraw.Draw(image).rectangle((0, 0, 29, 59), fill=BLUE)
    return image.convert(mode)


def turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return saved(two_halves(), "JPEG", exif=exif)


def broken_exif() -> bytes:
    content = turned(1)
    place = content.index(b"Exif\x00\x00") + 6
    return content[:place] + b"\xff" * 12 + content[place + 12 :]


def corpus() -> dict[str, tuple[bytes, str]]:
    """File name → (content, the label, or what its error says)."""
    plain, red = saved(two_halves(), "JPEG"), Image.new("RGB", (40, 30), RED)
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8))
    frames = [Image.new("RGB", (9, 9), colour) for colour in (RED, BLUE)]
    palette = red.convert("P", palette=Image.Palette.ADAPTIVE)
    deep = Image.fromarray(np.full((20, 20), 40000, dtype=np.uint16))
    wide = Image.new("RGB", (40_000, 20), BLUE)
    return {
        "plain.jpg": (plain, "blue"),
        "empty.jpg": (b"", "empty file (0 bytes), expected an image"),
        "text.jpg": (b"no image at all\n", "not an image of a known format"),
        "film.jpg": (b"\x00\x00\x00\x20ftypisom\x00\x00\x02\x00isomiso2mp41" + bytes(900), "not an image of a known"),
        "page.png": (b"<!DOCTYPE html><html>404</html>", "a web page and not an image: download it again"),
        "half.jpg": (saved(noise, "JPEG")[:9000], "damaged image (image file is truncated"),
        "half.png": (saved(noise, "PNG")[:9000], "damaged image (image file is truncated"),
        "head.jpg": (plain[:20], "not an image of a known format"),
        "moving.gif": (saved(frames[0], "GIF", save_all=True, append_images=frames[1:]), "red"),
        "moving.webp": (saved(frames[1], "WEBP", save_all=True, append_images=frames[:1], lossless=True), "blue"),
        "moving.png": (saved(frames[0], "PNG", save_all=True, append_images=frames[1:]), "red"),
        "print.jpg": (saved(red.convert("CMYK"), "JPEG"), "red"),
        "palette.png": (saved(palette, "PNG", transparency=b"\x00\x80"), "red"),
        "deep.png": (saved(deep, "PNG"), "blue"),  # grey: of the means, that of blue is the lowest
        "clear.png": (saved(red.convert("RGBA"), "PNG"), "red"),
        "upside_down.jpg": (turned(3), "blue"),
        "sideways.jpg": (turned(6), "blue"),
        "odd_turn.jpg": (turned(77), "blue"),
        "broken_exif.jpg": (broken_exif(), "blue"),
        "wide.png": (saved(wide, "PNG"), "blue"),
        "bomb.png": (bomb(40_000, 40_000), "too large to be a photograph (Image size (1600000000 pixels) exceeds"),
        "large.png": (bomb(11_000, 10_000), "11000×10000 = 110 million pixels, expected at most 100 million; shrink"),
        "no_pixels.png": (bomb(10, 10), "damaged image ("),
        "float.tif": (saved(Image.new("F", (9, 9)), "TIFF"), "floating-point pixels have no fixed range"),
        "program.jpg": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "not an image of a known"),
    }


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_corpus(model_path, tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    expected = {name: answer for name, (_, answer) in corpus().items()}
    for name, (content, _) in corpus().items():
        (folder / name).write_bytes(content)
    (folder / "lost.jpg").symlink_to("nowhere")
    (folder / "loop.jpg").symlink_to("loop.jpg")
    (folder / "folder.jpg").mkdir()
    expected |= {"lost.jpg": "No such file or directory", "loop.jpg": "Too many levels of symbolic links"}
    out = tmp_path / "rows.jsonl"
    done = write(out, Classifier(model_path, threads=1), images_in(folder))
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["path"] for row in rows] == [str(folder / name) for name in sorted(expected)]
    for row in rows:
        name = row["path"].rpartition("/")[2]
        if "error" in row:
            assert row["error"].startswith(f"{folder / name}: {expected[name]}")
            assert "\n" not in row["error"]
        else:
            assert row["label"] == expected[name], name
    assert done.failed == sum("error" in row for row in rows)


def images_in(folder):
    from cdl_deploy.data.paths import expand_paths

    return expand_paths([str(folder)])


def test_one_large_image_is_decoded_at_a_time(model_path, photos, monkeypatch):
    """Four threads, twenty large images and twenty small ones among them: memory for one large image is enough."""
    monkeypatch.setattr(images, "LARGE_PIXELS", 31 * 20)
    large = photos["red"].with_name("large.png")
    Image.new("RGB", (31, 21), BLUE).save(large)
    now, most = [0, 0], [0, 0]
    lock, decode = threading.Lock(), images._upright_rgb

    def counted(image, name):
        kind = int(image.height == 21)
        with lock:
            now[kind] += 1
            most[kind] = max(most[kind], now[kind])
        together.wait(0.002) if kind else None
        try:
            return decode(image, name)
        finally:
            with lock:
                now[kind] -= 1

    together = threading.Event()  # nobody sets it: a wait that lets the other threads come
    monkeypatch.setattr(images, "_upright_rgb", counted)
    rows = list(predict_rows(Classifier(model_path), [large, photos["red"]] * 20, 2, workers=4))
    assert [row.prediction.label for row in rows if row.prediction] == ["blue", "red"] * 20
    assert most[1] == 1
