"""The exported file against the trained model, on held-out images of the run."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from cdl_deploy.counted import beside
from cdl_deploy.data.images import FloatArray, crop_offset
from cdl_deploy.data.preprocessing import Preprocessing
from cdl_deploy.errors import ParityError
from cdl_deploy.export.session import cpu_session
from cdl_deploy.runtime.bundle import DISTANCE_NAME, FEATURES_NAME, INPUT_NAME, LOGITS_NAME
from cdl_deploy.runtime.bundle_parts import Parity
from cdl_deploy.training.backbones.protocol import BlockPrompt
from cdl_deploy.training.models.learner import Learner, QueryEncoder, learner_logits
from cdl_deploy.training.shapes import Logits, Pixels

TOLERANCE = 1e-4
BATCHES = (1, 2, 5, 64)
Run = Callable[[Sequence[str]], list[np.ndarray]]
"""From names of outputs to their values for all held-out images."""


def check_parity(
    path: Path,
    preprocessing: Preprocessing,
    expected: Logits,
    images: Pixels,
    terms: float | None = None,
    run: Run | None = None,
) -> Parity:
    """Compare the file's logits for held-out images with `expected` [n, C], those of the trained model.

    The images are cut into batches of 1, 2, 5 and 64 in turn, so that a graph with a frozen batch cannot pass.
    `terms`: the logits are a closed-form head's, which are as large as the classes are far apart, or those of a
    calibration, which scales them; and the sizes of what such a logit adds up come to this much at most: most of it
    may cancel, float32's rounding of it does not.
    `run`: how to get outputs for these images, where the file's own input cannot show them.
    Raises ParityError above 1e-4 (with `terms`: or 1e-5 of the largest logit, or 1e-6 of `terms`), or for another
    top-1.
    """
    (found,) = (run or run_on(path, images, preprocessing))([LOGITS_NAME])
    return compare(expected.numpy(), found, path.name, terms)


def check_features(
    path: Path,
    preprocessing: Preprocessing,
    features: FloatArray,
    distance: NDArray[np.float64],
    images: Pixels,
    run: Run | None = None,
) -> None:
    """Compare the file's `features` [n, F] and `distance` [n] with those of the trained model and its sums.

    Raises ParityError above 1e-4 of the largest feature, or 1e-3 of the largest distance, which is far from the
    nearest class in units of directions that hardly vary.
    """
    names = [FEATURES_NAME, DISTANCE_NAME]
    found = (run or run_on(path, images, preprocessing))(names)
    wanted: tuple[np.ndarray, ...] = (features, distance)
    for name, own, expected, allowed in zip(names, found, wanted, (TOLERANCE, 10 * TOLERANCE), strict=True):
        off = float(np.abs(own - expected).max() / max(np.abs(expected).max(), 1e-6))
        if not off <= allowed:
            raise ParityError(
                f"{path.name} differs from the trained model: {name} by {off:.2g} of the largest value, at most "
                f"{allowed:g} allowed; nothing was written"
            )


def run_on(path: Path, images: Pixels, preprocessing: Preprocessing) -> Run:
    """The file itself, fed so that it sees just these images."""
    return lambda names: run_file(path, list(names), graph_input(images, preprocessing))


def run_file(path: Path, names: list[str], feed: np.ndarray) -> list[np.ndarray]:
    """The outputs `names` for all inputs, in batches of 1, 2, 5 and 64 in turn."""
    session = cpu_session(path)
    found, start, turn = [], 0, 0
    while start < len(feed):
        size = BATCHES[turn % len(BATCHES)]
        found.append(session.run(names, {INPUT_NAME: feed[start : start + size]}))
        start, turn = start + size, turn + 1
    return [np.concatenate(parts) for parts in zip(*found, strict=True)]


@torch.no_grad()
def trained_logits(
    encoder: QueryEncoder, learner: Learner, images: Pixels, prompts: dict[int, BlockPrompt] | None = None
) -> Logits:
    """What the trained model answers, as it was trained; with `prompts` in place of those it selects by the image."""
    return torch.cat([learner_logits(encoder, learner, chunk, prompts=prompts) for chunk in images.split(64)])


def graph_input(images: Pixels, preprocessing: Preprocessing) -> np.ndarray:
    """What a graph takes to see exactly these images, which are resized and cropped already.

    A graph that preprocesses gets each of them in the middle of a black square that it has no reason to resize.
    """
    pixels = images.numpy()
    if preprocessing.input == "tensor":
        mean, std = (
            np.array(values, np.float32).reshape(3, 1, 1) for values in (preprocessing.mean, preprocessing.std)
        )
        return ((pixels.astype(np.float32) / 255 - mean) / std).astype(np.float32)
    side = preprocessing.resize
    top, left = crop_offset(side, preprocessing.height), crop_offset(side, preprocessing.width)
    canvas = np.zeros((len(pixels), side, side, 3), np.uint8)
    canvas[:, top : top + preprocessing.height, left : left + preprocessing.width] = pixels.transpose(0, 2, 3, 1)
    return canvas


def compare(expected: np.ndarray, found: np.ndarray, name: str, terms: float | None = None) -> Parity:
    """Logits [n, C] of the trained model and of the exported graph; `terms` as in `check_parity`."""
    difference = float(np.abs(expected - found).max())
    same = expected.argmax(1) == found.argmax(1)
    allowed = TOLERANCE
    if terms is not None:
        allowed = max(TOLERANCE, TOLERANCE / 10 * float(np.abs(expected).max()), TOLERANCE / 100 * terms)
    if not difference <= allowed:
        raise ParityError(
            f"{name} differs from the trained model: a logit by {beside(difference, allowed)}, at most {allowed:.2g} "
            "allowed; nothing was written"
        )
    if not same.all():
        raise ParityError(
            f"{name} differs from the trained model: {int((~same).sum())} of {len(same)} images get another class; "
            "nothing was written"
        )
    return Parity(len(same), power_of_ten_above(difference), float(same.mean()))


def power_of_ten_above(difference: float) -> float:
    """What a file says of a difference: 3.1e-06 is written as 1e-05, nothing as less than 1e-07.

    The last digits depend on how many threads added up; the bytes of the file must not.
    """
    return float(f"1e{max(-7, math.ceil(math.log10(difference)))}") if difference > 0 else 1e-7
