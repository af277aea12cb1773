"""What a run's options ask of its images, and what follows from the images and the number of tasks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cdl_deploy.data.labelled import LabelledImages
from cdl_deploy.data.preprocessing import ResizeCrop
from cdl_deploy.data.sources import ImageSource
from cdl_deploy.errors import DataError, OptionError
from cdl_deploy.run.config import DataConfig, MethodConfig, OptimConfig, RunConfig
from cdl_deploy.run.record_parts import BackboneInfo, TeacherView
from cdl_deploy.training.data.shape import check_benchmark, check_last_batch, check_whole
from cdl_deploy.training.preparation import laid_out, resolve_preprocessing

STUDENT = BackboneInfo("vit", "hub", "", 224, (0.5,) * 3, (0.5,) * 3, "bicubic", 0.9, 1)


def source(counts: dict[str, int], shape=(4, 4)) -> ImageSource:
    items = [np.zeros((*shape, 3), np.uint8) for count in counts.values() for _ in range(count)]
    labels = [name for name, count in counts.items() for _ in range(count)]
    images = LabelledImages("images", items, labels)
    return ImageSource("images", tuple(counts), images, images, photographs=True)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, (248, "bicubic")),
        ({"crop": "none", "interpolation": "bilinear"}, (224, "bilinear")),  # CIFAR-100 in the paper
        ({"resize": 256, "interpolation": "bilinear"}, (256, "bilinear")),  # ImageNet-R
    ],
)
def test_what_evaluation_sees(options, expected):
    found = resolve_preprocessing(RunConfig(DataConfig(**options)), {"student": STUDENT}, source({"a": 1}))
    assert (found.size, found.resize, found.interpolation) == (224, *expected)
    assert found.resize_crop == ResizeCrop.square(224, *expected)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, (373, "bicubic")),
        ({"crop": "none"}, (336, "bicubic")),
        ({"resize": 256, "interpolation": "bilinear"}, (384, "bilinear")),  # 256 · 336 / 224
    ],
)
def test_a_teacher_with_a_size_of_its_own_sees_the_same_part(options, expected):
    infos = {"student": STUDENT, "teacher": replace(STUDENT, image_size=336)}
    found = resolve_preprocessing(RunConfig(DataConfig(**options)), infos, source({"a": 1}))
    assert found.teacher == TeacherView(336, *expected)


def test_a_crop_is_not_larger_than_the_image():
    with pytest.raises(OptionError, match="--resize is 223, less than the 224 pixels that are cropped from it"):
        resolve_preprocessing(RunConfig(DataConfig(resize=223)), {"student": STUDENT}, source({"a": 1}))


def test_without_a_crop_images_are_square():
    wide = source({"a": 1, "b": 1}, (4, 5))
    check_whole("none", source({"a": 2}), ["a"])
    check_whole("centre", wide, ["a", "b"])
    check_whole("none", wide, [])
    with pytest.raises(DataError, match="an image has 5×4 pixels, and --crop none sees square images only: give"):
        check_whole("none", wide, ["b"])


def test_a_benchmark_has_its_classes():
    check_benchmark(DataConfig(), source({"a": 1}))
    for name, count in (("cifar100", 100), ("imagenet-r", 200)):
        right = {f"{i:03d}": 1 for i in range(count)}
        check_benchmark(DataConfig(benchmark=name), source(right))
        with pytest.raises(DataError, match=f"--benchmark {name} has {count} classes, and digits has {count + 1}"):
            check_benchmark(DataConfig(benchmark=name), source({**right, "x": 1}))


@pytest.mark.parametrize(
    ("method", "optim", "left"),
    [
        (MethodConfig(), OptimConfig(batch_size=11, last_batch="drop"), 10),
        (MethodConfig(alpha_holdout=0.5), OptimConfig(batch_size=6, last_batch="drop"), 5),  # 3 of 6 and 2 of 4
        (MethodConfig(alpha_holdout=0.5), OptimConfig(last_batch="drop"), 5),
        (MethodConfig(), OptimConfig(last_batch="drop"), None),  # 8 by default
        (MethodConfig(), OptimConfig(batch_size=10, last_batch="drop"), None),
        (MethodConfig(), OptimConfig(batch_size=11), None),
        (MethodConfig(method="none", distill="none", head="slda"), OptimConfig(batch_size=11, last_batch="drop"), None),
    ],
)
def test_a_task_without_a_whole_batch_is_refused_where_the_last_is_dropped(method, optim, left):
    asked = (2, ["a", "b"], source({"a": 6, "b": 4, "c": 9}), method, optim)
    if left is None:
        check_last_batch(*asked)
        return
    with pytest.raises(OptionError, match=f"task 2 has {left} images to learn from, .* give --batch-size {left} or"):
        check_last_batch(*asked)


def test_components_and_entries_follow_from_the_tasks():
    """100 components among 10, 20 and 7 tasks; as many entries as tasks."""
    shared = replace(MethodConfig(), components=100)
    assert [laid_out(shared, tasks).components_per_task for tasks in (10, 20, 7)] == [10, 5, 14]
    assert laid_out(MethodConfig(components_per_task=3), 7) == MethodConfig(components_per_task=3)
    chosen = laid_out(MethodConfig(method="dualprompt", unseen_keys="chosen"), 7)
    assert (chosen.entries, laid_out(chosen, 9).entries) == (7, 7)
    with pytest.raises(OptionError, match="--components 6 are fewer than the 7 tasks: ask for more"):
        laid_out(replace(shared, components=6), 7)
