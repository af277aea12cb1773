"""What the words on a command line stand for: files, folders, patterns, standard input → paths, one after another.

The same sources give the same paths in the same order every time, in little memory: of a folder with a million files
only some thousand names are held at once.
"""

from __future__ import annotations

import fnmatch
import glob
import heapq
import os
from collections.abc import Iterable, Iterator

from cdl_deploy.data.images import USUAL_SUFFIXES, is_image_name
from cdl_deploy.data.left_out import LeftOut
from cdl_deploy.errors import CdlError, DataError, PassingError, is_passing

STDIN = "-"
BYTE_ORDER_MARK = "\ufeff"
IGNORED_FILES = ("thumbs.db", "desktop.ini")
"""What Windows leaves in folders, in lower case."""
IGNORED_FOLDERS = (
    "__macosx", "__pycache__", "@eadir", "#recycle", "#snapshot", "$recycle.bin", "system volume information",
    "lost+found",
)  # fmt: skip
"""What archives, network storage, file systems and Python leave beside images, in lower case."""
NAMES_AT_ONCE = 50_000
"""Names of one folder that are sorted at a time, about 10 MB; a larger folder is listed several times."""


def expand_paths(
    sources: Iterable[str], stdin: Iterable[str] = (), left_out: LeftOut | None = None, separator: str = "\n"
) -> Iterator[str]:
    """Paths of the images that `sources` name, found as they are asked for.

    A source is a file (any suffix), a folder (searched recursively, in sorted order, for files with an image's suffix;
    hidden ones and links to folders are skipped), a pattern with `*`, `?` or `[` that the shell left alone, or `-` for
    one path a line from `stdin`, or one before each `separator`. `left_out` is told of files in folders that are no
    images by their names. A folder inside that may not be read is given as a path itself, to be reported as one
    that cannot be opened. Raises `DataError` for a source that is not there or may not be read, a folder without
    images, or a pattern without a match.
    """
    for source in sources:
        if source == STDIN:
            try:
                yield from _named(stdin, separator)
            except OSError as error:
                raise _cannot_read("standard input", error) from error
        elif os.path.isdir(source):
            _check_readable(source)
            yield from _require(
                _walk(source, left_out), f"{source}: no images in this folder (looked for {USUAL_SUFFIXES})"
            )
        elif os.path.lexists(source):
            yield source
        elif glob.has_magic(source):
            root, *parts = _split_pattern(source)
            images = (path for match in _matches(root, parts) for path in _images_at(match, left_out))
            yield from _require(images, f"{source}: no file matches this pattern")
        else:
            raise DataError(f"{source}: no such file or folder")


def is_ignored(name: str) -> bool:
    """Whether a file or folder within a folder of images is passed over without a word, hidden ones among them."""
    return name.startswith(".") or name.lower() in IGNORED_FOLDERS + IGNORED_FILES


def check_sources(sources: Iterable[str]) -> None:
    """Raise `DataError` for the first source that names nothing, before any work is done."""
    for source in sources:
        if source != STDIN:
            next(expand_paths([source]), None)


def _require(paths: Iterator[str], otherwise: str) -> Iterator[str]:
    first = next(paths, None)
    if first is None:
        raise DataError(otherwise)
    yield first
    yield from paths


def _check_readable(folder: str) -> None:
    try:
        os.scandir(folder).close()
    except OSError as error:
        raise _cannot_read(folder, error) from error


def _cannot_read(path: str, error: OSError) -> CdlError:
    kind = PassingError if is_passing(error) else DataError
    return kind(f"{path}: {error.strerror or error}")


def _named(stdin: Iterable[str], separator: str) -> Iterator[str]:
    """Paths on standard input, without a byte-order mark before the first, as Windows writes it."""
    pieces = stdin if separator == "\n" else _split_at(stdin, separator)
    for number, piece in enumerate(pieces):
        text = piece.removeprefix(BYTE_ORDER_MARK) if number == 0 else piece
        text = text.rstrip("\r\n") if separator == "\n" else text
        if "\0" in text:
            raise DataError("standard input has NUL characters in it: add -0 where they end the paths (find -print0)")
        if text.strip():
            yield text


def _split_at(stdin: Iterable[str], separator: str) -> Iterator[str]:
    """What stands before each separator, and what is left at the end."""
    rest = ""
    for some in stdin:
        *whole, rest = (rest + some).split(separator)
        yield from whole
    yield rest


def _images_at(match: str, left_out: LeftOut | None = None) -> Iterator[str]:
    return _walk(match, left_out) if os.path.isdir(match) else iter([match])


def _walk(folder: str, left_out: LeftOut | None = None) -> Iterator[str]:
    """Image files below `folder`, depth first, each level sorted by name; `folder` itself if it may not be read."""
    open_folders = [(folder, _names(folder))]  # no recursion: folders may be nested deeper than Python's calls
    while open_folders:
        here, names = open_folders[-1]
        try:
            name, is_folder = next(names, (None, False))
        except OSError as error:
            if is_passing(error):  # what is in it would be missing
                raise _cannot_read(here, error) from error
            yield here
            name = None
        if name is None:
            open_folders.pop()
        elif is_ignored(name):
            continue
        elif is_folder:
            below = os.path.join(here, name)
            open_folders.append((below, _names(below)))
        elif is_image_name(name):
            yield os.path.join(here, name)
        elif left_out is not None:
            left_out.add("", [name + os.sep * os.path.isdir(os.path.join(here, name))])


def _names(folder: str) -> Iterator[tuple[str, bool]]:
    """(name, whether it is a folder and no link) of what is in `folder`, sorted by name; raises `OSError`."""
    last = ""
    while True:
        with os.scandir(folder) as found:
            later = ((entry.name, entry.is_dir(follow_symlinks=False)) for entry in found if entry.name > last)
            chosen = heapq.nsmallest(NAMES_AT_ONCE, later)
        yield from chosen
        if len(chosen) < NAMES_AT_ONCE:
            return
        last = chosen[-1][0]


def _split_pattern(pattern: str) -> list[str]:
    """The folder where a pattern begins, then its parts: `"/a/*/b"` → `["/", "a", "*", "b"]`."""
    parts = [part for part in pattern.split(os.sep) if part]
    once = [part for part, before in zip(parts, ["", *parts], strict=False) if (part, before) != ("**", "**")]
    return [os.sep if pattern.startswith(os.sep) else "", *once]


def _matches(folder: str, parts: list[str]) -> Iterator[str]:
    """What matches a pattern below `folder`, in sorted order; `**` stands for any number of folders."""
    if not parts:
        yield folder
        return
    part, rest = parts[0], parts[1:]
    if part == "**" and not rest:
        yield folder
    elif part == "**":
        for below in _folders_below(folder):
            yield from _matches(below, rest)
    elif not glob.has_magic(part):
        path = os.path.join(folder, part)
        if os.path.lexists(path):
            yield from _matches(path, rest)
    else:
        for name, _ in _listed(folder):
            path = os.path.join(folder, name)
            hidden = name.startswith(".") and not part.startswith(".")
            if not hidden and fnmatch.fnmatchcase(name, part) and (not rest or os.path.isdir(path)):
                yield from _matches(path, rest)


def _folders_below(folder: str) -> Iterator[str]:
    """`folder`, and every folder within it that is not hidden, each before those within it."""
    yield folder
    open_folders = [(folder, _listed(folder))]
    while open_folders:
        here, names = open_folders[-1]
        name, is_folder = next(names, (None, False))
        if name is None:
            open_folders.pop()
        elif is_folder and not name.startswith("."):
            below = os.path.join(here, name)
            yield below
            open_folders.append((below, _listed(below)))


def _listed(folder: str) -> Iterator[tuple[str, bool]]:
    """As `_names`; nothing where `folder` is no folder or may not be read."""
    try:
        yield from _names(folder or os.curdir)
    except OSError:
        return
