"""Metrics of class-incremental learning from the accuracy matrix (method, section 7). Everything in percent.

The matrix is a list of rows: row i holds a_i1 … a_ii, the accuracies after task i on the test images of tasks 1 to i,
choosing among all classes seen after task i.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

Matrix = Sequence[Sequence[float]]


def final_average_accuracy(matrix: Matrix) -> float:
    """A_N = mean over j of a_Nj, the paper's "accuracy"."""
    return fmean(matrix[-1])


def average_incremental_accuracy(matrix: Matrix) -> float:
    """mean over i of A_i."""
    return fmean(fmean(row) for row in matrix)


def forgetting(matrix: Matrix) -> float:
    """The paper's: (1/N) Σ_{j≤N} (a_jj − a_Nj)."""
    return fmean(forgetting_by_task(matrix))


def forgetting_by_task(matrix: Matrix) -> list[float]:
    """a_jj − a_Nj for every task j: what was known right after it and is not any more."""
    return [matrix[j][j] - last for j, last in enumerate(matrix[-1])]


def forgetting_standard(matrix: Matrix) -> float:
    """The standard one: mean over j < N of (max_i a_ij − a_Nj); 0 for a single task."""
    last = len(matrix) - 1
    drops = [max(matrix[i][j] for i in range(j, last + 1)) - matrix[last][j] for j in range(last)]
    return fmean(drops) if drops else 0.0


def backward_transfer(matrix: Matrix) -> float:
    """BWT = mean over j < N of (a_Nj − a_jj); 0 for a single task."""
    last = len(matrix) - 1
    changes = [matrix[last][j] - matrix[j][j] for j in range(last)]
    return fmean(changes) if changes else 0.0


def summary(matrix: Matrix) -> dict[str, float]:
    """Every metric under the name a run record uses."""
    return {
        "final_average_accuracy": final_average_accuracy(matrix),
        "average_incremental_accuracy": average_incremental_accuracy(matrix),
        "forgetting": forgetting(matrix),
        "forgetting_standard": forgetting_standard(matrix),
        "backward_transfer": backward_transfer(matrix),
    }
