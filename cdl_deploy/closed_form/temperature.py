"""One temperature T that makes softmax(scores / T) as sure as it is right.

T minimises the mean negative log-likelihood, which is convex in b = 1/T. Source: Guo et al., "On Calibration of Modern
Neural Networks", ICML 2017, section 4.2.

Differs: one image's worth of answers at random is added, shared among all n, so that the target of an image is 1 − 1/n
for its class and 1/n shared among all classes. Where every answer is right T would otherwise be zero, and the head sure
beyond what n images can show; in the manner of Platt, "Probabilistic Outputs for Support Vector Machines", 1999, eq. 3.

Found by Newton's method on the slope in b, inside an interval that contains
the minimum and is halved where Newton would leave it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cdl_deploy.closed_form.teacher_sums import Floats

COLDEST, HOTTEST = 1e-4, 1e4
"""T stays between these, times the spread of the scores, where every answer is right, or all are the same."""
STEPS = 60
CLOSE = 1e-8
"""A relative step of Newton's after which the next one, its square or so, would be rounding."""


def softmax(scores: Floats, out: Floats | None = None) -> Floats:
    """[n, C] → probabilities [n, C], in `out` where that is given, which may be `scores`."""
    result: Floats = np.subtract(scores, scores.max(axis=1, keepdims=True), out=out)
    np.exp(result, out=result)
    result /= result.sum(axis=1, keepdims=True)
    return result


def fit_temperature(scores: Floats, labels: NDArray[np.intp], doubt: float | None = None) -> float:
    """T for `scores` [n, C] of images whose classes are `labels` [n]; 1 where all scores of an image are equal.

    `doubt`: the share of answers at random that is added, 1/n unless given.
    """
    spread = float(scores.std(axis=1).mean())
    if not spread > 0:
        return 1.0
    centred = scores - scores.max(axis=1, keepdims=True)
    centred /= spread
    doubt = 1 / len(labels) if doubt is None else doubt
    target = (1 - doubt) * float(centred[np.arange(len(labels)), labels].mean()) + doubt * float(centred.mean())
    low, high = 1 / HOTTEST, 1 / COLDEST
    inverse, probabilities = 1.0, np.empty_like(centred)
    for _ in range(STEPS):
        np.multiply(centred, inverse, out=probabilities)
        softmax(probabilities, out=probabilities)
        first = np.einsum("nc,nc->n", probabilities, centred)  # without another [n, C]: many classes are large
        slope = float(first.mean()) - target  # of the mean negative log-likelihood, rising in `inverse`
        if slope < 0:
            low = inverse
        else:
            high = inverse
        probabilities *= centred
        bend = float((np.einsum("nc,nc->n", probabilities, centred) - first**2).mean())
        following = inverse - slope / bend if bend > 0 else high
        if bend > 0 and abs(following - inverse) <= CLOSE * inverse:
            inverse = following
            break
        inverse = following if low < following < high else float(np.sqrt(low * high))
    return spread / inverse
