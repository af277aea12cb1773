"""Features of transformers' own models, small and random, against timm's filled from the files that they write."""

from __future__ import annotations

from functools import partial

import pytest
import timm
import torch
from timm.layers import QuickGELU, SwiGLUPacked
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from cdl_deploy.training.backbones.weights_files.filling import fill
from cdl_deploy.training.backbones.weights_files.weights import read_weights

transformers = pytest.importorskip("transformers", reason="make test-foreign")
pytestmark = [pytest.mark.foreign, pytest.mark.filterwarnings("default")]

SHAPE = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
SHAPE |= {"image_size": 32, "patch_size": 8}
TIMM = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 4, "mlp_ratio": 2, "num_classes": 0}


def vit(**changes):
    return VisionTransformer(**{**TIMM, **changes})


def eva(name, **changes):
    shape = {"embed_dim": 64, "depth": 2, "num_heads": 4, "patch_size": 8, "img_size": 32, "mlp_ratio": 2}
    return timm.create_model(name, num_classes=0, **{**shape, **changes})


def random_model(kind, configuration, zero_biases=False):
    torch.manual_seed(0)
    model = kind(configuration).eval()
    for name, value in model.named_parameters():
        nn.init.normal_(value, std=0.2)
        if zero_biases and name.endswith(("q_proj.bias", "v_proj.bias")):
            nn.init.zeros_(value)
    return model


def last(output):
    return output.last_hidden_state


def pooled(output):
    return output.pooler_output


t = transformers
CASES = {
    "vit": (t.ViTModel, t.ViTConfig(**SHAPE, layer_norm_eps=1e-6), vit, last),
    "deit": (
        t.DeiTModel,
        t.DeiTConfig(**SHAPE, layer_norm_eps=1e-6),
        lambda: VisionTransformerDistilled(**TIMM),
        last,
    ),
    "dinov2": (t.Dinov2Model, t.Dinov2Config(**SHAPE, mlp_ratio=2), lambda: vit(init_values=1.0), last),
    "dinov2 with registers": (
        t.Dinov2WithRegistersModel,
        t.Dinov2WithRegistersConfig(**SHAPE, mlp_ratio=2),
        lambda: vit(init_values=1.0, reg_tokens=4, no_embed_class=True),
        last,
    ),
    "dinov2 with registers and SwiGLU": (
        t.Dinov2WithRegistersModel,
        t.Dinov2WithRegistersConfig(**SHAPE, mlp_ratio=2, use_swiglu_ffn=True),
        lambda: vit(
            init_values=1.0,
            reg_tokens=4,
            no_embed_class=True,
            mlp_layer=SwiGLUPacked,
            act_layer=nn.SiLU,
            mlp_ratio=2 * 88 / 64,
        ),
        last,
    ),
    "dinov3": (
        t.DINOv3ViTModel,
        t.DINOv3ViTConfig(**SHAPE, num_register_tokens=4),
        lambda: eva("vit_small_patch16_dinov3_qkvb"),
        last,
    ),
    "dinov3 gated": (
        t.DINOv3ViTModel,
        t.DINOv3ViTConfig(**SHAPE, num_register_tokens=4, use_gated_mlp=True, hidden_act="silu"),
        lambda: eva("vit_small_plus_patch16_dinov3_qkvb", swiglu_align_to=1),
        last,
    ),
    "siglip": (
        t.SiglipVisionModel,
        t.SiglipVisionConfig(**SHAPE),
        lambda: vit(class_token=False, global_pool="map", act_layer="gelu_tanh"),
        pooled,
    ),
    "clip": (
        t.CLIPVisionModel,
        t.CLIPVisionConfig(**SHAPE),
        lambda: vit(pre_norm=True, act_layer=QuickGELU, norm_layer=partial(nn.LayerNorm, eps=1e-5)),
        pooled,
    ),
}


@torch.no_grad()
def difference(model, network, get):
    """Of features, for two images."""
    images = torch.randn(2, 3, 32, 32)
    theirs, ours = get(model(pixel_values=images)), network.eval().forward_features(images)
    if get is pooled:
        ours = ours[:, 0] if network.attn_pool is None else network.forward_head(ours)
    assert theirs.shape == ours.shape
    assert theirs.std() > 0.1
    return float((theirs - ours).abs().max())


@pytest.mark.parametrize("case", CASES)
def test_features_are_theirs(case, tmp_path):
    """From the file that the library writes, in parts too, and from its names in memory."""
    kind, configuration, network, get = CASES[case]
    model = random_model(kind, configuration)
    model.save_pretrained(tmp_path / "one")
    model.save_pretrained(tmp_path / "parts", max_shard_size="100KB")
    assert (tmp_path / "parts/model.safetensors.index.json").exists()
    torch.save({"state_dict": {f"model.{k}": v for k, v in model.state_dict().items()}}, tmp_path / "memory.ckpt")  # noqa: TID251
    for place in ("one", "parts", "memory.ckpt"):
        weights = read_weights(tmp_path / place)
        assert weights.layout.startswith("transformers' ")
        filled = network()
        fill(filled, weights.tensors, tmp_path)
        assert difference(model, filled, get) < 1e-5, place


def test_biases_of_dinov3_that_are_0_may_be_missing(tmp_path):
    model = random_model(t.DINOv3ViTModel, t.DINOv3ViTConfig(**SHAPE, num_register_tokens=4), zero_biases=True)
    model.save_pretrained(tmp_path)
    for name in ("vit_small_patch16_dinov3", "vit_small_patch16_dinov3_qkvb"):
        filled = eva(name)
        fill(filled, read_weights(tmp_path).tensors, tmp_path)
        assert difference(model, filled, last) < 1e-5


def test_whole_models_have_a_tower_and_a_head(tmp_path):
    """Classifiers, and CLIP with its text tower: what is not the tower is beside it."""
    classifier = random_model(t.ViTForImageClassification, t.ViTConfig(**SHAPE, layer_norm_eps=1e-6))
    classifier.save_pretrained(tmp_path / "vit")
    weights = read_weights(tmp_path / "vit")
    assert (weights.place, weights.beside) == ("vit", ("classifier.bias", "classifier.weight"))
    filled = vit()
    fill(filled, weights.tensors, tmp_path)
    assert difference(classifier.vit, filled, last) < 1e-5

    text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    clip = random_model(t.CLIPModel, t.CLIPConfig(text_config=text, vision_config=SHAPE, projection_dim=8))
    clip.save_pretrained(tmp_path / "clip")
    weights = read_weights(tmp_path / "clip")
    assert weights.description.activation == "quick_gelu"
    assert (weights.place, weights.heads) == ("vision_model", 4)
    filled = CASES["clip"][2]()
    fill(filled, weights.tensors, tmp_path)
    assert difference(clip.vision_model, filled, pooled) < 1e-5


def test_an_exported_graph(tmp_path):
    """transformers' DINOv2 as torch exports it to ONNX."""
    model = random_model(t.Dinov2Model, t.Dinov2Config(**SHAPE, mlp_ratio=2))

    class Tokens(nn.Module):
        """The graph's only output."""

        def forward(self, images):
            return model(pixel_values=images).last_hidden_state

    torch.onnx.export(Tokens().eval(), (torch.randn(1, 3, 32, 32),), tmp_path / "vit.onnx", dynamo=True, verbose=False)
    weights = read_weights(tmp_path / "vit.onnx")
    assert weights.heads == 4
    filled = vit(init_values=1.0)
    fill(filled, weights.tensors, tmp_path)
    assert difference(model, filled, last) < 1e-4
