"""Small networks and image folders."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from cdl_deploy.data.images import load_image
from cdl_deploy.data.labelled import Item
from cdl_deploy.run.record import RunRecord
from cdl_deploy.training.backbones.plain import PlainViT
from cdl_deploy.training.backbones.protocol import Backbone
from cdl_deploy.training.data.transforms import evaluation_transform
from tests.conftest import check_first_epochs_only

check_first_epochs_only()
COLOURS = {"ant": (200, 30, 30), "bee": (30, 200, 30), "cat": (30, 30, 200), "dog": (200, 200, 30)}


def make_vit(width: int = 24, depth: int = 6, heads: int = 3, seed: int = 0, **changes) -> VisionTransformer:
    """A random plain ViT for 16x16 images in 8x8 patches: 5 tokens."""
    torch.manual_seed(seed)
    shape = {"img_size": 16, "patch_size": 8, "embed_dim": width, "depth": depth, "num_heads": heads, "num_classes": 0}
    vit = VisionTransformer(**{**shape, **changes})
    for value in vit.parameters():  # timm starts biases and the class token at nearly zero, which would hide mistakes
        torch.nn.init.normal_(value, std=0.2)
    return vit


def make_backbone(**shape) -> Backbone:
    return PlainViT(make_vit(**shape), (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))


def write_images(folder: Path, counts: dict[str, int], seed: int = 0, side: int = 20) -> None:
    """`folder/<class>/<i>.png`: noise around the colour of the class."""
    random = np.random.default_rng(seed)
    for name, count in counts.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            noise = random.integers(-30, 30, (side, side, 3))
            pixels = np.clip(np.array(COLOURS.get(name, (90, 90, 90))) + noise, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")


def pixels_of(record: RunRecord, files: Sequence[Item]) -> Tensor:
    """The images [n, 3, H, W] uint8 as the run sees them when it is tested."""
    transform = evaluation_transform(record.preprocessing.resize_crop)
    return torch.stack([transform(load_image(file)) for file in files])


def write_photos(root: Path) -> None:
    """Four classes, six training and three test images each."""
    write_images(root / "train", dict.fromkeys(COLOURS, 6))
    write_images(root / "test", dict.fromkeys(COLOURS, 3), seed=1)


@contextmanager
def no_pictures_drawn() -> Iterator[None]:
    """Pictures take half of a small run's time."""
    from cdl_deploy.training import loop

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "plot_run", lambda *_: None)
        yield


@pytest.fixture(autouse=True)
def no_pictures(request: pytest.FixtureRequest) -> Iterator[None]:
    """Pictures are drawn only where a test is marked `pictures`."""
    drawn = request.node.get_closest_marker("pictures") is not None
    with nullcontext() if drawn else no_pictures_drawn():
        yield


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Four classes, six training and three test images each."""
    write_photos(tmp_path / "photos")
    return tmp_path / "photos"


@pytest.fixture(scope="session")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of `tests.training.runs.config` on images like `photos`, never interrupted. Only to be read."""
    from cdl_deploy.training.loop import train
    from tests.training.runs import config

    root = tmp_path_factory.mktemp("whole")
    write_photos(root / "photos")
    with no_pictures_drawn():
        train(config(root / "photos"), root / "run")
    return root / "run"
