"""Two models on the same images: how often they say the same, and whether one is better."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cdl_deploy.errors import OptionError
from cdl_deploy.evaluation.shares import mcnemar_exact


@dataclass(frozen=True)
class Agreement:
    """Both models choose among the classes that both know; images of other classes are left out."""

    model: str
    """The second model."""
    images: int
    """Images that both could read."""
    shared_classes: int
    only_first: tuple[str, ...]
    """Classes that only the first model knows."""
    only_second: tuple[str, ...]
    """Classes that only the second model knows."""
    same: float
    """Images that both give the same class, in percent."""
    accuracy_first: float
    """In percent, among the shared classes."""
    accuracy_second: float
    """In percent, among the shared classes."""
    both_right: int
    only_first_right: int
    only_second_right: int
    both_wrong: int
    p_value: float
    """How likely two equally good models differ at least as much; see `mcnemar_exact`."""


def shared_classes(first: Sequence[str], second: Sequence[str], names: tuple[str, str]) -> list[str]:
    """Classes that both models know, in the order of the first. Raises OptionError where there are fewer than two."""
    shared = [name for name in first if name in set(second)]
    if len(shared) < 2:
        common = f"only '{shared[0]}'" if shared else "no class"
        raise OptionError(
            f"{names[0]} ({len(first)} classes) and --against {names[1]} ({len(second)} classes) have {common} "
            "in common, and two are needed to compare them: give a model of the same classes"
        )
    return shared


def compare_predictions(
    model: str,
    classes: tuple[Sequence[str], Sequence[str]],
    truth: Sequence[str],
    first: Sequence[str],
    second: Sequence[str],
) -> Agreement:
    """`classes`: of both models; `truth`, `first`, `second`: for each image the true class and what each model says."""
    true, one, other = (np.array(names, dtype=object) for names in (truth, first, second))
    one_right, other_right = _equal(one, true), _equal(other, true)
    count = len(truth)
    only_first, only_second = int((one_right & ~other_right).sum()), int((other_right & ~one_right).sum())
    return Agreement(
        model=model,
        images=count,
        shared_classes=len(set(classes[0]) & set(classes[1])),
        only_first=tuple(name for name in classes[0] if name not in set(classes[1])),
        only_second=tuple(name for name in classes[1] if name not in set(classes[0])),
        same=100 * int(_equal(one, other).sum()) / count,
        accuracy_first=100 * int(one_right.sum()) / count,
        accuracy_second=100 * int(other_right.sum()) / count,
        both_right=int((one_right & other_right).sum()),
        only_first_right=only_first,
        only_second_right=only_second,
        both_wrong=int((~one_right & ~other_right).sum()),
        p_value=mcnemar_exact(only_first, only_second),
    )


def _equal(one: NDArray[np.object_], other: NDArray[np.object_]) -> NDArray[np.bool_]:
    return np.asarray(one == other, dtype=bool)
