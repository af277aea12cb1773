"""Preprocessing in the graph against the training transform: torchvision on PIL images."""

from __future__ import annotations

from functools import cache

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from PIL import Image
from torchvision.transforms import CenterCrop
from torchvision.transforms.functional import pil_to_tensor

from cdl_deploy.data.images import to_square
from cdl_deploy.data.preprocessing import Preprocessing, ResizeCrop
from cdl_deploy.errors import OptionError
from cdl_deploy.export.fixed_shapes import fix_shapes
from cdl_deploy.export.nodes import Nodes
from cdl_deploy.export.plain_graph import lower_to_17
from cdl_deploy.export.preprocessing import FILTERS, group_of, image_input, preprocessing_graph
from cdl_deploy.training.data import transforms


def settings_of(size: int, resize: int, interpolation: str) -> Preprocessing:
    return Preprocessing(size, size, resize, interpolation, (0.5,) * 3, (0.5,) * 3, "image")


@cache
def session(size: int, resize: int, interpolation: str, opset: int = 20) -> onnxruntime.InferenceSession:
    return session_of(preprocessing_graph(settings_of(size, resize, interpolation)), size, size, opset)


def model_of(g: Nodes, height: int, width: int, opset: int = 20) -> onnx.ModelProto:
    output = helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["batch", 3, height, width])
    graph = helper.make_graph(g.nodes, "preprocessing", [image_input()], [output], g.initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model


def session_of(g: Nodes, height: int, width: int, opset: int = 20) -> onnxruntime.InferenceSession:
    model = model_of(g, height, width, opset)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def in_graph(images: np.ndarray, size: int, resize: int, interpolation: str) -> np.ndarray:
    pixels: np.ndarray = session(size, resize, interpolation).run(None, {"image": images})[0]
    return pixels


def in_training(
    image: np.ndarray, size: int, resize: int, interpolation: str, columns_first: bool = False
) -> np.ndarray:
    """The training transform; with `columns_first` PIL is made to resize one axis after the other."""
    height, width = image.shape[:2]
    transform = transforms.evaluation_transform(ResizeCrop.square(size, resize, interpolation))
    picture = Image.fromarray(image)
    if columns_first:
        new = (int(resize * width / height), resize) if height < width else (resize, int(resize * height / width))
        for step in ((new[0], height), new):
            picture = picture.resize(step, Image.Resampling[interpolation.upper()])
    return transform(picture).numpy().astype(np.float32)


def photograph(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Soft colours, and no edge as hard as from black to white within a pixel: as a lens and a sensor give them."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (5, 5, 3), dtype=np.uint8)).resize((width, height), 1)
    fine = random.normal(0, 8, (height, width, 1))
    return np.clip(np.asarray(coarse) + fine, 0, 255).astype(np.uint8)


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Neighbours have nothing in common: the hardest image to resize."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


edges = st.integers(1, 90) | st.integers(1, 400)


@given(edges, edges, st.integers(8, 40), st.integers(0, 12), st.sampled_from(sorted(FILTERS)))
@example(1, 1, 16, 2, "bicubic")
@example(1, 700, 16, 2, "bicubic")
@example(700, 1, 16, 0, "bilinear")
@example(480, 640, 32, 4, "bicubic")
@example(640, 200, 32, 4, "bicubic")
@example(12, 5, 32, 0, "bilinear")
@example(16, 16, 16, 0, "bicubic")
@example(56, 91, 56, 0, "bicubic")
@example(91, 60, 56, 4, "bilinear")
@example(61, 70, 56, 4, "bicubic")
@settings(max_examples=120, deadline=None)
def test_pixels_are_those_of_the_training_transform(height, width, size, margin, interpolation):
    """Any size and shape, enlarged or reduced, every filter: one grey level of 255 off, two enlarged."""
    kind = (size, size + margin, interpolation)
    image = noise(height, width)
    found = in_graph(image[None], *kind)[0]
    enlarged = size + margin > min(height, width)
    assert np.abs(found - in_training(image, *kind, columns_first=True)).max() <= 1 + enlarged
    assert np.abs(found - in_training(image, *kind)).max() <= 1 + enlarged
    image = photograph(height, width)
    found, expected = in_graph(image[None], *kind)[0], in_training(image, *kind)
    assert np.abs(found - expected).max() <= 1 + enlarged


@pytest.mark.parametrize(("height", "width"), [(600, 900), (900, 600), (37, 901), (224, 224), (248, 248), (61, 50)])
def test_photographs_at_the_usual_size(height, width):
    for image in (noise(height, width), photograph(height, width)):
        difference = np.abs(in_graph(image[None], 224, 248, "bicubic")[0] - in_training(image, 224, 248, "bicubic"))
        assert difference.max() <= 1
        assert difference.mean() <= 0.001


@pytest.mark.parametrize(("height", "width"), [(1, 40_000), (40_000, 1), (3, 20_000)])
def test_an_absurdly_long_image_costs_no_more_than_its_middle(height, width):
    """Resized whole, it would have a hundred million pixels. Its middle, cut out first, is the same to the eye."""
    image = np.full((height, width, 3), 7, np.uint8)
    middle = (height if height < 4 else 40, width if width < 4 else 40)
    top, left = (height - middle[0]) // 2, (width - middle[1]) // 2
    image[top : top + middle[0], left : left + middle[1]] = 200
    found = in_graph(image[None], 32, 36, "bicubic")
    assert (found == 200).all() if min(height, width) == 1 else set(np.unique(found)) == {200.0}


def test_a_batch_gives_what_its_images_give_alone():
    images = np.stack([noise(45, 70, seed) for seed in range(5)])
    whole = in_graph(images, 24, 28, "bicubic")
    for count in (1, 2):
        np.testing.assert_array_equal(in_graph(images[:count], 24, 28, "bicubic"), whole[:count])


@given(edges, edges, st.integers(0, 12))
@settings(max_examples=40, deadline=None)
def test_the_square_that_the_runtime_feeds_gives_the_same_pixels(height, width, margin):
    """What PIL resized beforehand, for one batch of images of many sizes, the graph only crops."""
    image = noise(height, width)
    preprocessing = settings_of(16, 16 + margin, "bicubic")
    square = to_square(Image.fromarray(image), preprocessing)
    assert square.shape == (16 + margin, 16 + margin, 3)
    found = in_graph(square[None], 16, 16 + margin, "bicubic")[0]
    np.testing.assert_array_equal(found, in_training(image, 16, 16 + margin, "bicubic"))


@pytest.mark.parametrize(("height", "width"), [(1, 1), (40, 90), (90, 40), (300, 30), (44, 44)])
def test_a_crop_need_not_be_square(height, width):
    preprocessing = ResizeCrop(24, 40, 44, "bicubic")
    image = noise(height, width)
    picture = Image.fromarray(image)
    shorter = min(height, width)
    for size in ((44 * width // shorter, height), (44 * width // shorter, 44 * height // shorter)):
        picture = picture.resize(size, Image.Resampling.BICUBIC)
    expected = CenterCrop((24, 40))(pil_to_tensor(picture)).numpy().astype(np.float32)
    found = session_of(preprocessing_graph(preprocessing), 24, 40).run(None, {"image": image[None]})[0][0]
    assert np.abs(found - expected).max() <= 1 + (shorter < 44)


@pytest.mark.parametrize(("height", "width"), [(56, 56), (28, 56), (56, 20)])
def test_what_is_right_already_is_copied(height, width):
    """Of an image whose shorter edge needs no resizing hardly anything is computed, of any other all."""
    g = preprocessing_graph(ResizeCrop(height, width, 56, "bicubic"))
    model = model_of(g, height, width)
    product = [node.output[0] for node in g.nodes if node.op_type == "MatMul"][-1]
    model.graph.output.append(helper.make_empty_tensor_value_info(product))
    graph = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for rows, columns in [(56, 56), (56, 91), (200, 57), (200, 56), (57, 56), (20, 30), (1, 1)]:
        images = np.stack([noise(rows, columns, seed) for seed in range(2)])
        found, computed = graph.run(None, {"image": images})
        right = min(rows, columns) == 56
        assert computed.size == 2 * 3 * (group_of(height) * group_of(width) if right else height * width)
        if right:
            crop = CenterCrop((height, width))(torch.from_numpy(images).permute(0, 3, 1, 2))
            np.testing.assert_array_equal(found, crop.numpy())
        np.testing.assert_array_equal(graph.run(None, {"image": images[1:]})[0], found[1:])


@pytest.mark.parametrize(
    ("size", "product", "cut"), [((56, 56), False, False), ((56, 91), False, True), ((57, 56), False, True),
                                 ((40, 40), True, False), ((57, 90), True, True)]
)  # fmt: skip
def test_a_file_of_one_size_computes_or_copies(size, product, cut):
    model = model_of(preprocessing_graph(settings_of(56, 56, "bicubic")), 56, 56)
    fixed = fix_shapes(model, None, size)
    kinds = {node.op_type for node in fixed.graph.node}
    assert ("MatMul" in kinds, "Slice" in kinds) == (product, cut)
    assert not kinds & {"Concat", "Shape", "Where"}
    images = noise(*size)[None]
    free, own = (onnxruntime.InferenceSession(it.SerializeToString()).run(None, {"image": images})[0]
                 for it in (model, fixed))  # fmt: skip
    np.testing.assert_array_equal(own, free)


def test_the_oldest_opset_gives_the_same_pixels():
    model = model_of(preprocessing_graph(settings_of(56, 56, "bicubic")), 56, 56, opset=18)
    lowered = onnx.ModelProto.FromString(model.SerializeToString())
    lower_to_17(lowered)
    onnx.checker.check_model(lowered, full_check=True)
    runs = [onnxruntime.InferenceSession(it.SerializeToString()).run for it in (model, lowered)]
    for size in ((56, 80), (60, 80)):
        now, then = (run(None, {"image": noise(*size)[None]})[0] for run in runs)
        np.testing.assert_array_equal(now, then)


@pytest.mark.parametrize("interpolation", sorted(FILTERS))
def test_every_node_is_paid_for_at_batch_1(interpolation):
    """Each takes some microseconds of a small ViT's milliseconds, however little it computes."""
    assert len(preprocessing_graph(settings_of(224, 248, interpolation)).nodes) <= 100


@pytest.mark.parametrize(("height", "width", "resize"), [(32, 32, 32), (224, 224, 248), (80, 56, 80)])
def test_no_product_has_more_than_six_axes(height, width, resize):
    """XNNPACK, which LiteRT runs on, prepares none of seven."""
    settings = Preprocessing(height, width, resize, "bicubic", (0.5,) * 3, (0.5,) * 3, "image")
    model = onnx.shape_inference.infer_shapes(model_of(preprocessing_graph(settings), height, width))
    axes = {value.name: len(value.type.tensor_type.shape.dim) for value in model.graph.value_info}
    products = [axes.get(name) for node in model.graph.node if node.op_type == "MatMul" for name in node.input]
    assert len(products) == 4
    assert None not in products
    assert max(products) <= 6


def test_a_filter_the_graph_lacks_is_refused():
    with pytest.raises(OptionError, match="resized with lanczos, and the graph knows only bicubic and bilin"):
        preprocessing_graph(settings_of(8, 8, "lanczos"))
