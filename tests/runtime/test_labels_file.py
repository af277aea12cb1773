"""Labels beside the images, as Hugging Face, Kaggle, FiftyOne and Tiny-ImageNet have them; and what is left out."""

from __future__ import annotations

import json
import os

import pytest
from PIL import Image

from cdl_deploy.data.folder import find_splits, find_test_images
from cdl_deploy.data.left_out import LeftOut
from cdl_deploy.errors import DataError

NAMES = [f"{name}{i}" for name in ("ant", "bee") for i in range(4)]
CLASSES = {name: name[:3] for name in NAMES}


@pytest.fixture
def flat(tmp_path):
    """Eight images in one folder."""
    for name in NAMES:
        (tmp_path / "flat").mkdir(exist_ok=True)
        Image.new("RGB", (2, 2)).save(tmp_path / "flat" / f"{name}.png")
    return tmp_path / "flat"


def found(files):
    return {name: [path.name for path in paths] for name, paths in files.items()}


WANTED = {"ant": [f"ant{i}.png" for i in range(4)], "bee": [f"bee{i}.png" for i in range(4)]}
FORMATS = {
    "metadata.csv": "file_name,label\n" + "".join(f"{n}.png,{c}\n" for n, c in CLASSES.items()),
    "kaggle.csv": "id,breed\n" + "".join(f"{n},{c}\n" for n, c in CLASSES.items()),
    "excel.csv": "\ufeffImage Name;Species\r\n" + "".join(f"{n}.png;{c}\r\n" for n, c in CLASSES.items()),
    "cells.csv": "Filename;Cell Type\n" + "".join(f"{n}.png;{c}\n" for n, c in CLASSES.items()),
    "photo.csv": "what,label\n" + "".join(f"{n}.png,{c}\n" for n, c in CLASSES.items()),
    "turned.csv": "genus,image\n" + "".join(f"{c},{n}.png\n" for n, c in CLASSES.items()),
    "bare.csv": "".join(f"{n}.png,{c}\n" for n, c in CLASSES.items()),
    "val_annotations.txt": "".join(f"{n}.png\t{c}\t0\t0\t62\t62\n" for n, c in CLASSES.items()),
    "list.txt": "".join(f"{n}.png {c}\n" for n, c in CLASSES.items()),
    "metadata.jsonl": "".join(json.dumps({"file_name": f"{n}.png", "label": c}) + "\n" for n, c in CLASSES.items()),
    "labels.json": json.dumps(
        {"classes": ["bee", "ant"], "labels": {n: ["bee", "ant"].index(c) for n, c in CLASSES.items()}}
    ),
    "map.json": json.dumps({f"{n}.png": c for n, c in CLASSES.items()}),
    "list.json": json.dumps([{"filepath": f"./{n}.png", "label": {"label": c}} for n, c in CLASSES.items()]),
}


@pytest.mark.parametrize("name", FORMATS)
def test_formats(flat, name):
    (flat.parent / name).write_text(FORMATS[name], encoding="utf-8")
    assert found(find_test_images(flat, None, str(flat.parent / name))) == WANTED
    train, test = find_splits(flat, 0.25, str(flat.parent / name))
    assert [len(files) for files in (*train.values(), *test.values())] == [3, 3, 1, 1]
    assert find_test_images(flat, 0.25, str(flat.parent / name)) == test


def test_class_names_are_text_as_it_is_written(flat):
    names = ["0", "00", "no", "1.0", "e\u0301", "\u00e9", "7", "7"]
    (flat / "l.csv").write_text("file,label\n" + "".join(f"{n}.png,{c}\n" for n, c in zip(NAMES, names, strict=True)))
    assert sorted(find_test_images(flat, None, str(flat / "l.csv"))) == ["0", "00", "1.0", "7", "no", "\u00e9"]


def test_splits_from_a_column_from_folders_and_from_a_file_in_each(flat):
    lines = [f"{n}.png,{c},{'Test' if n.endswith('3') else 'train'}\n" for n, c in CLASSES.items()]
    (flat / "l.csv").write_text("file,label,split\n" + "".join(lines))
    train, test = find_splits(flat, None, "l.csv")
    assert found(test) == {"ant": ["ant3.png"], "bee": ["bee3.png"]}
    assert [len(files) for files in train.values()] == [3, 3]
    for n in NAMES:
        part = flat / ("test" if n.endswith("3") else "train")
        part.mkdir(exist_ok=True)
        (flat / f"{n}.png").rename(part / f"{n}.png")
        with (part / "metadata.csv").open("a") as file:
            file.write(f"{n}.png,{CLASSES[n]}\n")
    with pytest.raises(DataError, match=r"has no folder a class: if metadata\.csv in it says .*, add --labels"):
        find_splits(flat, 0.2)
    assert tuple(map(found, find_splits(flat, None, "metadata.csv"))) == (found(train), found(test))
    (flat / "l.csv").write_text(
        "".join(f"{'test' if n.endswith('3') else 'train'}/{n}.png,{CLASSES[n]}\n" for n in NAMES)
    )
    assert tuple(map(found, find_splits(flat, None, "l.csv"))) == (found(train), found(test))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("l.csv", "ant0.png,ant\ngone.png,ant\n", r"names 1 of 2 images that .*, such as gone\.png \(line 2\)"),
        ("l.csv", "ant0.png,ant\nant0.png,bee\n", r"line 2: ant0\.png is 'bee', and 'ant' in line 1: expected"),
        ("l.csv", "file_name,width,height\nant0.png,2,2\n", "none of file_name, width, height holds classes"),
        ("l.csv", "photo,what\nant0.png,ant\n", "line 1: photo, what are column names that are not known: call"),
        ("l.csv", "photo,label,n\nant0.png,ant,1\n", "none of photo, label, n holds files, by its name: call"),
        ("l.csv", "photo,what,how\nant0.png,ant,1\n", "photo, what, how are column names that are not known"),
        ("l.csv", "uuid,what\nant0,ant\n", "there is no image uuid in .*; if it is a header, call the files' column"),
        ("l.csv", "ant0.png\n", r"line 1: ant0\.png, expected a file and its class"),
        ("l.csv", "", "names no image"),
        ("l.csv", 'ant0.png,"ant\n', "line 1 is no CSV"),
        ("l.jsonl", '{"file_name": "ant0.png", "label": ["ant", "bee"]}', "the label is .*, expected one class"),
        ("l.jsonl", "{", "line 1 is not JSON"),
        ("l.json", '{"images": [], "annotations": []}', "holds COCO annotations, which are objects within images"),
        ("l.json", '{"classes": ["ant"], "labels": {"ant0": 1}}', "ant0 has the label 1, which is none of its classes"),
        ("l.xml", "<a/>", r"expected a file ending in \.csv"),
        ("l.csv", "ant0.png,a/b\n", "class 'a/b' has a '/'"),
        ("l.csv", "/etc/passwd,ant\n", "names 1 of 1 images that are not in"),
        ("l.csv", "../flat/../secret.png,ant\n", "names 1 of 1 images that are not in"),
    ],
)  # fmt: skip
def test_files_that_are_none(flat, name, text, message):
    (flat / name).write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        find_test_images(flat, None, str(flat / name))
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there(flat):
    with pytest.raises(DataError, match=r"--labels l\.csv does not exist, nor does .*flat/l\.csv: give the"):
        find_splits(flat, 0.2, "l.csv")


def test_a_layout_with_labels_is_named(flat):
    (flat / "labels.csv").write_text("")
    with pytest.raises(DataError, match=r"has no images: .*; if labels\.csv says what they show, add --labels"):
        find_test_images(flat, None)
    (flat.parent / "val_annotations.txt").write_text("")
    flat.rename(flat.parent / "images")
    with pytest.raises(DataError, match=r"no folder a class, only 'images': if val_annotations\.txt says"):
        find_test_images(flat.parent, None)


def test_tiny_imagenet_has_folders_to_train_with_and_a_file_to_test_with(flat):
    root = flat.parent / "tiny"
    for name in CLASSES:
        (root / "train" / name[:3] / "images").mkdir(parents=True, exist_ok=True)
        (flat / f"{name}.png").rename(root / "train" / name[:3] / "images" / f"{name}.png")
    for folder in ("val", "test"):  # test/ has no labels, and its name comes first
        (root / folder / "images").mkdir(parents=True)
        for name in ("ant", "bee"):
            Image.new("RGB", (2, 2)).save(root / folder / "images" / f"{name}.png")
    (root / "val/val_annotations.txt").write_text("ant.png\tant\t0\t0\t9\t9\nbee.png\tbee\t0\t0\t9\t9\n")
    advice = (
        r"test has no folder a class, only 'images': if val_annotations\.txt in .*val says .*, add --labels val_ann"
    )
    for find in (find_splits, find_test_images):
        with pytest.raises(DataError, match=advice):
            find(root, None)
    train, test = find_splits(root, None, "val_annotations.txt")
    assert found(train) == WANTED
    assert found(test) == {"ant": ["ant.png"], "bee": ["bee.png"]}
    assert test["ant"][0].parent == root / "val/images"
    assert found(find_test_images(root, None, "val_annotations.txt")) == found(test)


def test_what_is_left_out_is_counted(flat):
    (flat / "l.csv").write_text("ant0.png,ant\nbee0.png,\n")
    (flat / "a.pdf").touch()
    left_out = LeftOut()
    find_test_images(flat, None, "l.csv", left_out)
    assert left_out.text() == (
        "7 images were left out, of which the labels file says nothing; 1 file was left out, no images by their names: "
        "1 .pdf"
    )
    assert LeftOut.of(left_out.to_dict()) == left_out


def test_what_is_left_out_of_folders_is_counted_by_class(tmp_path):
    for name in ("ant", "bee"):
        (tmp_path / name / "more").mkdir(parents=True)
        Image.new("RGB", (2, 2)).save(tmp_path / name / "0.png")
    for file in ("ant/a.txt", "ant/more/b.TXT", "ant/c.pdf", "bee/Thumbs.db", "README", "bee/.hidden", "loose.png"):
        (tmp_path / file).touch()
    left_out = LeftOut()
    find_test_images(tmp_path, None, None, left_out)
    assert left_out.to_dict() == {"": {"no suffix": 1}, "ant": {".pdf": 1, ".txt": 2}, "/beside": {"images": 1}}
    assert LeftOut.of(left_out.to_dict()) == left_out
    assert left_out.text() == (
        "1 image was left out, beside the folders of the classes and in none of them; "
        "4 files were left out, no images by their names: 2 .txt, 1 .pdf, 1 no suffix (class 'ant': 2 .txt, 1 .pdf)"
    )
    (tmp_path / "cat").mkdir()
    with pytest.raises(DataError, match=r"class 'cat' in .* has no images \(it is empty\): a folder here is a class"):
        find_test_images(tmp_path, None)
    (tmp_path / "cat/a.doc").touch()
    with pytest.raises(DataError, match=r"has no images \(its files are 1 \.doc\)"):
        find_test_images(tmp_path, None)


def test_one_class_spelt_in_two_ways(tmp_path):
    for i, name in enumerate(("caf\u00e9", "cafe\u0301", "Tea")):
        (tmp_path / name).mkdir()
        Image.new("RGB", (2, 2)).save(tmp_path / name / f"{i}.png")
    assert {name: len(files) for name, files in find_test_images(tmp_path, None).items()} == {"caf\u00e9": 2, "Tea": 1}
    (tmp_path / "tea").mkdir()
    Image.new("RGB", (2, 2)).save(tmp_path / "tea/0.png")
    with pytest.raises(DataError, match=r"classes 'Tea' and 'tea' in .* differ in case or spaces alone: rename one"):
        find_test_images(tmp_path, None)


@pytest.mark.parametrize("where", ["folder", "class", "image"])
def test_names_that_are_not_utf_8_are_refused_at_first(tmp_path, where):
    """No record could hold them: nothing is trained before that is known."""
    odd = os.fsdecode(b"caf\xe9")
    root = tmp_path / (odd if where == "folder" else "photos")
    (root / (odd if where == "class" else "ant")).mkdir(parents=True)
    Image.new("RGB", (2, 2)).save(root / (odd if where == "class" else "ant") / f"{odd if where == 'image' else 0}.png")
    with pytest.raises(DataError, match=r"the name caf\\xe9(\.png)? in .* is not UTF-8: rename it"):
        find_splits(root, 0.2)


@pytest.mark.parametrize("start", ["/home/me/", "C:\\data\\", "../"])
def test_paths_of_another_machine(flat, start):
    (flat / "more").mkdir()
    (flat / "ant0.png").rename(flat / "more/ant0.png")
    lines = [f"{start}flat/more/ant0.png,ant"] + [f"{start}flat/{n}.png,{c}" for n, c in CLASSES.items() if n != "ant0"]
    (flat / "l.csv").write_text("\n".join(lines))
    assert found(find_test_images(flat, None, "l.csv")) == {
        "ant": [*WANTED["ant"][1:], "ant0.png"],
        "bee": WANTED["bee"],
    }


def test_fastai_says_which_images_are_valid(flat):
    lines = [f"{n}.png,{c},{n.endswith('3')}" for n, c in CLASSES.items()]
    (flat / "l.csv").write_text("\n".join(["fname,labels,is_valid", *lines]))
    train, test = find_splits(flat, None, "l.csv")
    assert found(test) == {"ant": ["ant3.png"], "bee": ["bee3.png"]}
    assert [len(files) for files in train.values()] == [3, 3]
