"""A model quantised to int8 by NNCF for transformers, in OpenVINO with the precision that it chooses itself.

For export_peers.py. What NNCF calibrates on are images like those that our int8 graph is calibrated on: smooth colours.
"""

import nncf
import numpy as np
import openvino
from run_openvino_default import load, main

IMAGES, SQUARES = 16, 14


def smooth_images(size):
    """uint8 [n, height, width, 3]."""
    coarse = np.random.default_rng(0).integers(0, 256, (IMAGES, SQUARES, SQUARES, 3), dtype=np.uint8)
    rows, columns = (np.arange(side) * SQUARES // side for side in size)
    return coarse[:, rows][:, :, columns]


def convert(model, folder, first):
    """The same file for every batch: it is made once."""
    path = folder.parent / "nncf.xml"
    if not path.exists():
        images = smooth_images(first.shape[1:3])
        quantised = nncf.quantize(
            openvino.Core().read_model(str(model)),
            nncf.Dataset([{"image": image[None]} for image in images]),
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=IMAGES,
        )
        openvino.save_model(quantised, str(path), compress_to_fp16=False)
    return [path, path.with_suffix(".bin")]


if __name__ == "__main__":
    main("openvino", load, convert)
