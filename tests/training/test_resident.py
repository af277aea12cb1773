"""Images kept on the device: the same images in the same order, and crops as torchvision makes them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional

from cdl_deploy.data.preprocessing import ResizeCrop
from cdl_deploy.training.checkpoint import load_run
from cdl_deploy.training.data.loading import batches
from cdl_deploy.training.data.resident import ResidentImages, augment, crop
from cdl_deploy.training.data.task_data import TaskImages
from cdl_deploy.training.data.transforms import evaluation_transform
from cdl_deploy.training.loop import resume, train
from tests.training.runs import Interrupt, config, weights

CPU = torch.device("cpu")
PREPROCESSING = ResizeCrop.square(16, 18, "bicubic")


def some_images(count: int = 11) -> TaskImages:
    random = np.random.default_rng(0)
    return TaskImages([random.integers(0, 256, (20, 24, 3), dtype=np.uint8) for _ in range(count)], list(range(count)))


@pytest.mark.parametrize("skip", [0, 2])
def test_batches_are_those_of_the_loader(skip):
    images = some_images()
    settings = {"seed": 3, "scope": (1, "student", 0), "skip": skip}
    theirs = list(
        batches(images.items, images.labels, evaluation_transform(PREPROCESSING), 4, shuffle=True, **settings)
    )
    ours = list(ResidentImages(images, PREPROCESSING, CPU).batches(4, **settings))
    assert len(ours) == 3 - skip
    for (pixels, labels), (expected, names) in zip(ours, theirs, strict=True):
        assert torch.equal(pixels, expected)
        assert torch.equal(labels, names)


def test_a_crop_depends_on_the_image_alone():
    resident = ResidentImages(some_images(), PREPROCESSING, CPU, "photo")
    scope = (2, "teacher", 1)

    def found(size: int, **settings) -> dict[int, torch.Tensor]:
        made = resident.batches(size, 0, scope, **settings)
        return {int(label): image for pixels, labels in made for image, label in zip(pixels, labels, strict=True)}

    whole = found(11)
    halves = [found(4, share=lambda keys, part=part: keys[part::2]) for part in (0, 1)]
    assert halves[0].keys() | halves[1].keys() == whole.keys()
    for label, image in (halves[0] | halves[1]).items():
        assert torch.equal(image, whole[label])
    later = {int(n): i for p, names in resident.batches(11, 0, (2, "teacher", 2)) for i, n in zip(p, names)}  # noqa: B905
    assert any(not torch.equal(later[label], whole[label]) for label in whole)


def test_a_crop_is_torchvisions():
    images = torch.rand(1, 3, 32, 32) * 255
    # a box 16 wide and 8 high whose left edge is at 4 and whose upper edge is at 18
    share, stretch = torch.tensor([16 * 8 / 32**2]), torch.tensor([2.0])
    across, down = torch.tensor([4 / 16 * 2 - 1]), torch.tensor([18 / 24 * 2 - 1])
    ours = crop(images, share, stretch, across, down, torch.ones(1))
    theirs = functional.resized_crop(images, 18, 4, 8, 16, [32, 32], antialias=False)
    # at the edge of the box torchvision repeats the box's last pixel, ours sees the one beyond
    torch.testing.assert_close(ours[..., 2:-2, 1:-1], theirs[..., 2:-2, 1:-1], atol=0.01, rtol=1e-4)
    mirrored = crop(images, share, stretch, across, down, -torch.ones(1))
    torch.testing.assert_close(mirrored, ours.flip(-1), atol=0.01, rtol=1e-4)


def test_gentle_crops_are_large_and_never_flipped():
    ramp = torch.arange(32.0).expand(64, 3, 32, 32).to(torch.uint8)
    chance = torch.rand(64, 5, generator=torch.Generator().manual_seed(0))
    for augmentation, flipped in (("gentle", False), ("photo", True)):
        made = augment(ramp, chance, augmentation).float()
        rises = made[..., -2] - made[..., 1]
        assert bool((rises < 0).any()) == flipped
        if not flipped:
            assert rises.min() > 32 * 0.75**0.5 * 0.85**0.5 - 8


def test_a_run_with_images_on_the_device_resumes_bit_for_bit(whole_run, photos, tmp_path):
    plan = config(photos)
    plan = replace(plan, optim=replace(plan.optim, resident=True))
    whole = train(plan, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(plan, tmp_path / "parts", Interrupt(after=9))
    assert resume(tmp_path / "parts").matrices == whole.matrices
    first, second = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert all(torch.equal(first[name], second[name]) for name in first)
    plain = load_run(whole_run)[0]
    assert [len(row) for row in whole.matrices["student"]] == [len(row) for row in plain.matrices["student"]]
