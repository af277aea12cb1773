"""Labels that stand in a file beside the images, as `--labels FILE` names it. Nothing is decoded.

    CSV, TSV      a column of files and one of classes by the usual names, or two columns without a header (Kaggle);
                  a column `split` says train or test. Hugging Face's metadata.csv
    JSON Lines    an object an image, with the same keys: Hugging Face's metadata.jsonl
    JSON          {"classes": […], "labels": {file: class}} (FiftyOne), {file: class}, or a list of objects
    text          a file and its class a line, tab or space between: Tiny-ImageNet's val_annotations.txt

Class names are text as it is written: 007 stays 007. Files are looked for below the image folder alone.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from cdl_deploy.data.class_names import composed
from cdl_deploy.data.images import is_image_name
from cdl_deploy.documents import parse_json
from cdl_deploy.errors import DataError
from cdl_deploy.regular_file import read_regular
from cdl_deploy.typed_json import short

FILE_COLUMNS = (
    "file_name", "filename", "file", "fname", "image_path", "file_path", "filepath", "path", "image_file", "image_name",
    "image", "image_id", "img", "id",
)  # fmt: skip
LABEL_COLUMNS = (
    "label_name", "class_name", "label", "class", "category", "target", "species", "breed", "variety", "labels",
    "classes", "class_id", "label_id",
)  # fmt: skip
SPLIT_COLUMNS = ("split", "subset", "set", "is_valid")
IS_VALID = {"true": "valid", "1": "valid", "false": "train", "0": "train"}
"""What the column `is_valid` says (fastai)."""
"""Names of columns and keys, in lower case and with underscores; of several the first in this order is taken."""
USUAL_NAMES = (
    "metadata.csv", "metadata.jsonl", "labels.csv", "labels.json", "labels.jsonl", "labels.txt", "train.csv",
    "annotations.csv", "val_annotations.txt",
)  # fmt: skip
"""What such files are mostly called: for the hint where a folder has images and no classes."""
IMAGE_FOLDERS = ("images", "data", "imgs", "train", "test")
"""Where the files that a labels file names lie, if not beside it."""
MAX_BYTES = 256 << 20


@dataclass(frozen=True)
class Label:
    """What a labels file says of one image."""

    file: str
    """As it is written there, with `/` between folders."""
    name: str
    """The class; empty where it says that there is none."""
    split: str
    """In lower case; empty where nothing is said."""
    line: int
    """Or the number of the entry, counted from 1."""


def read_labels(path: Path) -> list[Label]:
    """Every image that the file names, in its order. Raises DataError for what is no such file."""
    try:
        text = read_regular(path, MAX_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(f"--labels {path} is not UTF-8 text: save it as UTF-8") from None
    except OSError as error:
        raise DataError(f"cannot read --labels {path}: {error.strerror or error}") from None
    except ValueError as error:
        raise DataError(f"cannot read --labels {path}: {short(str(error))}") from None
    suffix = path.suffix.lower()
    if suffix in (".jsonl", ".ndjson"):
        found = list(_of_objects(path, _json_lines(path, text)))
    elif suffix == ".json":
        found = list(_of_json(path, text))
    elif suffix in (".csv", ".tsv", ".txt"):
        found = list(_of_rows(path, _rows(path, text)))
    else:
        raise DataError(f"--labels {path}: expected a file ending in .csv, .tsv, .txt, .json or .jsonl")
    if not found:
        raise DataError(f"--labels {path} names no image")
    return found


def match_labels(
    path: Path, labels: Sequence[Label], root: Path, images: Sequence[Path]
) -> tuple[list[tuple[Path, Label]], list[Path]]:
    """Which of `images`, all below `root`, each label is of, and those that none is of.

    Raises DataError for a label without its image, and for an image with two.
    """
    places = _Places(root, images, path.parent)
    found: dict[Path, Label] = {}
    missing: list[Label] = []
    for label in labels:
        image = places.find(label.file)
        if image is None:
            missing.append(label)
            continue
        before = found.setdefault(image, label)
        if before.name != label.name:
            raise DataError(
                f"--labels {path}, line {label.line}: {label.file} is '{label.name}', and '{before.name}' in line "
                f"{before.line}: expected one class an image"
            )
    if missing:
        first = missing[0]
        if first is labels[0] and first.line == 1 and len(missing) == 1 and len(labels) > 1:
            raise DataError(
                f"--labels {path}, line 1: there is no image {short(first.file)} in {root}; if it is a header, call "
                f"the files' column {FILE_COLUMNS[0]} and the classes' label, say, or leave the line out"
            )
        raise DataError(
            f"--labels {path} names {len(missing):,} of {len(labels):,} images that are not in {root}, such as "
            f"{short(first.file)} (line {first.line}): give the folder they lie in, or take the lines out"
        )
    return [(image, label) for image, label in found.items() if label.name], [
        image for image in images if image not in found or not found[image].name
    ]


class _Places:
    """Images by what a labels file may call them."""

    def __init__(self, root: Path, images: Sequence[Path], beside: Path) -> None:
        self.root = root
        self.by_name = {image.relative_to(root).as_posix(): image for image in images}
        self.by_stem = _unique((str(PurePosixPath(name).with_suffix("")), at) for name, at in self.by_name.items())
        self.by_last = _unique((image.name, image) for image in images)
        inner = beside.relative_to(root).as_posix() if beside != root and beside.is_relative_to(root) else ""
        before = [f"{inner}/"] if inner else []
        self.prefixes = [*before, *(f"{start}{name}/" for start in [*before, ""] for name in IMAGE_FOLDERS)]

    def find(self, written: str) -> Path | None:
        name = written.replace("\\", "/")
        if name.startswith(("/", "../")) or name[1:3] == ":/":
            return self._elsewhere(name)
        name = name.removeprefix("./")
        for known in (self.by_name, self.by_stem):
            for prefix in ["", *self.prefixes]:
                image = known.get(prefix + name)
                if image is not None:
                    return image
        return self.by_last.get(name)

    def _elsewhere(self, name: str) -> Path | None:
        """Of a path that begins outside, as on another machine: the image that the longest end of it names."""
        if Path(name).is_relative_to(self.root):
            return self.by_name.get(Path(name).relative_to(self.root).as_posix())
        parts = PurePosixPath(name).parts
        ends = ("/".join(parts[start:]) for start in range(1, len(parts)))
        return next((self.by_name[end] for end in ends if end in self.by_name), self.by_last.get(parts[-1]))


def _unique(pairs: Iterable[tuple[str, Path]]) -> dict[str, Path]:
    """Without the names that several images have."""
    found: dict[str, Path] = {}
    twice: set[str] = set()
    for name, image in pairs:
        if name in found:
            twice.add(name)
        found[name] = image
    return {name: image for name, image in found.items() if name not in twice}


def _json_lines(path: Path, text: str) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield number, _json(path, line, f", line {number}")


def _json(path: Path, text: str, where: str = "") -> Any:
    try:
        return parse_json(text)
    except ValueError as error:
        raise DataError(f"--labels {path}{where} is not JSON: {short(str(error))}") from None


def _of_json(path: Path, text: str) -> Iterator[Label]:
    content = _json(path, text)
    if isinstance(content, list):
        yield from _of_objects(path, enumerate(content, start=1))
        return
    if not isinstance(content, dict):
        raise DataError(f"--labels {path}: expected an object {{file: class}}, or a list of objects")
    if {"images", "annotations"} <= set(content):
        raise DataError(
            f"--labels {path} holds COCO annotations, which are objects within images: write a CSV of file and class"
        )
    classes: Any = None
    if isinstance(content.get("labels"), dict):
        classes, content = content.get("classes"), content["labels"]
    for number, (file, value) in enumerate(content.items(), start=1):
        if isinstance(value, dict) and "label" in value:
            value = value["label"]
        if classes and type(value) is int:
            if not isinstance(classes, list) or not 0 <= value < len(classes):
                raise DataError(f"--labels {path}: {short(file)} has the label {value}, which is none of its classes")
            value = classes[value]
        yield Label(file, _name(path, number, value), "", number)


def _of_objects(path: Path, objects: Iterable[tuple[int, Any]]) -> Iterator[Label]:
    for number, item in objects:
        if not isinstance(item, dict):
            raise DataError(f"--labels {path}, line {number}: expected an object, got {short(json.dumps(item))}")
        names = {_plain(str(key)): key for key in item}
        file, label, split = (_first(names, known) for known in (FILE_COLUMNS, LABEL_COLUMNS, SPLIT_COLUMNS))
        if file is None or label is None:
            raise _no_columns(path, number, list(map(str, item)), file is None)
        value = item[names[label]]
        if isinstance(value, dict) and "label" in value:  # FiftyOne's Classification
            value = value["label"]
        said = str(item[names[split]]).strip().lower() if split is not None else ""
        said = IS_VALID.get(said, said) if split == "is_valid" else said
        yield Label(str(item[names[file]]), _name(path, number, value), said, number)


def _rows(path: Path, text: str) -> list[tuple[int, list[str]]]:
    """Line and cells of every line that has some."""
    first = next((line for line in text.splitlines() if line.strip()), "")
    if "\t" in first:
        delimiter = "\t"
    elif path.suffix.lower() == ".txt" and "," not in first:
        lines = enumerate(text.splitlines(), start=1)
        return [(number, line.strip().rsplit(None, 1)) for number, line in lines if line.strip()]
    else:
        delimiter = "," if "," in first or ";" not in first else ";"
    reader = csv.reader(text.splitlines(keepends=True), delimiter=delimiter, strict=True, skipinitialspace=True)
    try:
        return [(reader.line_num, [cell.strip() for cell in row]) for row in reader if any(map(str.strip, row))]
    except csv.Error as error:
        raise DataError(f"--labels {path}, line {reader.line_num} is no CSV: {error}") from None


def _of_rows(path: Path, rows: list[tuple[int, list[str]]]) -> Iterator[Label]:
    """A first line that names a column of files and one of classes is a header; without one, the first two columns.

    Of two columns one name that is known is enough.
    """
    if not rows:
        return
    at: tuple[int, int, int | None]
    number, header = rows[0]
    names = {_plain(cell): position for position, cell in reversed(list(enumerate(header)))}
    file, label, split = (_first(names, known) for known in (FILE_COLUMNS, LABEL_COLUMNS, SPLIT_COLUMNS))
    if len(header) == 2 and split is None and (file is not None or (label is not None and _is_header(rows))):
        files = names[file] if file is not None else 1 - names[label or ""]
        at, rows = (files, 1 - files, None), rows[1:]
    elif file is not None and label is not None:
        at = names[file], names[label], names[split] if split is not None else None
        rows = rows[1:]
    elif file is not None or (label is not None and len(header) > 2):
        raise _no_columns(path, number, header, file is None)
    elif _is_header(rows):
        raise DataError(
            f"--labels {path}, line {number}: {short(', '.join(header))} are column names that are not known: call the "
            f"files' {FILE_COLUMNS[0]} and the classes' label, say, or leave the line out"
        )
    else:
        at = 0, 1, None
    for number, row in rows:
        if len(row) <= max(at[0], at[1]):
            raise DataError(f"--labels {path}, line {number}: {short(' '.join(row))}, expected a file and its class")
        said = row[at[2]].lower() if at[2] is not None and at[2] < len(row) else ""
        said = IS_VALID.get(said, said) if split == "is_valid" else said
        yield Label(row[at[0]], _name(path, number, row[at[1]]), said, number)


def _is_header(rows: list[tuple[int, list[str]]]) -> bool:
    """Whether the first line, of names that are not known, is none of data: it alone begins with no image's name."""
    begins = [is_image_name(row[0]) for _, row in rows]
    return len(begins) > 1 and not begins[0] and all(begins[1:])


def _name(path: Path, number: int, value: Any) -> str:
    """The class as text; empty for none."""
    if value is None:
        return ""
    if isinstance(value, str | int | float):
        text = value if isinstance(value, str) else json.dumps(value)
        return composed(text.strip())
    raise DataError(f"--labels {path}, line {number}: the label is {short(json.dumps(value))}, expected one class")


def _plain(column: str) -> str:
    return "_".join(column.strip().lower().replace("-", " ").split())


def _first(names: Mapping[str, Any], known: Sequence[str]) -> str | None:
    return next((name for name in known if name in names), None)


def _no_columns(path: Path, number: int, found: list[str], file: bool) -> DataError:
    wanted, known = ("files", FILE_COLUMNS) if file else ("classes", LABEL_COLUMNS)
    return DataError(
        f"--labels {path}, line {number}: none of {short(', '.join(found))} holds {wanted}, by its name: "
        f"call the one that does {known[0]}"
    )
