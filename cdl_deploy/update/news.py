"""What an update brings, in one line: the difference between two bundles as a person would tell it."""

from __future__ import annotations

from cdl_deploy.counted import counted
from cdl_deploy.runtime.bundle import Bundle

NAMED = 8
"""Class names to spell out; of more, the rest is counted."""


def news(old: Bundle | None, new: Bundle) -> str:
    """Such as `task 3 brings eel and fox: now 6 classes in 3 tasks, accuracy 91.2 → 90.8 %`.

    `old` is None where the old file does not say what it knows.
    """
    total = f"{counted(len(new.classes), 'class')} in {counted(sum(map(bool, new.tasks)), 'task')}"
    if old is None:
        return f"now {total}{_accuracy(None, new)}"
    parts = []
    known = set(old.classes)
    for number, task in enumerate(new.tasks, 1):
        if brought := [name for name in task if name not in known]:
            parts.append(f"task {number} brings {_names(brought)}")
    if gone := [name for name in old.classes if name not in set(new.classes)]:
        parts.append(f"without {_names(gone)}")
    change = f"{'; '.join(parts)}: now" if parts else "trained anew, the same"
    return f"{change} {total}{_accuracy(old, new)}"


def _names(names: list[str]) -> str:
    if len(names) > NAMED:
        return f"{', '.join(names[:NAMED])} and {len(names) - NAMED} more"
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def _accuracy(old: Bundle | None, new: Bundle) -> str:
    """Of the runs, on all classes known at the time."""
    if new.accuracy is None:
        return ""
    before = f"{old.accuracy.final_average_accuracy:.1f} → " if old is not None and old.accuracy is not None else ""
    return f", accuracy {before}{new.accuracy.final_average_accuracy:.1f} %"
