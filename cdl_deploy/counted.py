"""Numbers with what they count: 1 class, 2 classes, 1,000 images."""

from __future__ import annotations


def counted(count: int, what: str) -> str:
    """`count` and the noun `what`, in the plural unless there is one."""
    if count == 1:
        return f"1 {what}"
    return f"{count:,} {what}{'es' if what.endswith(('s', 'x', 'ch')) else 's'}"
