"""A model in another runtime, in a process of its own: which Python has the runtime, and what it is asked."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cdl_deploy.errors import BundleError, OptionError
from cdl_deploy.runtime.bundle import TOPK_INDEX_NAME, TOPK_PROBABILITY_NAME
from cdl_deploy.runtime.bundle_parts import Quantization
from cdl_deploy.targets import find_target
from cdl_deploy.targets.client import WorkerClient
from cdl_deploy.targets.target import Target

SCRIPTS = Path(__file__).with_name("scripts")
LOOK = """
import importlib.metadata, importlib.util, json, sys
wanted, name = json.loads(sys.argv[1])
try:
    version = importlib.metadata.version(name)
except importlib.metadata.PackageNotFoundError:
    version = ""
print(json.dumps([[it for it in wanted if importlib.util.find_spec(it) is None], version]))
"""


@dataclass(frozen=True)
class Place:
    """A runtime, and the interpreter that has it."""

    target: Target
    python: Path | None = None
    """None: this one."""

    @property
    def name(self) -> str:
        return self.target.name


def parse_places(text: str) -> list[Place]:
    """From `tract,mnn=~/mnn/bin/python`. Raises OptionError for what is unknown, twice there, or not installed."""
    found: list[Place] = []
    for part in filter(None, (it.strip() for it in text.split(","))):
        name, _, python = part.partition("=")
        target = find_target(name.strip(), "--runtime")
        if not target.runtime:
            raise OptionError(f"--runtime {target.name} is a form of files and no runtime: name one, as onnxruntime")
        if target.name in [it.name for it in found]:
            raise OptionError(f"--runtime has {target.name} twice, expected each once")
        found.append(Place(target, Path(python.strip()).expanduser() if python else None))
    if not found:
        raise OptionError("--runtime is empty, expected names such as onnxruntime,openvino")
    for it in found:
        if not is_installed(it.target, it.python, "--runtime"):
            raise OptionError(
                f"--runtime {it.name}: it is not installed here: {it.target.install}; or name a Python that has it: "
                f"--runtime {it.name}=PATH/bin/python"
            )
    return found


def is_installed(target: Target, python: Path | None = None, option: str = "--target-python") -> bool:
    """Whether the interpreter has what the target needs. Raises OptionError for no interpreter, and an old version."""
    asked = json.dumps([target.packages, target.distribution])
    try:
        done = subprocess.run(
            [python or sys.executable, "-c", LOOK, asked], capture_output=True, text=True, timeout=60, check=True
        )
        lacking, version = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        why = getattr(error, "strerror", None) or "it is no Python that answers"
        raise OptionError(
            f"{option} {python}: {why}, expected a Python with {target.packages[0]}: {target.install}"
        ) from error
    if lacking:
        return False
    numbers = tuple(map(int, re.findall(r"\d+", version)))
    if numbers and numbers < target.oldest:
        oldest = ".".join(map(str, target.oldest))
        raise OptionError(f"{target.distribution} {version} is too old, expected {oldest} or later: {target.install}")
    return True


def check_fits(
    path: Path, target: Target, given: str, outputs: Mapping[str, str], variant: Quantization | None = None
) -> None:
    """Raise BundleError for a file that is known not to be for the target: it takes `given`, an image or a tensor,
    has `outputs`, each with its type, and is a smaller `variant`, if it is one."""
    why = []
    if given not in target.inputs:
        why.append(f"it takes an {given}" if given == "image" else f"it takes a {given}")
    if target.labels == "none" and "tensor(string)" in outputs.values():
        why.append("it gives names")
    if target.no_best and {TOPK_INDEX_NAME, TOPK_PROBABILITY_NAME} & set(outputs):
        why.append("it gives the best classes")
    if variant is not None and variant.kind in target.refused:
        why.append(f"it is {variant.kind} ({target.refused[variant.kind]})")
    if why:
        raise BundleError(
            f"{path} is not for {target.name}: {' and '.join(why)}; one that is: cdl export RUN --target {target.name}"
        )


def start(place: Place, model: Path, patience: float | None = None) -> WorkerClient:
    """A process of the runtime, to be asked, and ended by leaving it; nothing is loaded yet."""
    return WorkerClient(model, [place.python or sys.executable, SCRIPTS / place.target.script], patience)


def job_of(
    model: Path, folder: Path, batch: int, dtype: str, shape: Sequence[int], threads: int = 1, seed: int = 0
) -> dict[str, Any]:
    """What such a process is asked to prepare (`scripts/common.py`); `shape` is that of one image."""
    return {
        "model": str(model),
        "folder": str(folder),
        "batch": batch,
        "dtype": dtype,
        "shape": [int(size) for size in shape],
        "threads": threads,
        "seed": seed,
    }


def logits_of(client: WorkerClient, images: NDArray[Any], batch: int, folder: Path) -> NDArray[np.float32]:
    """What a loaded model makes of images [n, …], `batch` at a time, the last ones filled up."""
    count = len(images)
    rows = np.arange(-(-count // batch) * batch) % count
    feed, out = folder / "feed.npy", folder / "out.npy"
    found = []
    for at in range(0, len(rows), batch):
        np.save(feed, images[rows[at : at + batch]])
        client.answer(feed, out)
        found.append(np.load(out))
    return np.concatenate(found)[:count]
