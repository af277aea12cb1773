"""Classify photographs in ncnn: `python classify.py student.ncnn.param photo.jpg…`. One row a photograph.

The files are of `cdl export RUN --target ncnn`, with student.json beside them.
"""

import json
import sys
from pathlib import Path

import ncnn
import numpy as np
from PIL import Image, ImageOps

param = sys.argv[1]
about = json.loads(Path(param.replace(".ncnn.param", ".json")).read_text(encoding="utf-8"))
size = about["preprocessing"]
height, width = size["height"], size["width"]
net = ncnn.Net()
net.load_param(param)
net.load_model(param.replace(".param", ".bin"))
task_of = {name: number for number, names in enumerate(about["tasks"], 1) for name in names}


def prepared(image: Image.Image) -> np.ndarray:
    """float32 [3, height, width]: the shorter edge resized, the middle cut out, normalised."""
    scale = size["resize"] / min(image.size)
    resized = image.resize([max(size["resize"], int(scale * side)) for side in image.size], Image.Resampling.BICUBIC)
    left, top = round((resized.width - width) / 2), round((resized.height - height) / 2)
    pixels = np.asarray(resized.crop((left, top, left + width, top + height)), np.float32) / 255
    return np.ascontiguousarray(((pixels - size["mean"]) / size["std"]).transpose(2, 0, 1), np.float32)


for path in sys.argv[2:]:
    upright = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    image, extractor = prepared(upright), net.create_extractor()  # a Mat does not keep the array: `image` does
    extractor.input("in0", ncnn.Mat(image))
    logits = np.array(extractor.extract("out0")[1])
    best, powers = logits.argmax(), np.exp(logits - logits.max())
    label = about["classes"][best]
    print(path, label, f"{powers[best] / powers.sum():.4f}", f"task {task_of[label]}", sep="\t")
