"""How much is measured: which images, how many epochs and seeds, which rows; and the folders of images cut to it."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cdl_deploy.seeds import derive_seed


@dataclass(frozen=True)
class Budget:
    """What a row may cost. None: all images."""

    name: str
    images: int | None
    """Training images a class."""
    row_tests: int | None
    """Test images a class that every task is tested on as the run goes: the accuracy matrix."""
    final_tests: int | None
    """Test images a class of the exported files: the final accuracy."""
    epochs: int
    views: int
    """`--cache-views`."""
    seeds: tuple[int, ...]
    methods: tuple[str, ...]
    hours: str
    """In words, for whoever starts it."""
    options: tuple[tuple[str, Any], ...] = ()
    """More of `cdl train`."""
    tasks: int = 10
    adapts: tuple[str, ...] = ("first", "all")
    """Which `--adapt` there is a row of, in this order."""

    @property
    def about(self) -> dict[str, Any]:
        """What a record says of it."""
        values = asdict(self)
        del values["hours"], values["seeds"], values["methods"], values["adapts"]
        return {**values, "options": dict(self.options)}


BUDGETS = {
    budget.name: budget
    for budget in (
        Budget(
            "full", None, None, None, 20, 0, (0, 1, 2), ("coda", "l2p"),
            "days on a CPU; a GPU is meant: with --minutes 15 as many rows as fit, in this order",
            (("resident", True), ("compile", True)),
        ),
        Budget("short", 100, 10, None, 5, 5, (0, 1), ("coda", "l2p"), "about 36 hours on one CPU core"),
        Budget("shortest", 10, 4, 20, 3, 1, (0,), ("coda", "l2p"), "about 3 hours on one CPU core"),
        Budget(
            "drawings", 16, 8, None, 5, 1, (0, 1, 2), ("coda",), "about half an hour on one CPU core", tasks=3,
            adapts=("first",),
        ),
    )
}  # fmt: skip
DRAWN = "a class's files in alphabetical order, the first of the permutation drawn from (0, 'evidence', split, class)"
"""Which images a budget takes: the same for every seed and row."""


def cut(data: Path, into: Path, images: int | None, tests: int | None) -> Path:
    """The image folder with so many images a class: links to them, in `into`; `data` itself where all are wanted.

    Raises FileNotFoundError where `data` has no train/ or test/.
    """
    if images is None and tests is None:
        return data
    import numpy as np

    for split, count in (("train", images), ("test", tests)):
        for folder in sorted((data / split).iterdir()):
            if not folder.is_dir():
                continue
            files = sorted(folder.iterdir())
            order = np.random.default_rng(derive_seed(0, "evidence", split, folder.name)).permutation(len(files))
            place = into / split / folder.name
            place.mkdir(parents=True, exist_ok=True)
            for file in (files[at] for at in order[:count]):
                if not (place / file.name).is_symlink():
                    os.symlink(file.resolve(), place / file.name)
    return into
