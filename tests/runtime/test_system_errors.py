"""What the system refuses, in one line: full disks, closed streams, and failures that say nothing about a file."""

from __future__ import annotations

import builtins
import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cdl_deploy.data import images, paths
from cdl_deploy.data.folder import find_test_images
from cdl_deploy.data.images import load_image
from cdl_deploy.data.sources import image_folder
from cdl_deploy.errors import DataError, PassingError


@pytest.mark.parametrize(
    ("redirection", "error"),
    [
        (">/dev/full", "error: standard output: No space left on device\n"),
        (">&-", "error: standard output: Bad file descriptor\n"),
        (">/dev/full 2>/dev/full", ""),
        ("<&- >&- 2>&-", ""),
    ],
)
def test_an_answer_that_cannot_be_printed(redirection, error):
    done = subprocess.run(["sh", "-c", f"{sys.executable} -m cdl_deploy --version {redirection}"], capture_output=True)
    assert (done.returncode, done.stdout, done.stderr.decode()) == (2, b"", error)


def test_who_stands_between_a_stream_and_us_changes_no_message(cdl, monkeypatch, model_path):
    """As wandb does, where it is imported."""

    def full(text):
        raise OSError(errno.ENOSPC, "No space left on device")

    for name in ("write", "flush"):
        monkeypatch.setattr(sys.stdout, name, full if name == "write" else lambda: None)
    code, _, err = cdl("inspect", model_path)
    assert (code, err) == (2, "error: standard output: No space left on device\n")


def test_no_file_gets_the_number_of_a_closed_stream():
    """In a child: a file that is opened first must not be where messages go."""
    code = (
        "import os, sys\nfrom cdl_deploy.cli.streams import open_closed_streams\nopen_closed_streams()\n"
        "os._exit(0 if os.open(os.devnull, os.O_RDONLY) > 2 and None not in (sys.stdin, sys.stdout) else 1)"
    )
    assert subprocess.run(["sh", "-c", f"{sys.executable} -c '{code}' <&- >&- 2>&-"]).returncode == 0


def test_paths_from_a_closed_standard_input(cdl, model_path, monkeypatch):
    class Closed:
        def __iter__(self):
            raise OSError(errno.EBADF, "Bad file descriptor")

    monkeypatch.setattr(sys, "stdin", Closed())
    code, _, err = cdl("predict", model_path, "-", "--format", "csv")
    assert (code, err) == (2, "error: standard input: Bad file descriptor\n")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(errno.EROFS, "Read-only file system", "/mnt/run"), "/mnt/run: Read-only file system"),
        (OSError(errno.ENFILE, "Too many open files in system"), "Too many open files in system"),
        (MemoryError(), "there is not enough memory for this: close other programs, or take a machine with more"),
    ],
)
def test_whatever_meets_an_error_of_the_system_says_so_in_one_line(cdl, monkeypatch, error, line):
    def refuse(run):
        raise error

    monkeypatch.setattr("cdl_deploy.cli.runs.latest_content", refuse)
    assert cdl("runs", "run") == (2, "", f"error: {line}\n")


def failing(monkeypatch, number: int, victim: Path, times: int = 1000) -> None:
    """Opening `victim` fails with this error number, so many times."""
    opened, left = builtins.open, times

    def open_(file, *given, **more):
        nonlocal left
        if str(file) == str(victim) and left:
            left -= 1
            raise OSError(number, os.strerror(number))
        return opened(file, *given, **more)

    monkeypatch.setattr(builtins, "open", open_)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE, errno.EIO])
def test_a_passing_failure_is_no_damaged_image(number, cdl, model_path, photos, tmp_path, monkeypatch):
    """Prediction stops there, and goes on there."""
    out = tmp_path / "rows.jsonl"
    words = ("predict", model_path, *photos.values(), "--output", out, "--threads", 1, "--batch-size", 1)
    last = list(photos.values())[-1]
    with monkeypatch.context() as patch:
        failing(patch, number, last)
        code, _, err = cdl(*words)
    reason = f"{last}: {os.strerror(number)}, which is no fault of the image: try again later"
    assert (code, err.splitlines()[-1]) == (
        2,
        f"error: {reason}; the rows so far are in {out}.part, and --resume continues them",
    )
    assert not out.exists()
    code, _, err = cdl(*words, "--resume")
    assert code == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["path"] for row in rows] == [str(path) for path in photos.values()]
    assert not any("error" in row for row in rows)


def test_skip_bad_does_not_skip_what_cannot_be_had_now(tmp_path, monkeypatch):
    for split in ("train", "test"):
        for name in ("a", "b"):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(2):
                Image.new("RGB", (4, 4)).save(tmp_path / split / name / f"{i}.png")
    failing(monkeypatch, errno.EMFILE, tmp_path / "train" / "b" / "1.png")
    with pytest.raises(PassingError, match=r"1\.png: Too many open files"):
        image_folder(tmp_path, skip_bad=True)


def test_folders_that_cannot_be_listed_now(tmp_path, monkeypatch):
    """They are not passed over: what is in them would be missing, unnoticed."""
    (tmp_path / "a").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "a" / "0.png")

    def refuse(path):
        raise OSError(errno.ESTALE, "Stale file handle", str(path))

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(PassingError, match="Stale file handle"):
        list(paths._walk(str(tmp_path)))
    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(PassingError, match="Stale file handle"):
        find_test_images(tmp_path, None)


def test_memory_that_is_short_for_a_moment_is_waited_for(photos, monkeypatch):
    load, failures = images._load_image, [MemoryError, MemoryError]

    def short(source):
        if failures:
            raise failures.pop()
        return load(source)

    monkeypatch.setattr(images, "_load_image", short)
    with pytest.raises(DataError, match="it asks for more memory than any photograph needs"):  # there is plenty
        load_image(photos["red"])
    failures[:] = [MemoryError]
    assert load_image(photos["red"]).mode == "RGB"
    failures[:] = [MemoryError, MemoryError]
    monkeypatch.setattr(images, "_memory_is_short", lambda: True)
    with pytest.raises(PassingError, match="not enough memory to decode it"):
        load_image(photos["red"])


def test_what_pil_says_of_memory_is_understood(photos, monkeypatch):
    def short(image, name):
        raise OSError("out of memory error when reading image file")

    monkeypatch.setattr(images, "_upright_rgb", short)
    monkeypatch.setattr(np, "empty", lambda *given, **more: (_ for _ in ()).throw(MemoryError))
    with pytest.raises(PassingError, match="not enough memory"):
        load_image(photos["red"])
