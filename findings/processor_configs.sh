#!/usr/bin/env bash
# A preprocessor_config.json does not say all that transformers' image processors do.
#
# transformers 5.24.0, Pillow 12.0.0, NumPy 2.4.6. Whoever feeds an exported ONNX file by following the published
# config, field by field, feeds it other pixels than the model was published with:
#
# * LevitImageProcessor, size {"shortest_edge": 224}: the shorter edge becomes 256, int(256 / 224 * 224), before the crop
#   of 224. A config of 192 gives 219. Only {"height": 224, "width": 224} is taken as it stands.
# * EfficientNetImageProcessor, do_normalize with mean and std 0.5: a white pixel becomes 2.0 and not (1 - 0.5) / 0.5 = 1.0,
#   because include_top, true unless a config says otherwise, divides by the deviation once more.
#
# Seen (it exits with 1 where this changes):
#   levit: 400x300, shortest edge 224 -> 341x256; 192 -> 292x219; 224x224 -> 224x224
#   efficientnet: white is 2.0 with the default include_top, 1.0 without
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet transformers==5.24.0 pillow==12.0.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'CODE'
import sys

import numpy as np
from PIL import Image
from transformers import EfficientNetImageProcessorPil, LevitImageProcessorPil

photograph = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8))


def resized(**size: int) -> tuple[int, int]:
    """Width and height before the crop."""
    processor = LevitImageProcessorPil(size=size, do_center_crop=False, do_rescale=False, do_normalize=False)
    height, width = np.asarray(processor(photograph)["pixel_values"])[0].shape[1:]
    return width, height


edges = resized(shortest_edge=224), resized(shortest_edge=192), resized(height=224, width=224)
print("levit: 400x300, shortest edge 224 -> {}x{}; 192 -> {}x{}; 224x224 -> {}x{}".format(*sum(edges, ())))

white = Image.new("RGB", (8, 8), (255, 255, 255))


def normalised(**more: bool) -> float:
    processor = EfficientNetImageProcessorPil(do_resize=False, do_center_crop=False, **more)
    assert tuple(processor.image_mean) == tuple(processor.image_std) == (0.5, 0.5, 0.5)
    return round(float(np.asarray(processor(white)["pixel_values"])[0].max()), 4)


with_top, without = normalised(), normalised(include_top=False)
print(f"efficientnet: white is {with_top} with the default include_top, {without} without")
sys.exit(0 if (edges, with_top, without) == (((341, 256), (292, 219), (224, 224)), 2.0, 1.0) else 1)
CODE
