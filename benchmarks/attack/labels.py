"""Labels beside images, and what publishers say of preprocessing: damaged in any way, they are read or refused."""

from __future__ import annotations

import json
import random
from pathlib import Path

from PIL import Image

from benchmarks.attack.damage import BYTES, piece_of_text, value_of_json

NAMES = [f"{name}{i}" for name in ("ant", "bee") for i in range(4)]
FILES = {
    "l.csv": "file_name,label,split\n" + "".join(f"{n}.png,{n[:3]},train\n" for n in NAMES),
    "l.txt": "".join(f"{n}.png\t{n[:3]}\n" for n in NAMES),
    "l.jsonl": "".join(json.dumps({"file_name": f"{n}.png", "label": n[:3]}) + "\n" for n in NAMES),
    "l.json": json.dumps({"classes": ["ant", "bee"], "labels": {n: int(n > "b") for n in NAMES}}),
}
PROCESSORS = (
    {"size": {"height": 12, "width": 14}, "resample": 3, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.5, 0.4, 0.3]},
    {"size": {"shortest_edge": 12}, "do_center_crop": True, "crop_size": 12, "rescale_factor": 0.00392, "resample": 2},
    {"size": {"shortest_edge": 12}, "crop_pct": 0.875, "image_processor_type": "ConvNextImageProcessor"},
    {
        "input_size": [3, 12, 12],
        "mean": [0.5, 0.4, 0.3],
        "std": [0.5, 0.4, 0.3],
        "crop_pct": 0.9,
        "crop_mode": "squash",
    },
)


class LabelsFiles:
    """`--labels FILE`, in every format."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "photos"
        self.folder.mkdir()
        for name in NAMES:
            Image.new("RGB", (2, 2)).save(self.folder / f"{name}.png")

    def read(self, rng: random.Random) -> None:
        from cdl_deploy.data.folder import find_test_images

        name = rng.choice(list(FILES))
        changes = (*BYTES, piece_of_text, *([value_of_json] if name.endswith("n") else []))
        path = self.folder.parent / name
        path.write_bytes(rng.choice(changes)(FILES[name].encode(), rng))
        found = find_test_images(self.folder, None, str(path))
        if any(self.folder not in image.parents for images in found.values() for image in images):
            raise AssertionError("an image from elsewhere")


class Processors:
    """preprocessor_config.json, and timm's pretrained_cfg."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "preprocessor_config.json"

    def read(self, rng: random.Random) -> None:
        from cdl_deploy.documents import parse_json
        from cdl_deploy.errors import BundleError
        from cdl_deploy.runtime.processors import of_timm, of_transformers

        number = rng.randrange(len(PROCESSORS))
        text = value_of_json(json.dumps(PROCESSORS[number]).encode(), rng)
        try:
            config = parse_json(text)
        except ValueError as error:
            raise BundleError(str(error)) from None
        if not isinstance(config, dict):
            raise BundleError("no object")
        (of_timm if number == 3 else of_transformers)(self.file, config, (None, None))
