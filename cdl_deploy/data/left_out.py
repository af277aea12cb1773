"""What a folder holds beside images: counted while it is searched, so that nothing is left out without a word."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

UNLABELLED, BESIDE, UNUSED = "/unlabelled", "/beside", "/unused"
"""In a record, where classes are named: none can be called so."""
LINKED = "(links to folders)"
"""In the place of a suffix: such links are not followed, for they may lead in a circle."""
NAMED_CLASSES = 5
"""So many classes are named with what was left out of them."""


@dataclass
class LeftOut:
    """How many files were passed over, by class and by suffix; what lies beside the classes has the class ''."""

    counts: dict[str, Counter[str]] = field(default_factory=dict)
    unlabelled: int = 0
    """Images of which a labels file says nothing."""
    beside: int = 0
    """Images that lie in no class's folder, but beside them."""
    unused: Counter[str] = field(default_factory=Counter)
    """Images of splits that are not needed, by split: of val where there is test."""

    def add(self, class_name: str, files: Iterable[str | Path]) -> None:
        """Files of a class that are no images by their names."""
        found = Counter(suffix_of(file) for file in files)
        if found:
            self.counts.setdefault(class_name, Counter()).update(found)

    def merge(self, other: LeftOut) -> None:
        """Add what another search has left out."""
        for name, found in other.counts.items():
            self.counts.setdefault(name, Counter()).update(found)
        self.unlabelled += other.unlabelled
        self.beside += other.beside
        self.unused.update(other.unused)

    def take_away(self, other: LeftOut) -> None:
        """Undo `merge`."""
        for name, found in other.counts.items():
            self.counts.get(name, Counter()).subtract(found)
        self.counts = {name: +found for name, found in self.counts.items() if +found}
        self.unlabelled -= other.unlabelled
        self.beside -= other.beside
        self.unused = self.unused - other.unused

    @property
    def total(self) -> int:
        """Files in all."""
        return sum(found.total() for found in self.counts.values())

    def to_dict(self) -> dict[str, dict[str, int]]:
        """Plain values for JSON: class → suffix → number of files."""
        found = {name: dict(sorted(own.items())) for name, own in sorted(self.counts.items())}
        images = {UNLABELLED: self.unlabelled, BESIDE: self.beside}
        unused = {UNUSED: dict(sorted(self.unused.items()))} if self.unused else {}
        return found | {name: {"images": count} for name, count in images.items() if count} | unused

    @classmethod
    def of(cls, counts: Mapping[str, Mapping[str, int]]) -> LeftOut:
        """The inverse of `to_dict`."""
        own = {name: Counter(found) for name, found in counts.items() if name not in (UNLABELLED, BESIDE, UNUSED)}
        unlabelled, beside = (counts.get(name, {}).get("images", 0) for name in (UNLABELLED, BESIDE))
        return cls(own, unlabelled, beside, Counter(counts.get(UNUSED, {})))

    def text(self) -> str:
        """One line that says it all; empty where nothing was left out."""
        parts = [
            *(_some(count, "image", f"left out, of the split '{name}'") for name, count in sorted(self.unused.items())),
            _some(self.unlabelled, "image", "left out, of which the labels file says nothing"),
            _some(self.beside, "image", "left out, beside the folders of the classes and in none of them"),
            _some(self.total, "file", f"left out, no images by their names: {self._by_suffix()}"),
        ]
        return "; ".join(part for part in parts if part)

    def _by_suffix(self) -> str:
        text = listed(sum(self.counts.values(), Counter()))
        by_class = [(name, found) for name, found in sorted(self.counts.items()) if name]
        return f"{text} ({'; '.join(_of_classes(by_class))})" if by_class else text


def _some(count: int, what: str, of_them: str) -> str:
    if not count:
        return ""
    return f"1 {what} was {of_them}" if count == 1 else f"{count:,} {what}s were {of_them}"


def suffix_of(file: str | Path) -> str:
    """The suffix in lower case, or `no suffix`; for a link to a folder, which ends in a `/`, what it is."""
    return LINKED if str(file).endswith(os.sep) else Path(file).suffix.lower() or "no suffix"


def listed(found: Mapping[str, int]) -> str:
    """`30 .txt, 8 .pdf`: the most frequent first."""
    ordered = sorted(found.items(), key=lambda item: (-item[1], item[0]))
    text = ", ".join(f"{count:,} {suffix}" for suffix, count in ordered[:NAMED_CLASSES])
    return f"{text} and {len(ordered) - NAMED_CLASSES} more kinds" if len(ordered) > NAMED_CLASSES else text


def _of_classes(by_class: list[tuple[str, Counter[str]]]) -> Iterator[str]:
    for name, found in islice(by_class, NAMED_CLASSES):
        yield f"class '{name}': {listed(found)}"
    if len(by_class) > NAMED_CLASSES:
        yield f"{len(by_class) - NAMED_CLASSES} more classes"
