"""What a count of right predictions is worth: its interval, and whether one model's differs from another's."""

from __future__ import annotations

import math

Z_95 = 1.959963984540054
"""Quantile of the normal distribution for a two-sided 95 % interval."""


def wilson_interval(right: int, images: int) -> tuple[float, float]:
    """The 95 % interval, in percent, of the accuracy behind `right` of `images` predictions.

        (p + z²/2n ± z √(p(1−p)/n + z²/4n²)) / (1 + z²/n),   p = right / n,  n = images

    Source: Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22 (1927). Unlike
    p ± z √(p(1−p)/n) it is no point at 0 % and 100 % and stays within them.
    """
    n, p, z = images, right / images, Z_95
    centre = p + z * z / (2 * n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 100 / (1 + z * z / n)
    return max(0.0, (centre - half) * scale), min(100.0, (centre + half) * scale)


def mcnemar_exact(only_first: int, only_second: int) -> float:
    """How likely two equally good models differ at least as much: exact two-sided McNemar test.

    `only_first` and `only_second` count the images that one model names right and the other wrong. With
    n = only_first + only_second and k the smaller of them: p = min(1, 2 · Σ_{i≤k} C(n, i) / 2ⁿ); 1 where n is 0.

    Source: McNemar, "Note on the sampling error of the difference between correlated proportions", Psychometrika 12
    (1947), with the binomial distribution in place of its approximation.
    """
    n, k = only_first + only_second, min(only_first, only_second)
    # In logarithms: with thousands of images C(n, i) and 2ⁿ are beyond a float.
    terms = [math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) - n * math.log(2) for i in range(k + 1)]
    highest = max(terms)
    return min(1.0, 2 * math.exp(highest) * math.fsum(math.exp(term - highest) for term in terms))
