"""A file in the runtime it is for, in a process of its own, against the trained model."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
from numpy.typing import NDArray

from cdl_deploy.counted import beside
from cdl_deploy.errors import ParityError
from cdl_deploy.folders import scratch_folder
from cdl_deploy.targets.client import WorkerError
from cdl_deploy.targets.process import Place, job_of, logits_of, start
from cdl_deploy.targets.target import Target

SECONDS = 1800
"""A converter that takes longer is stopped."""
IMAGES = 64
"""Held-out images that are run."""
BURST = 1.0
"""Seconds for which one batch is timed."""


@dataclass(frozen=True)
class Proof:
    """How the file answered there."""

    runtime: str
    """Name and version: `"openvino 2026.4.1"`."""
    images: int
    max_abs_logit_difference: float
    top1_agreement: float
    ms: float
    """Of one run of the target's batch on one thread, roughly."""
    file: str
    """What the runtime takes: the .onnx file, or the first of those that were converted from it."""
    bytes: int
    """Of all of them."""


@dataclass(frozen=True)
class NotInstalled:
    """The runtime is not there; the ONNX file is."""

    target: str
    install: str
    """The one line that installs it."""
    python: Path | None = None
    """The interpreter that lacks it, where another than this one was named."""

    @property
    def where(self) -> str:
        return "here" if self.python is None else f"for {self.python}"


def prove(
    target: Target,
    model: Path,
    images: NDArray[np.generic],
    expected: NDArray[np.float32],
    batch: int | None = None,
    python: Path | None = None,
) -> Proof:
    """Run `images` [n, …], as the graph takes them, and compare with `expected` logits [n, C].

    What a converter makes is written beside the model. `batch`: images in one run; default 1. `python`: an interpreter
    that has the runtime. Raises ParityError where the answers differ, or where the runtime fails.
    """
    size, count = batch or 1, min(IMAGES, len(images))
    with scratch_folder("cdl-target-") as folder:
        try:
            with start(Place(target, python), model, SECONDS) as client:
                client.prepare(job_of(model, folder, size, str(images.dtype), images.shape[1:]))
                client.load()
                about = client.inspect(size)
                logits = logits_of(client, images[:count], size, folder)
                ms = median(client.burst(size, 1, BURST))
        except WorkerError as error:
            raise ParityError(
                f"{model.name} does not run in {target.name} ({error.why}); nothing was written"
            ) from error
        runtime = f"{target.name if target.runtime else target.distribution} {about['version']}"
        proof = _compared(target, runtime, model, logits, expected[:count], ms, int(about["file_bytes"]))
        for made in map(Path, about["files"] if target.converted else ()):
            shutil.copyfile(made, model.with_name(made.name))
    return proof


def _compared(
    target: Target,
    runtime: str,
    model: Path,
    logits: NDArray[np.float32],
    expected: NDArray[np.float32],
    ms: float,
    size: int,
) -> Proof:
    off = float(np.abs(logits - expected).max()) if logits.shape == expected.shape else float("nan")
    same = float((logits.argmax(axis=1) == expected.argmax(axis=1)).mean())
    allowed = target.tolerance * max(1.0, float(np.abs(expected).max()))
    if not off <= allowed or same < target.agreement:
        raise ParityError(
            f"{model.name} answers otherwise in {runtime}: a logit is off by {beside(off, allowed)}, at most "
            f"{allowed:.2g} allowed, and {same:.0%} of {len(expected)} images get the same class; nothing was written"
        )
    file = f"{model.stem}{target.converted[0]}" if target.converted else model.name
    return Proof(runtime, len(expected), off, same, ms, file, size)
