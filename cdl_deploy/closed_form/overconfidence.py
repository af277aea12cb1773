"""How much surer than right a head is on real features: what Gaussian classes (`model_world`) cannot know.

The temperature that a head gets in the world of its sums is too low where classes are no Gaussians of one covariance:
on photographs about half of the best one. So each addition of images measures it. Its images are divided into `FOLDS`
parts; for each, the head and its temperature T are made from the sums of the others alone, and the factor κ is the
temperature that all held-out scores, divided by their T, still need:

    κ = argmin_κ  −Σ_i log softmax(s_i / (T κ))[y_i]

It is measured among the classes of the addition, so it is a function of these images alone, and all additions are put
together by the mean of log κ over images: two more sums, and the head is still the same in whatever order they come.
κ is never below 1: images that are all told apart say nothing of how sure a head should be of harder ones.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from cdl_deploy.closed_form.head_rule import HeadRule, solve_head
from cdl_deploy.closed_form.statistics import gather
from cdl_deploy.closed_form.teacher_sums import Floats
from cdl_deploy.closed_form.temperature import fit_temperature

FOLDS = 3
LARGEST = 16.0
"""κ at most."""
MEASURED = 2000
"""Images of an addition, about, that are enough to measure it; all classes alike."""


def images_a_class(classes: int) -> int:
    """How many of each class to measure it on."""
    return max(FOLDS, MEASURED // max(classes, 1))


def measure_overconfidence(features: NDArray[np.floating], labels: NDArray[np.integer], rule: HeadRule) -> Floats:
    """[2]: images n, and n · log κ, of an addition: features φ [n, D] and labels [n].

    Zeros where fewer than two classes have `FOLDS` images.
    """
    known, place, counts = np.unique(labels, return_inverse=True, return_counts=True)
    enough = counts >= FOLDS
    if enough.sum() < 2:
        return np.zeros(2)
    used = enough[place]
    features, place = features[used], (np.cumsum(enough) - 1)[place[used]]
    names = tuple(str(label) for label in known[enough])
    order = np.argsort(place, kind="stable")
    starts = np.searchsorted(place[order], np.arange(len(names)))
    fold = np.empty(len(place), dtype=np.intp)
    fold[order] = (np.arange(len(place)) - starts[place[order]]) % FOLDS
    scores = np.empty((len(place), len(names)))
    rule = replace(rule, teacher_weight=0.0)
    for held in range(FOLDS):
        sums = gather(features[fold != held], place[fold != held], names)
        solved = solve_head(sums, rule)
        scores[fold == held] = solved.layer.scores(features[fold == held]) / solved.temperature
    factor = float(np.clip(fit_temperature(scores, place, doubt=0.0), 1.0, LARGEST))
    return np.array([len(place), len(place) * np.log(factor)])
