"""Classify photographs in tract: `python classify.py student.onnx photo.jpg…`. One row a photograph.

The file is of `cdl export RUN --target tract`, with student.json beside it.
"""

import json
import sys
from pathlib import Path

import numpy as np
import tract
from PIL import Image, ImageOps

about = json.loads(Path(sys.argv[1]).with_suffix(".json").read_text(encoding="utf-8"))
size = about["preprocessing"]
height, width = size["height"], size["width"]
model = tract.onnx().load(sys.argv[1])
model.set_input_fact(0, f"1,3,{height},{width},f32")
runnable = model.into_model().into_runnable()
task_of = {name: number for number, names in enumerate(about["tasks"], 1) for name in names}


def prepared(image: Image.Image) -> np.ndarray:
    """float32 [1, 3, height, width]: the shorter edge resized, the middle cut out, normalised."""
    scale = size["resize"] / min(image.size)
    resized = image.resize([max(size["resize"], int(scale * side)) for side in image.size], Image.Resampling.BICUBIC)
    left, top = round((resized.width - width) / 2), round((resized.height - height) / 2)
    pixels = np.asarray(resized.crop((left, top, left + width, top + height)), np.float32) / 255
    normalised = (pixels - np.array(size["mean"])) / np.array(size["std"])
    return np.ascontiguousarray(normalised.transpose(2, 0, 1)[None], np.float32)


for path in sys.argv[2:]:
    upright = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    logits = runnable.run([prepared(upright)])[0].to_numpy()[0]  # the first output: tract renames them
    best, powers = logits.argmax(), np.exp(logits - logits.max())
    label = about["classes"][best]
    print(path, label, f"{powers[best] / powers.sum():.4f}", f"task {task_of[label]}", sep="\t")
