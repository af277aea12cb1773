"""timm's own evaluation transform, and what the runtime does by its config.json."""

from __future__ import annotations

import numpy as np
import pytest
import timm
from PIL import Image

from cdl_deploy.data.images import to_tensor
from cdl_deploy.runtime.processors import of_timm

WIDE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 100, 3), dtype=np.uint8))


@pytest.mark.parametrize("mode", ["center", "squash"])
@pytest.mark.parametrize(("share", "interpolation"), [(0.9, "bicubic"), (1.0, "bilinear"), (0.875, "bicubic")])
def test_pixels_are_timms(tmp_path, mode, share, interpolation):
    config = {"input_size": (3, 32, 32), "interpolation": interpolation, "crop_pct": share, "crop_mode": mode,
              "mean": (0.5, 0.4, 0.3), "std": (0.5, 0.25, 0.2)}  # fmt: skip
    theirs = timm.data.create_transform(**config)(WIDE).numpy()
    recipe = of_timm(tmp_path / "config.json", config, (None, None))
    image = WIDE if recipe.squash is None else WIDE.resize(recipe.squash[::-1], Image.Resampling[interpolation.upper()])
    np.testing.assert_allclose(to_tensor(image, recipe.preprocessing), theirs, atol=1e-6)
