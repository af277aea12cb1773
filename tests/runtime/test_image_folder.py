"""The images a model is tested on: the same that training leaves out."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from PIL import Image

from cdl_deploy.data.folder import find_splits, find_test_images, images_below
from cdl_deploy.data.images import SUFFIXES
from cdl_deploy.data.left_out import LeftOut
from cdl_deploy.data.paths import expand_paths
from cdl_deploy.errors import DataError
from tests.runtime.conftest import nobody


def write(folder: Path, **counts: int) -> None:
    for name, count in counts.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            Image.new("RGB", (2, 2)).save(folder / name / f"{i}.png")


@pytest.mark.parametrize("name", ["test", "val"])
def test_a_test_folder_beside_train(tmp_path, name):
    write(tmp_path / "train", ant=3, bee=3)
    write(tmp_path / name, bee=2)  # a model that knows more can be tested on some
    found = find_test_images(tmp_path, None)
    assert found == {"bee": [tmp_path / name / "bee" / f"{i}.png" for i in range(2)]}


def test_one_tree_as_a_whole_or_its_held_out_share(tmp_path):
    write(tmp_path, ant=10, bee=5)
    assert {name: len(files) for name, files in find_test_images(tmp_path, None).items()} == {"ant": 10, "bee": 5}
    train, held_out = find_splits(tmp_path, 0.2)
    assert find_test_images(tmp_path, 0.2) == held_out
    assert not {file for files in held_out.values() for file in files} & {f for files in train.values() for f in files}


@pytest.mark.parametrize("suffix", sorted(SUFFIXES))
def test_training_and_prediction_take_the_same_files(tmp_path, suffix):
    for name in ("ant", "bee"):
        write(tmp_path, **{name: 1})
        (tmp_path / name / "0.png").rename(tmp_path / name / f"0{suffix.upper()}")
        (tmp_path / name / "notes.txt").write_text("no image")
    assert find_test_images(tmp_path, None) == {n: [tmp_path / n / f"0{suffix.upper()}"] for n in ("ant", "bee")}
    assert sorted(expand_paths([str(tmp_path)])) == [str(tmp_path / n / f"0{suffix.upper()}") for n in ("ant", "bee")]


@pytest.mark.parametrize(
    ("folders", "holdout", "message"),
    [
        (["train"], None, "has train/ but neither test/ nor val/: add one, or give"),
        (["train", "test"], 0.2, "has its own train/ folder, so --holdout cannot apply: leave it out"),
        ([], None, "is no folder: give an image folder, or 'digits' for the embedded data"),
    ],
)
def test_folders_without_test_images(tmp_path, folders, holdout, message):
    for name in folders:
        write(tmp_path / "photos" / name, ant=1)
    with pytest.raises(DataError, match=message):
        find_test_images(tmp_path / "photos", holdout)


def test_an_empty_tree(tmp_path):
    (tmp_path / "ant").mkdir()
    with pytest.raises(DataError, match=re.escape(f"{tmp_path} has no images: expected folders named by class")):
        find_test_images(tmp_path, None)


@pytest.mark.parametrize("locked", ["photos", "photos/test", "photos/test/ant", "photos/test/ant/more"])
def test_a_folder_without_rights(shared, locked):
    """It is named, wherever it is: a class must not be missing in silence."""
    write(shared / "photos/train", ant=1, bee=1)
    write(shared / "photos/test", ant=1, bee=1)
    (shared / "photos/test/ant/more").mkdir()
    (shared / locked).chmod(0)
    try:
        with nobody(), pytest.raises(DataError) as by_class:
            find_test_images(shared / "photos", None)
        with nobody(), pytest.raises(DataError) as below:
            images_below(shared / "photos")
    finally:
        (shared / locked).chmod(0o755)
    for caught in (by_class, below):
        assert re.fullmatch(f"cannot read {re.escape(str(shared / locked))}.*: Permission denied", str(caught.value))


def test_what_notebooks_and_archives_leave_is_no_image(tmp_path):
    write(tmp_path, ant=4, bee=4)
    for hidden in ("ant/.ipynb_checkpoints", "__MACOSX/ant", "__MACOSX/bee", "bee/__MACOSX", ".thumbnails"):
        write(tmp_path / hidden, more=2)
        Image.new("RGB", (2, 2)).save(tmp_path / hidden / "0.png")
    (tmp_path / "ant/._0.png").write_bytes(b"resource fork")
    train, test = find_splits(tmp_path, 0.25)
    assert {name: len(files) for name, files in train.items()} == {"ant": 3, "bee": 3}
    assert {name: len(files) for name, files in test.items()} == {"ant": 1, "bee": 1}
    assert len(images_below(tmp_path)) == 8


def test_a_class_may_be_called_as_a_split_is(tmp_path):
    """CIFAR-100, COCO and VOC have trains: a split holds folders, a class holds images."""
    write(tmp_path, bus=5, car=5, train=5, test=5)
    train, _ = find_splits(tmp_path, 0.2)
    assert sorted(train) == ["bus", "car", "test", "train"]
    assert sorted(find_test_images(tmp_path, None)) == ["bus", "car", "test", "train"]
    with pytest.raises(DataError, match=r"has no train/ folder: add --holdout 0\.2"):
        find_splits(tmp_path, None)


@pytest.mark.parametrize(
    ("training", "testing"), [("Train", "Test"), ("Training", "Testing"), ("train", "valid"), ("TRAIN", "validation")]
)
def test_splits_have_many_names(tmp_path, training, testing):
    write(tmp_path / training, ant=3, bee=3)
    write(tmp_path / testing, ant=2, bee=2)
    train, test = find_splits(tmp_path, None)
    assert [len(files) for files in (*train.values(), *test.values())] == [3, 3, 2, 2]
    assert find_test_images(tmp_path, None) == test


def test_test_images_alone(tmp_path):
    write(tmp_path / "test", ant=2, bee=2)
    assert sorted(find_test_images(tmp_path, None)) == ["ant", "bee"]


def test_what_storage_and_systems_leave_is_no_image_and_no_class(tmp_path):
    write(tmp_path, ant=4, bee=4)
    for left in ("@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found", "__pycache__"):
        (tmp_path / left).mkdir()
        write(tmp_path / "ant" / left, thumb=2)
    assert {name: len(files) for name, files in find_test_images(tmp_path, None).items()} == {"ant": 4, "bee": 4}
    assert len(list(expand_paths([str(tmp_path)]))) == 8


def test_links_are_followed_to_files_and_counted_to_folders(tmp_path):
    """A disk that is not there leaves links to nothing: images that cannot be read, and not no images."""
    write(tmp_path / "photos", ant=2, bee=2)
    write(tmp_path / "other", more=3)
    (tmp_path / "photos/ant/more").symlink_to(tmp_path / "other/more")
    (tmp_path / "photos/ant/gone.png").symlink_to(tmp_path / "other/gone.png")
    found, walked = LeftOut(), LeftOut()
    ants = find_test_images(tmp_path / "photos", None, left_out=found)["ant"]
    assert [path.name for path in ants] == ["0.png", "1.png", "gone.png"]
    assert found.text().endswith("1 (links to folders) (class 'ant': 1 (links to folders))")
    assert list(expand_paths([str(tmp_path / "photos/ant")], left_out=walked)) == list(map(str, ants))
    assert walked.total == 1


def test_a_folder_within_a_class_whose_name_is_no_utf8(tmp_path):
    write(tmp_path, ant=2, bee=2)
    odd = Path(os.fsdecode(os.fsencode(tmp_path / "ant") + b"/\xe4"))
    odd.mkdir()
    (tmp_path / "ant/0.png").rename(odd / "0.png")
    with pytest.raises(DataError, match=r"the name \\xe4 in .*/ant is not UTF-8: rename it"):
        find_test_images(tmp_path, None)


@pytest.mark.parametrize("other", ["ant ", "ANT", "a\u200bnt", "ant\u00a0"])
def test_classes_that_nobody_can_tell_apart(tmp_path, other):
    write(tmp_path, ant=1, bee=1, **{other: 1})
    with pytest.raises(DataError, match="differ in case or spaces alone: rename one"):
        find_test_images(tmp_path, None)


def test_a_split_that_is_not_needed_is_said(tmp_path):
    for split, count in (("train", 3), ("val", 4), ("test", 2)):
        write(tmp_path / split, ant=count, bee=count)
    left_out = LeftOut()
    find_splits(tmp_path, None, left_out=left_out)
    assert left_out.text() == "8 images were left out, of the split 'val'"
    assert LeftOut.of(left_out.to_dict()) == left_out
