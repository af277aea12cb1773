"""Classify photographs with an exported model: `python classify.py student.onnx photo.jpg…`. One row a photograph."""

import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

session = onnxruntime.InferenceSession(sys.argv[1])
outputs = ["topk_label", "topk_probability", "task_scores"]
for path in sys.argv[2:]:
    upright = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    labels, probabilities, tasks = session.run(outputs, {"image": np.asarray(upright)[None]})
    selected = [f"task {tasks[0].argmax() + 1}"] if tasks.min() < tasks.max() else []  # all alike: none was selected
    print(path, labels[0, 0], f"{probabilities[0, 0]:.4f}", *selected, sep="\t")
