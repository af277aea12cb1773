"""A model in LiteRT: converted by onnx2tf, then run. A tensor is [N, height, width, 3] there; images are so anyway."""

import sys
from pathlib import Path

import numpy as np
from ai_edge_litert.interpreter import Interpreter
from common import command, main


def convert(model, folder, first):
    """See `main`."""
    tool, own = Path(sys.executable).with_name("onnx2tf"), folder / "made"
    made = own / f"{model.stem}_float32.tflite"
    shape = f"image:{','.join(map(str, first.shape))}"
    kept = ["-kat", "image"] if first.dtype == np.uint8 else []
    command(tool, "-i", model, "-o", own, "-n", "-ois", shape, *kept, folder=folder, made=[made])
    return [made.rename(folder / f"{model.stem}.tflite")]


def load(model, first, threads):
    """See `main`."""
    interpreter = Interpreter(str(model), num_threads=threads)
    run = interpreter.get_signature_runner()
    order = (0, 1, 2, 3) if first.dtype == np.uint8 else (0, 2, 3, 1)
    return lambda batch: run(image=np.ascontiguousarray(batch.transpose(order)))["logits"]


main("ai-edge-litert", load, convert)
