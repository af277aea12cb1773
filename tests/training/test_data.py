"""Sources, tasks, transforms and batches."""

from __future__ import annotations

import errno
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from cdl_deploy.data.images import load_image
from cdl_deploy.data.preprocessing import ResizeCrop
from cdl_deploy.data.sources import digits, fingerprint, image_folder, open_source
from cdl_deploy.errors import DataError, PassingError, RunError
from cdl_deploy.run.config import DataConfig
from cdl_deploy.run.record_parts import FinishedTask, TaskPlan
from cdl_deploy.training.data.loading import LoadedImages, SeededBatches, batches, steps_of
from cdl_deploy.training.data.task_data import TaskData
from cdl_deploy.training.data.tasks import make_tasks
from cdl_deploy.training.data.transforms import evaluation_transform, training_transform
from tests.records import finished_task
from tests.training.conftest import COLOURS, write_images


def test_digits_are_scikit_learns_with_a_fixed_held_out_split():
    from sklearn.datasets import load_digits

    source, again = digits(), digits()
    assert source.classes == tuple("0123456789")
    assert len(source.train.items) + len(source.test.items) == 1797
    assert np.bincount(source.test.labels).min() >= 35
    assert fingerprint(source.test.items) == fingerprint(again.test.items)
    together = np.stack([*source.train.items, *source.test.items]).astype(int)
    original = np.round(load_digits().images * 255 / 16).astype(int)
    assert np.array_equal(np.sort(together.sum((1, 2))), np.sort(original.sum((1, 2))))
    seen = {item.tobytes() for item in source.train.items}
    assert not any(item.tobytes() in seen for item in source.test.items)


def test_image_folder_agrees_with_torchvision(photos):
    source = image_folder(photos)
    for split, name in ((source.train, "train"), (source.test, "test")):
        theirs = ImageFolder(photos / name)
        assert list(source.classes) == theirs.classes
        assert [(str(i), int(label)) for i, label in zip(split.items, split.labels, strict=True)] == theirs.samples


def test_one_tree_is_split_by_holdout(tmp_path):
    write_images(tmp_path, {"ant": 10, "bee": 2})
    source = image_folder(tmp_path, holdout=0.2)
    assert np.bincount(source.train.labels).tolist() == [8, 1]
    assert np.bincount(source.test.labels).tolist() == [2, 1]
    assert not set(source.train.items) & set(source.test.items)
    assert image_folder(tmp_path, holdout=0.2).test.items == source.test.items


def test_val_serves_as_test(photos):
    (photos / "test").rename(photos / "val")
    assert len(image_folder(photos).test.items) == 12


def _no_images(root):
    for name in COLOURS:
        for file in (root / "train" / name).iterdir():
            file.unlink()


BAD_FOLDERS = [
    (_no_images, {}, "has no images: expected folders named by class with files ending in"),
    (
        lambda r: shutil.rmtree(r / "test" / "bee"),
        {},
        "class 'bee' has images in .*train but none in .*test: add some test",
    ),
    (lambda r: shutil.rmtree(r / "train" / "bee"), {}, "class 'bee' has images in .*test but none in .*train"),
    (lambda r: shutil.rmtree(r / "test"), {}, "has train/ but neither test/ nor val/"),
    (lambda r: None, {"holdout": 0.2}, "has its own train/ folder, so --holdout cannot apply"),
    (lambda r: (r / "train/cat/2.png").write_bytes(b"no image"), {}, "cannot read image .*cat/2.png.*--skip-bad"),
    (lambda r: shutil.rmtree(r), {}, "is no folder: give an image folder, or 'digits'"),
]


@pytest.mark.parametrize(("damage", "options", "message"), BAD_FOLDERS)
def test_bad_folders_are_one_clear_line(photos, damage, options, message):
    damage(photos)
    with pytest.raises(DataError, match=message) as error:
        open_source(str(photos), options.get("holdout"), skip_bad=False)
    assert "\n" not in str(error.value)


def test_one_tree_without_holdout_says_so(photos):
    with pytest.raises(DataError, match=r"has no train/ folder: add --holdout 0\.2"):
        image_folder(photos / "train")


def test_a_single_image_cannot_be_held_out(tmp_path):
    write_images(tmp_path, {"ant": 3, "bee": 1})
    with pytest.raises(DataError, match=r"class 'bee' in .* has one image"):
        image_folder(tmp_path, holdout=0.5)


def test_skip_bad_goes_on_and_reports(photos):
    broken = photos / "train/cat/2.png"
    broken.write_bytes(broken.read_bytes()[:-40])
    source = image_folder(photos, skip_bad=True)
    assert source.skipped == (str(broken),)
    assert len(source.train.items) == 23


def test_skip_bad_does_not_lose_a_class_silently(photos):
    for file in (photos / "test" / "cat").iterdir():
        file.write_bytes(b"")
    with pytest.raises(DataError, match="class 'cat' has no readable image left"):
        image_folder(photos, skip_bad=True)


def test_exif_rotation_is_applied(tmp_path):
    image = Image.new("RGB", (30, 10))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "rotated.jpg", exif=exif)
    assert load_image(tmp_path / "rotated.jpg").size == (10, 30)


CLASSES = tuple(f"class {i:02d}" for i in range(10))


@given(st.integers(1, 10), st.integers(0, 5))
def test_tasks_deal_every_class_out_once_and_evenly(count, seed):
    tasks = make_tasks(CLASSES, DataConfig(tasks=count), seed)
    assert sorted(name for task in tasks for name in task) == list(CLASSES)
    assert max(map(len, tasks)) - min(map(len, tasks)) <= 1


def test_class_order_follows_the_seed_or_the_alphabet():
    shuffled = make_tasks(CLASSES, DataConfig(tasks=5), 0)
    assert shuffled == make_tasks(CLASSES, DataConfig(tasks=5), 0)
    assert shuffled != make_tasks(CLASSES, DataConfig(tasks=5), 1)
    natural = make_tasks(CLASSES, DataConfig(classes_per_task=4, class_order="natural"), 0)
    assert natural == (CLASSES[:4], CLASSES[4:8], CLASSES[8:])


def test_natural_order_counts():
    names = tuple(sorted(["1", "2", "10", "11", "a", "a10", "a9b", "007"]))
    (order,) = make_tasks(names, DataConfig(tasks=1, class_order="natural"), 0)
    assert order == ("1", "2", "007", "10", "11", "a", "a9b", "a10")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("order.txt", "dog\r\n\ncat\n x: y \n"),
        ("order.yaml", "- dog\n- cat\n- 'x: y'\n"),
        ("order.json", '["dog", "cat", "x: y"]'),
    ],
)
def test_a_file_lists_the_classes_in_their_order(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    config = DataConfig(tasks=2, class_order=str(tmp_path / name))
    assert make_tasks(("cat", "dog", "x: y"), config, 0) == (("dog", "cat"), ("x: y",))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("o.txt", "cat\nowl\ndgo", "o.txt: no class 'dgo' in the data; did you mean 'dog'"),
        ("o.txt", "cat\ndog\ncat\nowl", "o.txt: class 'cat' is listed twice: keep one"),
        ("o.txt", "cat", "o.txt leaves out 'dog' and 1 more: list every class, or choose some by --task-file"),
        ("o.txt", "cat\nowl", "o.txt leaves out 'dog': list every class"),
        ("o.yaml", "[[cat], dog, owl]", r"o.yaml must be a list of class names, such as \[cat, dog, owl\]"),
        ("o.yaml", "cat", "o.yaml must be a list of class names"),
        ("o.json", "[", "o.json cannot be read: "),
    ],
)
def test_a_class_order_that_does_not_fit_is_one_line(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message) as raised:
        make_tasks(("cat", "dog", "owl"), DataConfig(class_order=str(tmp_path / name)), 0)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("count", "batch", "steps"), [(9, 4, 2), (8, 4, 2), (3, 4, 0)])
def test_the_last_smaller_batch_is_dropped(count, batch, steps):
    """What is left out are the images that come last in the epoch's order; also after an interruption."""
    whole = list(SeededBatches(count, batch, 7, ("x", 1), True))
    found = SeededBatches(count, batch, 7, ("x", 1), True, drop_last=True)
    assert list(found) == [keys for keys in whole if len(keys) == batch]
    assert len(found) == steps == steps_of(count, batch, True)
    if steps:
        assert list(SeededBatches(count, batch, 7, ("x", 1), True, skip=1, drop_last=True)) == whole[1:steps]


def test_training_and_evaluation_resize_with_the_filter_that_is_asked_for():
    """Whole, a square image is Resize(size) and nothing else; cropped, it is the middle of Resize(resize)."""
    random = np.random.default_rng(0)
    square = Image.fromarray(random.integers(0, 256, (9, 9, 3), dtype=np.uint8))
    whole = evaluation_transform(ResizeCrop.square(16, 16, "bilinear"))(square)
    expected = np.asarray(square.resize((16, 16), Image.Resampling.BILINEAR))
    assert torch.equal(whole, torch.from_numpy(expected.copy()).permute(2, 0, 1))
    cropped = evaluation_transform(ResizeCrop.square(16, 20, "bilinear"))(square)
    expected = np.asarray(square.resize((20, 20), Image.Resampling.BILINEAR))[2:18, 2:18]
    assert torch.equal(cropped, torch.from_numpy(expected.copy()).permute(2, 0, 1))
    views = []
    for name in ("bilinear", "bicubic"):
        torch.manual_seed(0)
        views.append(training_transform(ResizeCrop.square(16, 16, name), "photo")(square))
    torch.manual_seed(0)
    theirs = v2.Compose([v2.RandomResizedCrop(16), v2.RandomHorizontalFlip()])(square)  # torchvision's own: bilinear
    assert torch.equal(views[0], torch.from_numpy(np.asarray(theirs).copy()).permute(2, 0, 1))
    assert not torch.equal(*views)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": 11}, "--tasks 11 is more than the 10 classes there are: ask for 10 or fewer"),
        ({"classes_per_task": 11}, "--classes-per-task 11 is more than the 10 classes"),
        ({"task_file": "missing.yaml"}, "cannot read --task-file missing.yaml: No such file"),
    ],
)
def test_impossible_tasks(options, message):
    with pytest.raises(DataError, match=message):
        make_tasks(CLASSES, DataConfig(**options), 0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- [cat, owl]\n- [dgo]", "task 2: no class 'dgo' in the data; did you mean 'dog'"),
        ("- [cat]\n- [cat]", "task 2: class 'cat' is listed twice"),
        ("cat: 1", "must be a list of tasks, each a list of class names"),
        ("- [cat\n", "is not YAML"),
    ],
)
def test_bad_task_files(tmp_path, text, message):
    file = tmp_path / "tasks.yaml"
    file.write_text(text)
    with pytest.raises(DataError, match=message):
        make_tasks(("cat", "dog", "owl"), DataConfig(task_file=str(file)), 0)


def test_a_task_file_names_the_classes_of_each_task(tmp_path):
    file = tmp_path / "tasks.yaml"
    file.write_text("tasks:\n- [owl, 7]\n- [cat]\n")
    assert make_tasks(("7", "cat", "dog", "owl"), DataConfig(task_file=str(file)), 0) == (("owl", "7"), ("cat",))


def test_evaluation_transform_is_torchvisions(photos):
    from torchvision import transforms

    image = load_image(photos / "train/cat/0.png").resize((41, 30))
    ours = evaluation_transform(ResizeCrop.square(size=16, resize=18, interpolation="bicubic"))(image)
    classic = transforms.Compose(
        [
            transforms.Resize(18, transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(16),
            transforms.PILToTensor(),
        ]
    )
    assert ours.dtype == torch.uint8
    assert torch.equal(ours, classic(image))


def _batches(photos, workers=0, **changes):
    source = image_folder(photos)
    transform = training_transform(ResizeCrop.square(16, 16, "bicubic"), "photo")
    options = {"seed": 0, "scope": (1, "student", 0), "shuffle": True, **changes}
    return list(batches(source.train.items, source.train.labels.tolist(), transform, 7, workers=workers, **options))


def test_batches_hold_every_image_once_and_follow_seed_and_place(photos):
    first = _batches(photos)
    assert [len(labels) for _, labels in first] == [7, 7, 7, 3], "the last partial batch trains too"
    assert torch.cat([labels for _, labels in first]).bincount().tolist() == [6, 6, 6, 6]
    again, other = _batches(photos), _batches(photos, scope=(1, "student", 1))
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(first, again, strict=True))
    assert not torch.equal(first[0][0], other[0][0])


def test_batches_do_not_depend_on_who_loads_them(photos):
    for (a, x), (b, y) in zip(_batches(photos), _batches(photos, workers=2), strict=True):
        assert torch.equal(a, b)
        assert torch.equal(x, y)


def test_worker_processes_are_started_once_and_every_pass_is_what_a_fresh_loader_gives(photos):
    """Of another epoch, of the other learner, of an epoch that was stopped, and after a pass that was left halfway."""
    train = image_folder(photos).train
    transform = training_transform(ResizeCrop.square(32, 36, "bicubic"), "photo")
    items, labels = list(train.items), train.labels.tolist()
    images = LoadedImages(items, labels, transform, 2)
    started = set()
    for scope, skip in (((1, "teacher", 0), 0), ((1, "teacher", 1), 0), ((1, "student", 0), 2), ((1, "student", 1), 0)):
        fresh = batches(items, labels, transform, 5, seed=3, scope=scope, shuffle=True, skip=skip)
        found = images.batches(5, 3, scope, skip)
        for (pixels, own), (wanted, expected) in zip(found, fresh, strict=True):
            assert torch.equal(pixels, wanted)
            assert torch.equal(own, expected)
        started |= {worker.pid for worker in found._iterator._workers}
        next(iter(images.batches(5, 4, scope)))
    assert len(started) == 2


def test_what_goes_wrong_in_a_process_that_loads_is_one_line(photos, monkeypatch):
    items, transform = (
        sorted((photos / "train").rglob("*.png")),
        evaluation_transform(ResizeCrop.square(8, 8, "bicubic")),
    )
    found = batches(items, [0] * len(items), transform, 7, workers=1)
    items[3].unlink()
    with pytest.raises(DataError) as caught:
        list(found)
    assert str(caught.value) == f"{items[3]} has vanished since the run began: restore it and continue with --resume"

    def too_small(self):
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error.\nMaybe out of shared memory.")

    monkeypatch.setattr(torch.utils.data.DataLoader, "__iter__", too_small)
    with pytest.raises(RunError) as told:
        list(found)
    assert str(told.value) == (
        "the processes that load images have failed (DataLoader worker (pid 7) is killed by signal: Bus error. Maybe "
        "out of shared memory.): continue with --resume, and more room in /dev/shm where that is too small; "
        "--workers 0 starts none"
    )


@pytest.mark.parametrize("where", ["listing", "looking"])
def test_a_folder_that_cannot_be_read_now_is_not_taken_for_gone(photos, where, monkeypatch):
    """The task would be tested on the few images that the run keeps, and nobody told."""
    plan = TaskPlan(("ant", "bee"), str(photos))
    task = finished_task(1, ["ant", "bee"])
    data = TaskData([plan], [FinishedTask(**task)], {}, lambda number: {}, [])

    def refuse(*given):
        raise OSError(errno.ESTALE, "Stale file handle", str(photos))

    monkeypatch.setattr(
        "os.scandir" if where == "listing" else "cdl_deploy.training.data.task_data.fingerprint", refuse
    )
    with pytest.raises(PassingError, match="Stale file handle"):
        data.test(1)


def test_class_names_in_a_task_file_are_text_as_it_is_written(tmp_path):
    file = tmp_path / "tasks.yaml"
    file.write_text("- [010, '012', 8]\n- [001, no, 12:30, ~]\n")
    classes = ("8", "010", "012", "001", "no", "12:30", "~")
    wanted = (("010", "012", "8"), ("001", "no", "12:30", "~"))
    assert make_tasks(classes, DataConfig(task_file=str(file)), 0) == wanted
    file.write_text("[[cat, [dog]]]")
    with pytest.raises(DataError, match="has lists within a task: expected class names"):
        make_tasks(("cat", "dog"), DataConfig(task_file=str(file)), 0)
