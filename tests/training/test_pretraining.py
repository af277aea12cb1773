"""The recipe that pretrains a ViT on photographs: augmentation, going on where it stopped, what it leaves."""

from __future__ import annotations

import json

import pytest
import safetensors.torch
import timm
import torch
from torch import nn

from cdl_deploy.errors import OptionError
from cdl_deploy.training.backbones.loading import load_backbone
from cdl_deploy.training.recipes import pretrain_photos
from cdl_deploy.training.recipes.augmentation import erase, mix, rand_augment, random_resized_crop
from cdl_deploy.training.recipes.pretrain_photos import Pretraining, Recipe
from cdl_deploy.training.recipes.pretraining import MuonInFloat32, make_optimizers
from tests.training.conftest import write_images

MODEL = "vit_128x6_patch8_32"


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_crop_of_everything_is_the_image_or_its_mirror():
    images = torch.rand(20, 3, 8, 8)
    found = random_resized_crop(images, generator(), area=(1, 1), ratio=(1, 1))
    kept = [torch.allclose(a, b, atol=1e-5) for a, b in zip(found, images, strict=True)]
    flipped = [torch.allclose(a, b.flip(2), atol=1e-5) for a, b in zip(found, images, strict=True)]
    assert [a != b for a, b in zip(kept, flipped, strict=True)] == [True] * 20
    assert 0 < sum(kept) < 20


def test_a_crop_shows_one_box_of_the_image():
    """The image is its own coordinates, so every pixel of a crop tells where it is from."""
    y, x = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    images = torch.stack([x, y, torch.zeros(16, 16)]).expand(40, 3, 16, 16).contiguous()
    found = random_resized_crop(images, generator(1), area=(0.25, 0.5), ratio=(1, 1))
    for crop in found:
        inner = crop[:, 2:-2, 2:-2]  # at the border, interpolation looks outside
        across, down = inner[0].diff(dim=1), inner[1].diff(dim=0)
        assert max(across.std(), down.std()) < 1e-3, "evenly spaced"
        side = across.mean().abs().item()
        assert side == pytest.approx(down.mean().item(), abs=1e-3), "ratio 1"
        assert 0.25 - 1e-3 <= side**2 <= 0.5 + 1e-3, "the share of the area"
        assert (inner[0].diff(dim=0).abs() < 1e-3).all(), "upright"


def test_erasing_puts_noise_into_one_box():
    images = torch.zeros(200, 3, 16, 16)
    found = erase(images, generator(), share=0.25)
    erased = [image for image in found if image.any()]
    assert 25 < len(erased) < 75
    for image in erased:
        marked = (image != 0).any(dim=0)
        rows, columns = marked.any(dim=1).nonzero().flatten(), marked.any(dim=0).nonzero().flatten()
        assert marked[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
        assert int(marked.sum()) == len(rows) * len(columns) <= 0.45 * 256


def test_mixing_keeps_the_labels_share():
    """Each image is one colour, its class: what an image shows of a class is what its label says."""
    torch.manual_seed(0)
    labels = torch.arange(4).repeat(4)
    images = torch.nn.functional.one_hot(labels, 4)[:, :3].float()[:, :, None, None].expand(-1, -1, 8, 8).contiguous()
    for _ in range(4):
        mixed, soft = mix(images, labels, 4)
        assert soft.shape == (16, 4)
        torch.testing.assert_close(soft.sum(dim=1), torch.ones(16))
        torch.testing.assert_close(mixed.mean(dim=(2, 3)), soft[:, :3], atol=1e-5, rtol=1e-5)


def test_policies_differ_within_a_batch():
    torch.manual_seed(0)
    image = torch.randint(0, 256, (1, 3, 16, 16), dtype=torch.uint8)
    found = rand_augment(image.expand(32, -1, -1, -1))
    assert found.shape == (32, 3, 16, 16)
    assert len({tuple(one.flatten().tolist()) for one in found}) > 4


@pytest.mark.parametrize("shape", [(48, 16), (16, 48), (16, 16)])
def test_muon_in_float32_is_torchs_but_for_the_rounding(shape):
    """torch orthogonalises in bf16, which has 8 bits."""
    torch.manual_seed(0)
    start, options = torch.randn(shape), {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}
    here, there = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    optimizers = [MuonInFloat32([here], **options), torch.optim.Muon([there], **options)]
    for _ in range(4):
        here.grad = torch.randn(shape)
        there.grad = here.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    moved, apart = (there - start).norm(), (here - there).norm()
    assert 0 < apart < 0.01 * moved


def test_the_precision_of_muon_follows_that_of_the_model():
    model = timm.create_model(MODEL, num_classes=2)
    assert type(make_optimizers(model, bf16=False)[0]) is MuonInFloat32
    assert type(make_optimizers(model, bf16=True)[0]) is torch.optim.Muon


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    root = tmp_path_factory.mktemp("pretraining")
    write_images(root / "train", dict.fromkeys(("ant", "bee"), 8))
    write_images(root / "val", dict.fromkeys(("ant", "bee"), 3), seed=1)
    return root


def test_it_goes_on_where_it_stopped_and_its_weights_are_a_backbone(photos, tmp_path, capsys, monkeypatch):
    recipe = Recipe(MODEL, epochs=2, batch_size=5)
    whole = Pretraining(recipe, photos, tmp_path / "whole", torch.device("cpu"))
    record = whole.go()
    assert "epoch 2/2  loss" in capsys.readouterr().out

    stopped = Pretraining(recipe, photos, tmp_path / "parts", torch.device("cpu"))
    step = stopped.step

    def interrupted(number):
        if number == 4:
            raise KeyboardInterrupt
        return step(number)

    monkeypatch.setattr(stopped, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        stopped.go(save_seconds=0)
    assert Pretraining(recipe, photos, tmp_path / "parts", torch.device("cpu")).go().keys() == record.keys()
    one, two = (safetensors.torch.load_file(tmp_path / f"{n}/{MODEL}.safetensors") for n in ("whole", "parts"))
    assert all(torch.equal(one[name], two[name]) for name in one)

    assert record == json.loads((tmp_path / f"whole/{MODEL}.json").read_text())
    assert (record["train_images"], record["validation_images"], record["classes"]) == (16, 6, 2)
    assert whole.steps == 2 * 3
    backbone, info = load_backbone(MODEL, str(tmp_path / f"whole/{MODEL}.safetensors"), None)
    assert (backbone.width, backbone.depth, info.image_size, info.mean) == (128, 6, 32, (0.485, 0.456, 0.406))

    with pytest.raises(OptionError, match=r"was begun as .*ask for the same, or remove it"):
        Pretraining(Recipe(MODEL, epochs=3, batch_size=5), photos, tmp_path / "parts", torch.device("cpu")).go()


def test_training_lowers_the_loss(photos, tmp_path):
    recipe = Recipe(MODEL, epochs=6, batch_size=16, augment=False, drop_path=0.0, lr_scale=0.3)
    pretraining = Pretraining(recipe, photos, tmp_path, torch.device("cpu"))
    losses = [pretraining.step(step).item() for step in range(6)]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "vit_tinny_patch4_32"], "did you mean 'vit_tiny_patch4_32'?"),
        (["--model", MODEL, "--epochs", "0"], "--epochs is 0, expected at least 1"),
        (["--model", MODEL, "--data", "nowhere"], "nowhere"),
    ],
)
def test_bad_input_is_one_line(photos, tmp_path, capsys, options, message):
    with pytest.raises(SystemExit) as stopped:
        pretrain_photos.main(["--data", str(photos), "--out", str(tmp_path / "out"), *options])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out").exists()
