"""Features of OpenCLIP's own models, small and random, against timm's filled from their state dicts."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from safetensors.torch import save_file
from timm.layers import QuickGELU
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from cdl_deploy.training.backbones.weights_files.filling import fill
from cdl_deploy.training.backbones.weights_files.weights import read_weights

open_clip = pytest.importorskip("open_clip", reason="make test-foreign")
pytestmark = [pytest.mark.foreign, pytest.mark.filterwarnings("default")]

VISION = {"image_size": 32, "layers": 2, "width": 64, "head_width": 16, "patch_size": 8, "mlp_ratio": 2.0}
TEXT = {"context_length": 8, "vocab_size": 32, "width": 16, "heads": 2, "layers": 1}


def clip(quick):
    from open_clip.model import CLIP

    torch.manual_seed(0)
    model = CLIP(embed_dim=24, vision_cfg=VISION, text_cfg=TEXT, quick_gelu=quick).eval()
    for value in model.parameters():
        nn.init.normal_(value, std=0.2)
    return model


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("tower", [False, True])
def test_features_are_theirs(quick, tower, tmp_path):
    """Of the whole model, and of the tower saved alone."""
    model = clip(quick)
    state = model.visual.state_dict() if tower else model.state_dict()
    save_file({name: value.contiguous() for name, value in state.items()}, tmp_path / "open_clip_model.safetensors")
    weights = read_weights(tmp_path)
    assert weights.place == ("" if tower else "visual")
    assert bool(weights.beside) is not tower
    network = VisionTransformer(
        img_size=32,
        patch_size=8,
        embed_dim=64,
        depth=2,
        num_heads=4,
        mlp_ratio=2,
        num_classes=0,
        pre_norm=True,
        act_layer=QuickGELU if quick else nn.GELU,
        norm_layer=partial(nn.LayerNorm, eps=1e-5),
    ).eval()
    fill(network, weights.tensors, tmp_path)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        theirs, ours = model.encode_image(images), network.forward_features(images)[:, 0] @ model.visual.proj
    assert theirs.std() > 0.1
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
