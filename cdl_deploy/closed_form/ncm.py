"""Nearest class mean by angle: the floor that every table should show.

    w_c = μ_c / ‖μ_c‖      b_c = 0

On features of unit length (`FeatureMap.normalise`) this is slda with Σ = I and means scaled back to unit length, as
iCaRL does (Rebuffi et al., arXiv 1611.07725, algorithm 1): score c is the cosine between φ and μ_c.
"""

from __future__ import annotations

import numpy as np

from cdl_deploy.closed_form.linear_head import LinearHead
from cdl_deploy.closed_form.seen import check_seen
from cdl_deploy.closed_form.statistics import Statistics


def ncm(statistics: Statistics) -> LinearHead:
    """The head; a class whose mean is zero scores zero."""
    check_seen(statistics)
    length = np.linalg.norm(statistics.means, axis=1, keepdims=True)
    weight = statistics.means / np.where(length > 0, length, 1)
    return LinearHead(statistics.classes, weight, np.zeros(len(weight)))
