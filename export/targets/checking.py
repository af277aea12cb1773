"""A file in the runtime it is for, in a process of its own, against the trained model."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cdl_deploy.counted import beside
from cdl_deploy.errors import OptionError, ParityError
from cdl_deploy.export.targets.target import Target
from cdl_deploy.folders import scratch_folder

SECONDS = 1800
"""A converter that takes longer is stopped."""
IMAGES = 64
"""Held-out images that are run."""
LAST_LINES = 5
"""Of what a converter says before it fails."""


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
    """What the runtime takes: the .onnx file, or what was converted from it."""
    bytes: int


@dataclass(frozen=True)
class NotInstalled:
    """The runtime is not there; the ONNX file is."""

    target: str
    install: str
    """The one line that installs it."""


def is_installed(target: Target, python: Path | None = None) -> bool:
    """Whether the interpreter can import what the target needs. Raises OptionError for no interpreter."""
    code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec('{target.package}') is None)"
    try:
        return subprocess.run([python or sys.executable, "-c", code], capture_output=True, timeout=60).returncode == 0
    except OSError as error:
        raise OptionError(
            f"--target-python {python}: {error.strerror}, expected a Python with {target.package}: {target.install}"
        ) from error


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
    rows = np.arange(-(-count // size) * size) % count  # the last batch is filled up
    with scratch_folder("cdl-target-") as folder, as_file(files(__package__) / "scripts") as scripts:
        copy = folder / model.name  # some converters write to the file that they are given
        shutil.copyfile(model, copy)
        feed, out = folder / "feed.npz", folder / "out.npz"
        np.savez(feed, image=images[rows], batch=size)
        command = [python or sys.executable, scripts / target.script, copy, feed, out, folder]
        try:
            done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=SECONDS)
        except subprocess.TimeoutExpired:
            raise ParityError(
                f"{model.name} in {target.name}: stopped after {SECONDS} s; nothing was written"
            ) from None
        if done.returncode or not out.exists():
            last = " | ".join(line.strip() for line in (done.stdout + done.stderr).splitlines()[-LAST_LINES:])
            raise ParityError(
                f"{model.name} does not run in {target.name} (exit code {done.returncode}): {last}; nothing was written"
            )
        with np.load(out) as arrays:
            logits, version, ms = arrays["logits"][:count], str(arrays["version"]), float(arrays["ms"])
        made = model
        if target.converted:
            made = model.with_suffix(target.converted)
            shutil.copyfile(folder / made.name, made)
    return _compared(target, version, model, made, logits, expected[:count], ms)


def _compared(
    target: Target,
    version: str,
    model: Path,
    made: Path,
    logits: NDArray[np.float32],
    expected: NDArray[np.float32],
    ms: float,
) -> Proof:
    off = float(np.abs(logits - expected).max()) if logits.shape == expected.shape else float("nan")
    same = float((logits.argmax(axis=1) == expected.argmax(axis=1)).mean())
    allowed = target.tolerance * max(1.0, float(np.abs(expected).max()))
    if not off <= allowed or same < 1:
        raise ParityError(
            f"{model.name} answers otherwise in {target.name} {version}: a logit is off by {beside(off, allowed)}, "
            f"at most {allowed:.2g} allowed, and {same:.0%} of {len(expected)} images get the same class; "
            "nothing was written"
        )
    return Proof(f"{target.name} {version}", len(expected), off, same, ms, made.name, made.stat().st_size)
