"""The paths that sources stand for: the same ones in the same order, whatever the folder holds."""

from __future__ import annotations

import glob
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cdl_deploy.data import paths as sources
from cdl_deploy.data.left_out import LeftOut
from cdl_deploy.data.paths import check_sources, expand_paths
from cdl_deploy.errors import DataError


@pytest.fixture
def folder(tmp_path):
    for name in ("b/2.JPG", "b/10.png", "a.jpeg", "c.txt", "b/.hidden.png", ".git/x.png", "z[1].png", "empty/x.txt"):
        path = tmp_path / "f" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (1, 1)).save(path, "PNG")
    return tmp_path / "f"


def expanded(folder, *sources, stdin=()):
    return [path.removeprefix(f"{folder}/") for path in expand_paths(map(str, sources), stdin)]


def test_a_thousand_folders_in_one_another(tmp_path):
    """Deeper than Python's recursion, as long as the path is one that the system takes."""
    folders = [f"{tmp_path}{'/d' * depth}" for depth in range(1, 1101)]
    for folder in folders:
        os.mkdir(folder)  # pathlib's and os.makedirs' own ways to make or remove them recurse
    image = f"{folders[-1]}/a.png"
    Image.new("L", (1, 1)).save(image)
    try:
        assert list(expand_paths([str(tmp_path)], ())) == [image]
        assert list(expand_paths([f"{tmp_path}/**/*.png"], ())) == [image]
    finally:
        os.unlink(image)
        for folder in reversed(folders):
            os.rmdir(folder)


def test_sources(folder, monkeypatch):
    everything = ["a.jpeg", "b/10.png", "b/2.JPG", "z[1].png"]
    assert expanded(folder, folder) == everything
    assert expanded(folder, folder / "c.txt", folder / "a.jpeg") == ["c.txt", "a.jpeg"]  # as named, whatever they are
    assert expanded(folder, folder / "b" / "*.png") == ["b/10.png"]
    assert expanded(folder, folder / "**" / "*.JPG") == ["b/2.JPG"]
    assert expanded(folder, folder / "b*") == ["b/10.png", "b/2.JPG"]
    assert expanded(folder, folder / "z[1].png") == ["z[1].png"]  # a file, not a pattern
    assert expanded(folder, "-", folder / "b", stdin=["x y.png\n", "\n", "ü.png\r\n", "last"]) == [
        "x y.png", "ü.png", "last", "b/10.png", "b/2.JPG",
    ]  # fmt: skip
    (folder / "b" / "loop").symlink_to(folder)
    assert expanded(folder, folder) == everything


def test_sources_that_name_nothing(folder):
    for source, message in (
        (folder / "none.jpg", "none.jpg: no such file or folder"),
        (folder / "*.gif", r"\*.gif: no file matches this pattern"),
        (folder / "empty", r"empty: no images in this folder \(looked for .bmp, .gif, .jpeg"),
    ):
        with pytest.raises(DataError, match=message):
            check_sources([str(folder), "-", str(source)])
    check_sources([str(folder), "-"])


names = st.text("ab.[*", min_size=1, max_size=3).filter(lambda name: name not in (".", ".."))
trees = st.recursive(st.none(), lambda inner: st.dictionaries(names, inner, max_size=4), max_leaves=14)


def plant(root, tree):
    """Nested dicts become folders, None an image."""
    root.mkdir()
    for name, inner in (tree or {}).items():
        if inner is None:
            (root / f"{name}.png").touch()
        else:
            plant(root / f"{name}d", inner)


def all_images(folder):
    """Slowly, all names at once: what `expand_paths` gives in portions."""
    for entry in sorted(Path(folder).iterdir(), key=lambda path: path.name):
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from all_images(entry)
        else:
            yield str(entry)


@given(tree=trees, at_once=st.integers(1, 3))
@settings(max_examples=60, deadline=None)
def test_folders_in_portions(tree, at_once):
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "NAMES_AT_ONCE", at_once)
        plant(Path(folder) / "f", tree)
        expected = list(all_images(f"{folder}/f"))
        if expected:
            assert list(expand_paths([f"{folder}/f"])) == expected
        else:
            with pytest.raises(DataError, match="no images in this folder"):
                check_sources([f"{folder}/f"])


parts = st.lists(
    st.sampled_from(["**", "*", "a*", "*.png", "?.png", "[ab]*", "ad", "bd", "*d"]), min_size=1, max_size=4
)


@given(tree=trees, parts=parts)
@settings(max_examples=150, deadline=None)
def test_patterns_match_what_glob_matches(tree, parts):
    """Files: the same as Python's. Folders are searched, so patterns that can end in one are left out."""
    pattern = "/".join([*parts, "*.png"])
    with tempfile.TemporaryDirectory() as folder:
        plant(Path(folder) / "f", tree)
        expected = set(glob.glob(f"{glob.escape(folder)}/f/{pattern}", recursive=True))
        try:
            found = list(expand_paths([f"{folder}/f/{pattern}"]))
        except DataError:
            found = []
        assert set(found) == expected
        if parts.count("**") < 2:
            assert len(found) == len(expected)


def test_standard_input_as_windows_and_find_write_it(folder):
    assert list(expand_paths(["-"], ["\ufeffa.jpg\r\n", "b.jpg\n", "\n"])) == ["a.jpg", "b.jpg"]
    pieces = ["a.jpg\0b\n.jpg\0c", ".jpg\0"]
    assert list(expand_paths(["-"], pieces, separator="\0")) == ["a.jpg", "b\n.jpg", "c.jpg"]


def test_what_is_no_image_is_counted(tmp_path):
    for name in ("a.jpg", "b.TXT", "more/c.txt", "more/d", ".hidden", "Thumbs.db"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    left_out = LeftOut()
    assert len(list(expand_paths([str(tmp_path)], left_out=left_out))) == 1
    assert left_out.text() == "3 files were left out, no images by their names: 2 .txt, 1 no suffix"


def test_paths_that_end_in_nul_without_being_said_to(folder):
    with pytest.raises(DataError, match="standard input has NUL characters in it: add -0 where they end the paths"):
        list(expand_paths(["-"], ["a.jpg\0b.jpg\0"]))
