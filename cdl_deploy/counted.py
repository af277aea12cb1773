"""Numbers in sentences: 1 class, 2 classes, 1,000 images; and what is within a limit does not read as at it."""

from __future__ import annotations

import math


def counted(count: int, what: str) -> str:
    """`count` and the noun `what`, in the plural unless there is one."""
    if count == 1:
        return f"1 {what}"
    return f"{count:,} {what}{'es' if what.endswith(('s', 'x', 'ch')) else 's'}"


def beside(value: float, limit: float) -> str:
    """`value` in two digits, or in as many as tell it from `limit`: 0.00010004 beside 0.0001."""
    for digits in range(2, 17):
        text = f"{value:.{digits}g}"
        if float(text) != limit:
            break
    return text


def small(value: float) -> str:
    """A difference such as 3.1e-05; in more digits where it would be rounded up to a power of ten, as limits are."""
    if not 0 < value < math.inf:
        return f"{value:.1e}"
    for digits in range(1, 17):
        text = f"{value:.{digits}e}"
        if float(text) <= value or set(text.split("e")[0]) != {"1", ".", "0"}:
            break
    return text


def at_most(value: float) -> str:
    """A difference of which a file says the power of ten above it: ≤ 1e-04. Older files say the difference."""
    text = f"{value:.0e}"
    return f"≤ {text}" if text.startswith("1") and float(text) == value else small(value)


def same_answers(share: float, images: int) -> str:
    """`363 of 364`: a percentage would be rounded to all of them."""
    return f"{round(share * images)} of {images}"
