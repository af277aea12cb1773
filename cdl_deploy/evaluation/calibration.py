"""Whether a model is right as often as it says: expected calibration error over bins of confidence.

n images; p_i the largest probability that the model gives for image i, its confidence; M bins of equal width, bin m
holding the images with (m−1)/M < p_i ≤ m/M. For each bin, acc(m) is the share of its images that are classified right
and conf(m) the mean of their confidence. Then

    ECE = Σ_m |bin m| / n · |acc(m) − conf(m)|

Source: Naeini, Cooper, Hauskrecht, "Obtaining Well Calibrated Probabilities Using Bayesian Binning", AAAI 2015; with
the bins and the M = 15 of Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, section 2 and table 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BINS = 15


@dataclass(frozen=True)
class ConfidenceBin:
    """The images whose confidence is above `lower` and at most `upper`."""

    lower: float
    upper: float
    images: int
    accuracy: float | None
    """Share classified right, in percent; None where there is no image."""
    confidence: float | None
    """Mean confidence, in percent; None where there is no image."""


def confidence_bins(
    confidence: NDArray[np.floating], correct: NDArray[np.bool_], bins: int = BINS
) -> list[ConfidenceBin]:
    """`confidence` [n] from 0 to 1 and `correct` [n] of n images, in `bins` bins of equal width."""
    return bins_of(bin_sums(confidence, correct, bins))


def bin_sums(confidence: NDArray[np.floating], correct: NDArray[np.bool_], bins: int = BINS) -> NDArray[np.float64]:
    """[3, bins] in float64: images, those classified right, and the sum of their confidence. Sums of parts add up.

    A confidence of exactly 0 belongs to the first bin.
    """
    edges = np.linspace(0, 1, bins + 1)
    values = confidence.astype(np.float64)
    bin_of_image = np.clip(np.searchsorted(edges, values, side="left") - 1, 0, bins - 1)
    weights = (np.ones_like(values), correct, values)
    return np.stack([np.bincount(bin_of_image, weights=weight, minlength=bins) for weight in weights])


def bins_of(sums: NDArray[np.float64]) -> list[ConfidenceBin]:
    """Bins of equal width from `bin_sums` [3, bins]."""
    counts, right, summed = sums
    bins = len(counts)
    edges = np.linspace(0, 1, bins + 1)
    return [
        ConfidenceBin(
            lower=float(edges[m]),
            upper=float(edges[m + 1]),
            images=int(counts[m]),
            accuracy=100 * float(right[m]) / int(counts[m]) if counts[m] else None,
            confidence=100 * float(summed[m]) / int(counts[m]) if counts[m] else None,
        )
        for m in range(bins)
    ]


def expected_calibration_error(bins: Sequence[ConfidenceBin]) -> float:
    """ECE in percentage points: 0 for a model that is right as often as it says; the formula is at the top."""
    images = sum(item.images for item in bins)
    gaps = (
        item.images * abs(item.accuracy - item.confidence)
        for item in bins
        if item.accuracy is not None and item.confidence is not None
    )
    return sum(gaps) / images
