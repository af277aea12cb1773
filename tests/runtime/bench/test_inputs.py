"""Made-up inputs for whatever a model declares, and made-up photographs."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cdl_deploy.bench.inputs import Declared, declare, fixed_batch, make_feed, photos_in, write_photos
from cdl_deploy.errors import BundleError, DataError

PATH = Path("m.onnx")


@dataclass
class Node:
    name: str
    type: str
    shape: list[Any] = field(default_factory=list)


@pytest.mark.parametrize(
    ("node", "size", "shape", "batch"),
    [
        (Node("image", "tensor(float)", ["B", 3, 32, 48]), (10, 20), (3, 32, 48), None),
        (Node("image", "tensor(float)", ["B", 3, "h", "w"]), (10, 20), (3, 20, 10), None),
        (Node("image", "tensor(float)", [None, "c", "h", "w"]), (10, 20), (3, 20, 10), None),
        (Node("image", "tensor(uint8)", ["B", "h", "w", 3]), (10, 20), (20, 10, 3), None),
        (Node("image", "tensor(uint8)", ["B", "h", "w", 1]), None, (224, 224, 1), None),
        (Node("image", "tensor(float16)", [4, 1, 28, 28]), None, (1, 28, 28), 4),
        (Node("features", "tensor(double)", [-1, 7]), None, (7,), None),
    ],
)
def test_free_sizes_are_settled(node, size, shape, batch):
    (found,) = declare(PATH, [node], size)
    assert (found.shape, found.batch) == (shape, batch)
    values = make_feed([found], 4, np.random.default_rng(0))[node.name]
    assert values.shape == (4, *shape)
    assert (
        values.dtype
        == {"float": "float32", "float16": "float16", "double": "float64", "uint8": "uint8"}[node.type[7:-1]]
    )
    assert values.std() > 0.5  # random, not a constant


def test_other_inputs_beside_the_image():
    nodes = [
        Node("image", "tensor(float)", [2, 3, 8, 8]),
        Node("ids", "tensor(int64)", ["B", 5]),
        Node("training", "tensor(bool)"),
    ]
    inputs = declare(PATH, nodes, None)
    assert [str(item) for item in inputs] == ["image: float [2, 3, 8, 8]", "ids: int64 [B, 5]", "training: bool []"]
    feed = make_feed(inputs, 2, np.random.default_rng(0))
    assert feed["ids"].shape == (2, 5)
    assert feed["ids"].dtype == np.int64
    assert not feed["ids"].any()
    assert feed["training"].shape == ()
    assert fixed_batch(inputs) == 2
    assert fixed_batch(inputs[1:]) is None


def test_the_same_seed_gives_the_same_values():
    (item,) = declare(PATH, [Node("x", "tensor(float)", ["B", 3, 4, 4])], None)
    first, second, other = (make_feed([item], 2, np.random.default_rng(seed))["x"] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, second)
    assert (first != other).any()


def test_what_cannot_be_made_up():
    with pytest.raises(BundleError, match=r"m\.onnx: input words is tensor\(string\), expected numbers such as"):
        declare(PATH, [Node("words", "tensor(string)", ["B"])], None)
    with pytest.raises(BundleError, match=r"input x has shape \['B', 'length'\], expected an image or fixed sizes"):
        declare(PATH, [Node("x", "tensor(float)", ["B", "length"])], None)
    assert str(Declared("x", "tensor(float)", (2,), None)) == "x: float [B, 2]"


def test_made_up_photographs_cost_what_photographs_do(tmp_path):
    files = write_photos(tmp_path, (320, 240), seed=0, count=3)
    for file in files:
        with Image.open(file) as image:
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (320, 240))
        assert (
            1 < file.stat().st_size * 8 / (320 * 240) < 4
        )  # bits a pixel: ImageNet's mean is about 5 at half the size
    assert len({file.read_bytes() for file in files}) == 3
    (tmp_path / "again").mkdir()
    again = write_photos(tmp_path / "again", (320, 240), seed=0, count=1)
    assert again[0].read_bytes() == files[0].read_bytes()


def test_photographs_of_a_folder(tmp_path):
    for number in range(6):
        Image.new("RGB", (5, 5)).save(tmp_path / f"{number}.png")
    (tmp_path / "notes.txt").write_text("no image")
    assert [file.name for file in photos_in(tmp_path, 3)] == ["0.png", "2.png", "4.png"]
    assert len(photos_in(tmp_path)) == 6
    (tmp_path / "0.png").write_bytes(b"damaged")
    with pytest.raises(DataError, match=r"0\.png: not an image of a known format"):
        photos_in(tmp_path)
    with pytest.raises(DataError, match=r"--images .*none is no folder, expected one with photographs"):
        photos_in(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        DataError, match=r"--images .*empty: no image in this folder, expected files such as photo\.jpg"
    ):
        photos_in(tmp_path / "empty")
