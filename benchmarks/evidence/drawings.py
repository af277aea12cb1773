"""A second set of images, of another kind, that nothing here was tuned to: Google's emoji, as an npm package has them.

    python -m benchmarks.evidence drawings --data data/drawings

Drawings, not photographs: 64 pixels, on white. A class is a subcategory of Unicode (`animal-mammal`, `tool`, …), every
one with at least 24 emoji: 24 classes. Of each, in an order drawn from (0, 'drawings', class), 16 to learn from and 8
others to test on: no emoji is in both, nor is one in another skin tone. The package is emoji-datasource-google 16.0.0
(MIT; the pictures are Noto's, Apache-2.0). npm fetches it; `--package FILE` where there is no network.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import tarfile
import tempfile
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cdl_deploy.seeds import derive_seed

PACKAGE = "emoji-datasource-google@16.0.0"
SHA256 = "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438"
TRAIN, TEST = 16, 8
TASKS = 3


def fetch(folder: Path) -> Path:
    """The package, by npm."""
    done = subprocess.run(
        ["npm", "pack", PACKAGE, "--pack-destination", str(folder), "--silent"], capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"npm could not fetch {PACKAGE}: {done.stderr.strip()[-300:]}; or give --package FILE")
    return next(folder.glob("*.tgz"))


def chosen(emoji: list[dict[str, Any]]) -> dict[str, list[str]]:
    """File names of every class that is large enough, in the order in which they are drawn."""
    classes: dict[str, list[str]] = {}
    for entry in sorted(emoji, key=lambda entry: str(entry["image"])):
        if entry["has_img_google"]:
            classes.setdefault(entry["subcategory"].replace(" & ", "-"), []).append(entry["image"])
    found = {}
    for name, files in sorted(classes.items()):
        if len(files) >= TRAIN + TEST:
            order = np.random.default_rng(derive_seed(0, "drawings", name)).permutation(len(files))
            found[name] = [files[at] for at in order]
    return found


def prepare(out: Path, package: Path | None = None) -> None:
    """`out`/train/CLASS and `out`/test/CLASS. Exits with a line where the package is another one."""
    with tempfile.TemporaryDirectory() as folder:
        file = package or fetch(Path(folder))
        found = hashlib.sha256(file.read_bytes()).hexdigest()
        if found != SHA256:
            raise SystemExit(f"{file} has SHA-256 {found}, expected {SHA256}: it is not {PACKAGE}")
        with tarfile.open(file) as archive:

            def content(name: str) -> bytes:
                member = archive.extractfile(f"package/{name}")
                assert member is not None
                return member.read()

            for name, files in chosen(json.loads(content("emoji.json"))).items():
                for split, names in (("train", files[:TRAIN]), ("test", files[TRAIN : TRAIN + TEST])):
                    (out / split / name).mkdir(parents=True, exist_ok=True)
                    for image in names:
                        drawn = Image.open(BytesIO(content(f"img/google/64/{image}"))).convert("RGBA")
                        paper = Image.new("RGBA", drawn.size, "white")
                        Image.alpha_composite(paper, drawn).convert("RGB").save(out / split / name / image)
