"""Publishers' preprocessing, compared with Pillow's own steps on an image that tells the difference."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from cdl_deploy.data.images import to_tensor
from cdl_deploy.errors import BundleError
from cdl_deploy.runtime.processors import of_timm, of_transformers

WIDE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 50, 3), dtype=np.uint8))
MEAN, STD = (0.5, 0.4, 0.3), (0.5, 0.25, 0.2)
NORMAL = {"image_mean": list(MEAN), "image_std": list(STD)}


def ours(recipe):
    image = WIDE
    if recipe.squash is not None:
        height, width = recipe.squash
        image = image.resize((width, height), Image.Resampling[recipe.preprocessing.interpolation.upper()])
    return to_tensor(image, recipe.preprocessing)


def theirs(size, box, resample, factor=1 / 255, offset=0.0, mean=MEAN, std=STD):
    """Resize to (width, height), cut the box, x·factor + offset, less the mean, by the deviation."""
    pixels = np.asarray(WIDE.resize(size, resample).crop(box), dtype=np.float64)
    return ((pixels * factor + offset - mean) / std).transpose(2, 0, 1)


BILINEAR, BICUBIC, NEAREST = Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.NEAREST
TRANSFORMERS = {
    "ViT squashes": ({"size": {"height": 12, "width": 14}, **NORMAL}, theirs((14, 12), (0, 0, 14, 12), BILINEAR)),
    "ViT, older": (
        {"size": 12, "feature_extractor_type": "ViTFeatureExtractor", "resample": 3, **NORMAL},
        theirs((12, 12), (0, 0, 12, 12), BICUBIC),
    ),
    "DeiT squashes, then crops": (
        {"size": {"height": 16, "width": 16}, "do_center_crop": True, "crop_size": {"height": 12, "width": 12},
         "resample": 3, **NORMAL},
        theirs((16, 16), (2, 2, 14, 14), BICUBIC),
    ),
    "CLIP crops": (
        {"size": {"shortest_edge": 12}, "do_center_crop": True, "crop_size": 12, "resample": 3, **NORMAL},
        theirs((20, 12), (4, 0, 16, 12), BICUBIC),
    ),
    "ConvNeXT crops by its share": (
        {"size": {"shortest_edge": 21}, "crop_pct": 0.875, "image_processor_type": "ConvNextImageProcessor",
         "resample": 3, **NORMAL},
        theirs((40, 24), (10, 2, 31, 23), BICUBIC),
    ),
    "LeViT resizes to 256/224 of what it says": (
        {"size": {"shortest_edge": 14}, "do_center_crop": True, "crop_size": 14, "resample": 3,
         "image_processor_type": "LevitImageProcessorFast", **NORMAL},
        theirs((26, 16), (6, 1, 20, 15), BICUBIC),
    ),
    "ConvNeXT squashes from 384 on": (
        {"size": {"shortest_edge": 384}, "crop_pct": 1.0, "image_processor_type": "ConvNextImageProcessor", **NORMAL},
        theirs((384, 384), (0, 0, 384, 384), BILINEAR),
    ),
    "no rescaling": (
        {"size": {"height": 12, "width": 12}, "do_rescale": False, "image_mean": [120, 110, 100],
         "image_std": [60, 50, 40]},
        theirs((12, 12), (0, 0, 12, 12), BILINEAR, 1.0, 0.0, (120, 110, 100), (60, 50, 40)),
    ),
    "no normalising": (
        {"size": {"height": 12, "width": 12}, "do_normalize": False, **NORMAL},
        theirs((12, 12), (0, 0, 12, 12), BILINEAR, mean=0, std=1),
    ),
    "Inception's -1 to 1": (
        {"size": {"height": 12, "width": 12}, "rescale_factor": 1 / 127.5, "rescale_offset": True,
         "do_normalize": False},
        theirs((12, 12), (0, 0, 12, 12), BILINEAR, 1 / 127.5, -1.0, 0, 1),
    ),
    "EfficientNet divides twice": (
        {"size": {"height": 12, "width": 12}, "include_top": True, "resample": 0, "image_mean": [0, 0, 0],
         "image_std": list(STD)},
        theirs((12, 12), (0, 0, 12, 12), NEAREST, mean=0, std=np.square(STD)),
    ),
    "also where nothing says so": (
        {"size": {"height": 12, "width": 12}, "image_processor_type": "EfficientNetImageProcessor", "resample": 0,
         "image_mean": [0, 0, 0], "image_std": list(STD)},
        theirs((12, 12), (0, 0, 12, 12), NEAREST, mean=0, std=np.square(STD)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_transformers_processors(tmp_path, name):
    config, wanted = TRANSFORMERS[name]
    recipe = of_transformers(tmp_path / "p.json", json.loads(json.dumps(config)), (None, None))
    np.testing.assert_allclose(ours(recipe), wanted, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("config", "sides", "message"),
    [
        ({"do_flip_channel_order": True}, (None, None), "do_flip_channel_order is not supported"),
        ({"image_processor_type": "PerceiverImageProcessor"}, (None, None), "PerceiverImageProcessor is not supported"),
        ({"do_pad": True}, (None, None), "do_pad is not supported"),
        ({"resample": 99}, (None, None), "resample is 99, expected one of PIL's numbers, 0 to 5"),
        ({"resample": "bicubic"}, (None, None), "resample is bicubic, expected one of PIL's numbers"),
        ({"image_mean": [0.5]}, (None, None), r"mean or deviation is \[0.5\], expected three numbers"),
        ({"size": {"shortest_edge": 32, "longest_edge": 40}}, (None, None), "expected shortest_edge alone"),
        ({"do_resize": False}, (None, None), "do_resize is false"),
        ({"size": {"shortest_edge": 12}}, (None, None), "shortest_edge without a centre crop"),
        ({"size": {"height": 12, "width": 12}}, (14, 14), "it makes 12×12 pixels, and the model takes 14×14"),
        (
            {"size": {"shortest_edge": 12}, "do_center_crop": True, "crop_size": 14},
            (None, None),
            "it crops 14×14 out of 12×12 pixels, which would pad",
        ),
        ({"size": {"longest_edge": 12}}, (None, None), "expected height and width, or shortest_edge"),
        ({"size": {"height": 12, "width": 12}, "rescale_factor": 0}, (None, None), "expected numbers above 0"),
    ],
)
def test_what_is_not_followed_whole_is_refused(tmp_path, config, sides, message):
    with pytest.raises(BundleError, match=f"p.json: .*{message}.*; expected an image processor's settings"):
        of_transformers(tmp_path / "p.json", config, sides)


def test_timm(tmp_path):
    """resize floor(12 / 0.9) = 13: the shorter edge, or both."""
    config = {"input_size": [3, 12, 12], "crop_pct": 0.9, "interpolation": "bicubic", "mean": MEAN, "std": STD}
    kept = of_timm(tmp_path / "c.json", config, (None, None))
    np.testing.assert_allclose(ours(kept), theirs((21, 13), (4, 0, 16, 12), BICUBIC), atol=2e-5)
    squashed = of_timm(tmp_path / "c.json", {**config, "crop_mode": "squash"}, (12, 12))
    np.testing.assert_allclose(ours(squashed), theirs((13, 13), (0, 0, 12, 12), BICUBIC), atol=2e-5)
    for change, message in (
        ({"crop_mode": "border"}, "crop_mode 'border' is not supported"),
        ({"input_size": [1, 12, 12]}, "input_size has 1 channels"),
        ({"interpolation": "random"}, "interpolation is 'random'"),
        ({"mean": [1, 2]}, "c.json: "),
    ):
        with pytest.raises(BundleError, match=message):
            of_timm(tmp_path / "c.json", {**config, **change}, (None, None))
