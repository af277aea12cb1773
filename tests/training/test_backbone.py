"""Our pass through a ViT equals timm's; with prompts it equals a loop over images, heads and rows."""

from __future__ import annotations

import pytest
import timm
import torch

from cdl_deploy.errors import WeightsError
from cdl_deploy.training.backbones.plain import PlainViT, check_plain
from cdl_deploy.training.backbones.protocol import BlockPrompt
from tests.training.conftest import make_backbone, make_vit
from tests.training.naive import naive_block


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"qkv_bias": False},
        {"qk_norm": True},
        {"init_values": 0.1},
        {"reg_tokens": 2},
        {"no_embed_class": True},
        {"pre_norm": True},
    ],
)
def test_unprompted_pass_is_timms(changes):
    vit = make_vit(**changes)
    backbone = PlainViT(vit, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    images = torch.randn(3, 3, 16, 16)
    empty = {index: BlockPrompt() for index in range(6)}  # our own attention, with nothing added
    ours = backbone.run_blocks(backbone.embed_normalised(images), 0, 6, empty)
    torch.testing.assert_close(backbone.final_norm(ours), vit.forward_features(images), atol=1e-5, rtol=1e-5)


def test_pixels_are_normalised_with_the_weights_own_statistics():
    backbone = make_backbone()
    pixels = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    normalised = pixels / 255.0
    for channel, (mean, std) in enumerate(zip((0.5, 0.4, 0.3), (0.2, 0.3, 0.4), strict=True)):
        normalised[:, channel] = (normalised[:, channel] - mean) / std
    torch.testing.assert_close(backbone.embed(pixels), backbone.embed_normalised(normalised))


def test_prompts_equal_a_slow_loop():
    vit = make_vit()
    backbone = PlainViT(vit, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    torch.manual_seed(1)
    tokens = torch.randn(3, 5, 24)
    before = (torch.randn(3, 4, 24), torch.randn(3, 4, 24))
    after = (torch.randn(1, 2, 24), torch.randn(1, 2, 24))
    shift = (torch.randn(24), torch.randn(24))
    ours = backbone.run_block(2, tokens, BlockPrompt(before, after, shift))
    for i in range(3):
        own = (before[0][i], before[1][i])
        slow = naive_block(vit, 2, tokens[i], before=own, after=(after[0][0], after[1][0]), shift=shift)
        torch.testing.assert_close(ours[i], slow, atol=1e-5, rtol=1e-5)


def test_frozen_and_in_eval_mode_whatever_is_asked():
    backbone = make_backbone().train()
    assert not backbone.training
    assert not backbone.vit.blocks[0].training
    assert not any(value.requires_grad for value in backbone.parameters())


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("resnet10t", "is a ResNet, expected a plain timm VisionTransformer"),
        ("deit_tiny_distilled_patch16_224", "is a VisionTransformerDistilled"),
        ("vit_small_patch16_36x1_224", None),
        ("vit_small_patch16_18x2_224", "blocks are ParallelThings"),
    ],
)
def test_what_is_no_plain_vit_is_refused(model, message):
    with torch.device("meta"):
        network = timm.create_model(model, pretrained=False)
    if message is None:
        check_plain(network)
    else:
        with pytest.raises(WeightsError, match=message):
            check_plain(network)
