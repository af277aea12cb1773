"""int8 as `cdl export RUN --target openvino --quantize int8` has NNCF make it, in OpenVINO. For export_peers.py.

The file's metadata name the products to quantise.
"""

import json
import sys
from pathlib import Path

import openvino
from run_openvino_default import load, main
from run_openvino_nncf_alone import smooth_images

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "cdl_deploy" / "targets" / "scripts"))
from run_openvino_nncf import quantised


def convert(model, folder, first):
    """The same file for every batch: it is made once."""
    path = folder.parent / "cdl.xml"
    if not path.exists():
        given = openvino.Core().read_model(str(model))
        names = json.loads(given.get_rt_info(["framework", "products"]).astype(str))
        feeds = [{"image": image[None]} for image in smooth_images(first.shape[1:3])]
        openvino.save_model(quantised(given, feeds, names), str(path))
    return [path, path.with_suffix(".bin")]


if __name__ == "__main__":
    main("openvino", load, convert)
