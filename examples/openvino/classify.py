"""Classify photographs in OpenVINO: `python classify.py student.onnx photo.jpg…`. One row a photograph."""

import sys

import numpy as np
import openvino
from PIL import Image, ImageOps

model = openvino.Core().compile_model(sys.argv[1], "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
for path in sys.argv[2:]:
    upright = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    found = model({"image": np.asarray(upright)[None]})
    label, probability = found["topk_label"][0, 0], found["topk_probability"][0, 0]
    print(path, label, f"{probability:.4f}", f"task {found['task_scores'][0].argmax() + 1}", sep="\t")
