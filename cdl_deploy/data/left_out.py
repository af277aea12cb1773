"""What a folder holds beside images: counted while it is searched, so that nothing is left out without a word."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

UNLABELLED = "/unlabelled"
"""In a record, where classes are named: none can be called so."""
NAMED_CLASSES = 5
"""So many classes are named with what was left out of them."""


@dataclass
class LeftOut:
    """How many files were passed over, by class and by suffix; what lies beside the classes has the class ''."""

    counts: dict[str, Counter[str]] = field(default_factory=dict)
    unlabelled: int = 0
    """Images of which a labels file says nothing."""

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

    @property
    def total(self) -> int:
        """Files in all."""
        return sum(found.total() for found in self.counts.values())

    def to_dict(self) -> dict[str, dict[str, int]]:
        """Plain values for JSON: class → suffix → number of files."""
        found = {name: dict(sorted(own.items())) for name, own in sorted(self.counts.items())}
        return {**found, UNLABELLED: {"images": self.unlabelled}} if self.unlabelled else found

    @classmethod
    def of(cls, counts: Mapping[str, Mapping[str, int]]) -> LeftOut:
        """The inverse of `to_dict`."""
        own = {name: Counter(found) for name, found in counts.items() if name != UNLABELLED}
        return cls(own, counts.get(UNLABELLED, {}).get("images", 0))

    def text(self) -> str:
        """One line that says it all; empty where nothing was left out."""
        if self.unlabelled:
            images = "1 image was" if self.unlabelled == 1 else f"{self.unlabelled:,} images were"
            text = f"{images} left out, of which the labels file says nothing"
            rest = replace(self, unlabelled=0).text()
            return f"{text}; {rest}" if rest else text
        if not self.counts:
            return ""
        overall: Counter[str] = Counter()
        for found in self.counts.values():
            overall.update(found)
        files = "1 file was" if self.total == 1 else f"{self.total:,} files were"
        text = f"{files} left out, no images by their names: {listed(overall)}"
        by_class = [(name, found) for name, found in sorted(self.counts.items()) if name]
        if by_class:
            text += f" ({'; '.join(_of_classes(by_class))})"
        return text


def suffix_of(file: str | Path) -> str:
    """The suffix in lower case, or `no suffix`."""
    return Path(file).suffix.lower() or "no suffix"


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
