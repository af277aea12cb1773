"""Images that the sums imply: what temperature and threshold are chosen on, where no image is held any more.

The sums describe Gaussian classes with means μ_c and covariances t_c Σ_w. Σ_w = N/(N−C) Σ_ρ is slda's one covariance,
without the bias of having fitted C means; t_c makes it wider for a class whose images are further apart than those of
others (variance of class c over the mean variance, both by the trace; the mean counts as `PRIOR` images more).

In that world all is known, and an image can be drawn at will. But a head that has been solved from few images is too
sure of itself, and distances to means that were fitted to the images are too short: the more so the fewer images there
are for D dimensions. So the whole is done once more in that world (parametric bootstrap; Efron, Tibshirani, "An
Introduction to the Bootstrap", 1993, ch. 6.5):

    μ*_c ~ N(μ_c, t_c Σ_w/n_c),  S* ~ Wishart(N − C, Σ_w)     sums that as many images of that world could have given
    φ*   ~ N(μ_c, t_c Σ_w)                                    fresh images of it, equally many of each class

The head and the distance solved from the sums with a star are judged on the fresh images. All draws are a function of
the sums alone: same sums, same temperature and threshold.

What it cannot know: how far real features are from Gaussian. On scikit-learn's digits (raw pixels, 100 to 900 images)
the T found so is 1.3 to 2 times below the best T on test images: slda's calibration error falls from 2.7 … 10.4 points
to 1.6 … 4.6 (best T: 1.6 … 3.1), ridge's and ncm's from 71 … 78 to 2 … 7; on the class token of the packaged backbones
every head ends at 0.8 … 1.8. So each addition measures how much higher T has to be (`overconfidence`). Whoever holds
images that the sums have not seen should fit T on those.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from cdl_deploy.closed_form.seen import check_seen
from cdl_deploy.closed_form.shrinkage import covariance_factor, shrunk_covariance
from cdl_deploy.closed_form.stable_random import normals
from cdl_deploy.closed_form.statistics import Statistics
from cdl_deploy.closed_form.teacher_sums import Floats

FRESH = 2000
"""Fresh images, about: at least one a class."""
PRIOR = 5
SEED_MEANS, SEED_SCATTER, SEED_DIAGONAL, SEED_FRESH = 11, 12, 13, 14
DIRECT = 4
"""Up to this many times D images the scatter is summed from as many draws; beyond, it is drawn as such."""


@dataclass(frozen=True, eq=False)
class ModelWorld:
    """Sums as they could have come out, and fresh images."""

    statistics: Statistics
    """With a star above; of the same classes and counts, without a teacher."""
    features: Floats
    """[n, D]: fresh images."""
    labels: NDArray[np.intp]
    """[n]: their classes, as places."""


def model_world(statistics: Statistics, shrinkage: float | None = None) -> ModelWorld:
    """The world that `statistics` describe, with Σ_ρ shrunk by OAS unless ρ is given."""
    check_seen(statistics)
    C, D = statistics.means.shape
    wide = np.sqrt(_relative_variance(statistics))
    freedom = max(statistics.noise_images - C, 1)
    factor = covariance_factor(shrunk_covariance(statistics, shrinkage)[0])
    factor *= np.sqrt(max(statistics.noise_images / freedom, 1))
    means = statistics.means + normals(SEED_MEANS, C, D) @ factor.T * (wide / np.sqrt(statistics.counts))[:, None]
    root = factor @ _standard_root(freedom, D)
    labels = np.repeat(np.arange(C), -(-FRESH // C))
    features: Floats = normals(SEED_FRESH, len(labels), D) @ factor.T
    features *= wide[labels, None]
    features += statistics.means[labels]
    return ModelWorld(replace(statistics, means=means, scatter=root @ root.T, teacher=None), features, labels)


def _relative_variance(statistics: Statistics) -> Floats:
    """[C]: t_c."""
    mean = statistics.spread.sum() / max(statistics.images - len(statistics.classes), 1)
    if mean <= 0:
        return np.ones(len(statistics.classes))
    relative: Floats = (statistics.spread / mean + PRIOR) / (statistics.counts - 1 + PRIOR)
    return relative


def _standard_root(freedom: int, D: int) -> Floats:
    """A with A Aᵀ ~ Wishart(freedom, I), [D, freedom] or [D, D].

    Bartlett: A is lower triangular with normal numbers below the diagonal and a χ of `freedom` − i, i = 0 … D−1, on it,
    which for the large numbers used here is normal with mean √(f − ½) and variance ½ (Fisher's approximation).
    """
    if freedom <= DIRECT * D:
        return normals(SEED_SCATTER, D, freedom)
    root = np.tril(normals(SEED_SCATTER, D, D), -1)
    root[np.diag_indices(D)] = np.sqrt(freedom - np.arange(D) - 0.5) + normals(SEED_DIAGONAL, D) * np.sqrt(0.5)
    return root
