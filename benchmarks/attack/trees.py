"""Folders of images as people and systems leave them: odd names, links, pipes, depth, things that are no images."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

from PIL import Image

NAMES = (
    "ant", "bee", "Ant", "ant ", "train", "test", "val", "Training", ".hidden", "__MACOSX", "@eaDir", "caf\u00e9",
    "cafe\u0301", "a\u200bnt", "\x1b[2J", "a\nb", "=1+1", "p[v2]", "d$^$", "\udce4", "-x", "~", "con", "a" * 200, "#",
)  # fmt: skip
FILES = (
    "0.png", "1.PNG", "2.jpg", "._0.png", "Thumbs.db", "notes.txt", "metadata.csv", "x.png.part", "\udcff.png", ".png",
    "a\nb.png", "labels.json", "0.heic", "none",
)  # fmt: skip


class Trees:
    """Searched for images to train and to test with, and to name."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "tree"
        self.outside = folder / "outside"
        self.outside.mkdir()
        Image.new("RGB", (2, 2)).save(self.outside / "secret.png")

    def read(self, rng: random.Random) -> None:
        from cdl_deploy.data.folder import find_splits, find_test_images
        from cdl_deploy.data.paths import expand_paths
        from cdl_deploy.data.sources import unreadable
        from cdl_deploy.errors import DataError

        shutil.rmtree(self.root, ignore_errors=True)
        self.root.mkdir()
        self._fill(self.root, rng, rng.randint(1, 3))
        holdout = rng.choice((None, 0.2))
        reads = (
            lambda: {**find_splits(self.root, holdout)[0]},
            lambda: find_test_images(self.root, holdout),
            lambda: {"": [Path(path) for path in expand_paths([str(self.root)])]},
        )
        number = rng.randrange(len(reads))
        found = reads[number]()
        files = [file for some in found.values() for file in some]
        if number < 2:
            for text in (*found, *map(str, files)):
                text.encode()  # a record has to hold it
        if any(not file.parent.resolve().is_relative_to(self.root.resolve()) and not _by_link(file) for file in files):
            raise AssertionError("an image from elsewhere")
        if bad := unreadable(files):
            raise DataError(next(iter(bad.values())))

    def _fill(self, folder: Path, rng: random.Random, depth: int) -> None:
        for name in rng.sample(NAMES, rng.randint(0, 5)):
            inner = folder / name
            kind = rng.random()
            if kind < 0.05:
                inner.symlink_to(rng.choice((self.outside, self.root, Path("nowhere"))))
            elif kind < 0.1:
                inner.write_bytes(b"a file")
            else:
                inner.mkdir()
                if depth > 1 and rng.random() < 0.6:
                    self._fill(inner, rng, depth - 1)
                if rng.random() < 0.8:
                    self._write(inner, rng)
        if rng.random() < 0.2:
            self._write(folder, rng)

    def _write(self, folder: Path, rng: random.Random) -> None:
        for name in rng.sample(FILES, rng.randint(1, 4)):
            path, kind = folder / name, rng.random()
            if path.is_symlink() or path.exists():
                continue
            if kind < 0.04:
                path.symlink_to(rng.choice((self.outside, self.outside / "secret.png", Path(name), Path("nowhere"))))
            elif kind < 0.06:
                os.mkfifo(path)
            elif kind < 0.08:
                path.mkdir()
            elif kind < 0.1:
                path.write_bytes(b"")
            else:
                Image.new("RGB", (2, 2), (rng.randrange(256), 0, 0)).save(path, "PNG")


def _by_link(file: Path) -> bool:
    """Whether it lies below a class's own link, which is the user's word for it."""
    return any(parent.is_symlink() for parent in (file, *file.parents))
