"""Classify photographs in LiteRT: `python classify.py student.tflite photo.jpg…`. One row a photograph.

The file is of `cdl export RUN --target litert --input image --image-size H,W`, with student.json beside it.
"""

import json
import sys
from pathlib import Path

import numpy as np
from ai_edge_litert.interpreter import Interpreter
from PIL import Image, ImageOps

about = json.loads(Path(sys.argv[1]).with_suffix(".json").read_text(encoding="utf-8"))
interpreter = Interpreter(sys.argv[1])
height, width = map(int, interpreter.get_input_details()[0]["shape"][1:3])
run = interpreter.get_signature_runner()


def fitted(image: Image.Image) -> np.ndarray:
    """uint8 [1, height, width, 3]: resized until it covers that, and the middle cut out."""
    scale = max(width / image.width, height / image.height)
    size = max(width, int(scale * image.width)), max(height, int(scale * image.height))
    left, top = round((size[0] - width) / 2), round((size[1] - height) / 2)
    resized = image.resize(size, Image.Resampling.BICUBIC)
    return np.asarray(resized.crop((left, top, left + width, top + height)))[None]


for path in sys.argv[2:]:
    upright = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    found = run(image=fitted(upright))
    label, probability = about["classes"][found["topk_index"][0, 0]], found["topk_probability"][0, 0]
    print(path, label, f"{probability:.4f}", f"task {found['task_scores'][0].argmax() + 1}", sep="\t")
