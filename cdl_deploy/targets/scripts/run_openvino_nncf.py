"""An int8 model in OpenVINO: NNCF makes it of the float file, and leaves in float whatever it is not told to quantise.

Beside the folders in which files are made lie `calibration.npy`, images [n, …] as the file takes them, and
`products.json`, the names of the products to quantise.

What stays float runs in the precision that OpenVINO chooses itself: bf16 where the processor has it (docs/runtimes.md).
"""

import json
import logging

import numpy as np
import openvino
from common import RefusedError, main

MOVES = (
    "Broadcast", "Concat", "Convert", "Reshape", "Slice", "Split", "Squeeze", "StridedSlice", "Transpose", "Unsqueeze",
    "VariadicSplit",
)  # fmt: skip
"""Operators that move numbers: NNCF may look through them."""
STORED = ("Constant", "FakeQuantize", "Parameter", "Result")
UNPACKS = (*MOVES, "Multiply", "Subtract")
"""Between a matrix in 8 bits and the product that it is for."""


def convert(model, folder, first):
    """See `main` of common.py: .xml and .bin, the same for every batch of a file that takes any."""
    path, count = folder.parent / f"{model.stem}.xml", len(first)
    if not path.exists():
        images = np.load(folder.parent / "calibration.npy")
        rows = np.arange(-(-len(images) // count) * count) % len(images)
        feeds = [{"image": images[rows[at : at + count]]} for at in range(0, len(rows), count)]
        names = json.loads((folder.parent / "products.json").read_text())
        openvino.save_model(quantised(openvino.Core().read_model(str(model)), feeds, names), str(path))
    return [path, path.with_suffix(".bin")]


def quantised(model, feeds, names):
    """`model` with the products `names` in int8, scales from `feeds`. Refused where NNCF did not do just that."""
    import nncf

    nncf.set_log_level(logging.ERROR)
    computes = {op.get_friendly_name() for op in model.get_ops() if op.get_type_name() not in (*MOVES, *STORED)}
    lacking = sorted(set(names) - computes)
    if lacking:
        raise RefusedError(f"OpenVINO calls {len(lacking)} of {len(names)} products otherwise, such as {lacking[0]}")
    found = nncf.quantize(
        model,
        nncf.Dataset(feeds),
        subset_size=len(feeds),
        model_type=nncf.ModelType.TRANSFORMER,
        ignored_scope=nncf.IgnoredScope(names=sorted(computes - set(names)), validate=False),
    )
    integers = fed_by_integers(found)
    odd = sorted(integers ^ set(names))
    if odd:
        what = "quantised" if odd[0] in integers else "did not quantise"
        raise RefusedError(f"NNCF {what} {odd[0]} and {len(odd) - 1} more operators, against what it was told")
    return found


def fed_by_integers(model):
    """Names of the operators of which one input at least comes from a FakeQuantize or from constants of 8 bits."""
    found = set()
    for op in model.get_ops():
        kind = op.get_type_name()
        if kind == "FakeQuantize":
            found |= users_of(op, MOVES)
        elif kind == "Constant" and op.get_element_type().get_type_name() in ("i8", "u8") and len(op.shape) > 1:
            found |= users_of(op, UNPACKS)
    return found


def users_of(op, through):
    """Names of the operators that read a value, seen through those of the kinds `through`."""
    found, todo = set(), [op]
    while todo:
        for output in todo.pop().outputs():
            for user in (it.get_node() for it in output.get_target_inputs()):
                if user.get_type_name() in through:
                    todo.append(user)
                elif user.get_type_name() != "Result":
                    found.add(user.get_friendly_name())
    return found


def load(model, first, threads):
    """See `main` of common.py."""
    compiled = openvino.Core().compile_model(str(model), "CPU", {"INFERENCE_NUM_THREADS": threads})
    logits = compiled.output("logits")
    return lambda batch: compiled({"image": batch})[logits]


if __name__ == "__main__":
    main("openvino", load, convert)
