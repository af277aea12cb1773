"""The exported file against the trained model, on held-out images of the run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import Tensor

from cdl_deploy.bundle import INPUT_NAME, LOGITS_NAME, Parity
from cdl_deploy.errors import ParityError
from cdl_deploy.training.models.learner import Learner, QueryEncoder, learner_logits

TOLERANCE = 1e-4
BATCHES = (1, 2, 5, 64)


def check_parity(path: Path, encoder: QueryEncoder, learner: Learner, images: Tensor) -> Parity:
    """Compare logits for `images` [n, 3, height, width] uint8. Raises ParityError above 1e-4 or for any other top-1.

    The images are cut into batches of 1, 2, 5 and 64 in turn, so that a graph with a frozen batch cannot pass.
    """
    with torch.no_grad():
        expected = torch.cat([learner_logits(encoder, learner, chunk) for chunk in images.split(64)]).numpy()
    mean, std = (value.numpy() for value in (learner.backbone.mean, learner.backbone.std))
    pixels = ((images.numpy().astype(np.float32) / 255 - mean) / std).astype(np.float32)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    found, start, turn = [], 0, 0
    while start < len(pixels):
        size = BATCHES[turn % len(BATCHES)]
        found.append(session.run([LOGITS_NAME], {INPUT_NAME: pixels[start : start + size]})[0])
        start, turn = start + size, turn + 1
    return compare(expected, np.concatenate(found), path.name)


def compare(expected: np.ndarray, found: np.ndarray, name: str) -> Parity:
    """Logits [n, C] of the trained model and of the exported graph."""
    difference = float(np.abs(expected - found).max())
    same = expected.argmax(1) == found.argmax(1)
    if not difference <= TOLERANCE:
        raise ParityError(
            f"{name} differs from the trained model: a logit by {difference:.2g}, at most {TOLERANCE:g} allowed; "
            "nothing was written"
        )
    if not same.all():
        raise ParityError(
            f"{name} differs from the trained model: {int((~same).sum())} of {len(same)} images get another class; "
            "nothing was written"
        )
    return Parity(images=len(same), max_abs_logit_difference=difference, top1_agreement=float(same.mean()))
