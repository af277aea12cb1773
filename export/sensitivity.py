"""Which layers suffer most from being quantised, and how many of them have to stay float."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

import numpy as np
import numpy.typing as npt
import onnx

from cdl_deploy.errors import QuantisationError
from cdl_deploy.export.images_of_run import HeldOut
from cdl_deploy.export.quantise import Feeds, PreparedModel
from cdl_deploy.export.session import cpu_session
from cdl_deploy.runtime.bundle import LOGITS_NAME
from cdl_deploy.runtime.bundle_parts import SCORES

Quantise = Callable[[Collection[str]], onnx.ModelProto]
"""The quantised model, but for the layers named (and SCORES), which stay float."""
NAMED = 3
"""Layers that a message names."""


def accuracy(logits: npt.NDArray[np.float32], held_out: HeldOut) -> float:
    """Percent of right answers among all classes, averaged over tasks: the run's final average accuracy."""
    shares, start = [], 0
    for _, labels in held_out.tasks:
        answers = logits[start : start + len(labels)].argmax(axis=1)
        shares.append(100 * float((answers == np.array(labels)).mean()))
        start += len(labels)
    return sum(shares) / len(shares)


def most_sensitive(prepared: PreparedModel, quantise: Quantise, feeds: Iterable[Feeds]) -> list[str]:
    """Layers by what quantising each alone does to the logits, the worst first.

        harm of a layer = mean over images and classes of |logit with that layer alone quantised − float logit|

    Attention's scores are float all the while. The images are those of calibration: none that accuracy is measured on
    has a say in what is kept.
    """
    feeds = list(feeds)
    names = [layer.name for layer in prepared.layers]
    expected = logits_of(quantise([SCORES, *names]), feeds)
    harm = {
        name: float(np.abs(logits_of(quantise([SCORES, *names[:i], *names[i + 1 :]]), feeds) - expected).mean())
        for i, name in enumerate(names)
    }
    return sorted(names, key=lambda name: -harm[name])


def within_drop(
    quantise: Quantise,
    ranking: Callable[[], list[str]],
    measure: Callable[[onnx.ModelProto], float],
    before: float,
    max_drop: float,
    name: str,
    scores: bool = False,
) -> tuple[onnx.ModelProto, list[str], float]:
    """The quantised model that loses at most `max_drop` points of `before`, what it keeps float, and its accuracy.

    If all that is quantised loses more, attention's scores stay float (`scores`: where they are quantised): they save
    the least. Then the worst layers of `ranking` do as well: one, two, four, up to half of them. Raises
    QuantisationError, which names them, if that is not enough.
    """
    model = quantise([])
    first = after = measure(model)
    if before - after <= max_drop:
        return model, [], after
    own = [SCORES] if scores else []
    if scores:
        model = quantise(own)
        after = measure(model)
        if before - after <= max_drop:
            return model, own, after
    ranked = ranking()
    count = 1
    while True:
        keep = [*own, *ranked[:count]]
        model = quantise(keep)
        after = measure(model)
        if before - after <= max_drop:
            return model, keep, after
        if count >= len(ranked) // 2:
            break
        count = min(2 * count, max(1, len(ranked) // 2))
    raise QuantisationError(
        f"{name} answers {first:.1f} % right instead of {before:.1f} %, --max-drop {max_drop:g} points allowed, and "
        f"{after:.1f} % with {f'{SCORES} and ' if scores else ''}the {count} most sensitive layers in float "
        f"({', '.join(ranked[:NAMED])}, …): give more "
        "images like the model's own with --calibrate, allow more, or leave out --quantize; nothing was written"
    )


def logits_of(model: onnx.ModelProto, feeds: Iterable[Feeds]) -> npt.NDArray[np.float32]:
    """Logits [n, C] of all images, computed on the CPU."""
    return outputs_of(model, feeds, LOGITS_NAME)


def outputs_of(model: onnx.ModelProto, feeds: Iterable[Feeds], name: str) -> npt.NDArray[np.float32]:
    """One output of all images, computed on the CPU."""
    session = cpu_session(model)
    return np.concatenate([session.run([name], dict(batch))[0] for batch in feeds])
