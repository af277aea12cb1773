"""Weights under the names of other libraries fill the network that they were made of, value by value."""

from __future__ import annotations

import re
import zipfile

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models.deit import VisionTransformerDistilled

from cdl_deploy.errors import WeightsError
from cdl_deploy.training.backbones.weights_files.filling import fill
from cdl_deploy.training.backbones.weights_files.weights import read_weights
from tests.training import foreign_names as names
from tests.training.conftest import make_vit


def same(network, state):
    """Whether a network has these values and no others."""
    own = network.state_dict()
    return own.keys() == state.keys() and all(torch.equal(own[name], state[name]) for name in state)


def read_into(network, file):
    """The network, which had other values before, filled from the file."""
    with torch.no_grad():
        for value in network.parameters():
            value.fill_(7)
    weights = read_weights(file)
    fill(network, weights.tensors, file)
    return weights


def small(**changes):
    return make_vit(depth=2, **changes)


def pooled():
    return small(class_token=False, global_pool="map")


def with_pre_norm():
    return small(pre_norm=True)


def hf(state, blocks, place="encoder.layer."):
    return names.renamed(state, names.EMBEDDINGS, blocks, place)


CASES = {
    "transformers' ViT": (small, lambda s: hf(s, names.VIT_FILE) | {"pooler.dense.weight": torch.zeros(2, 2)}),
    "transformers' ViT in memory": (small, lambda s: hf(s, names.VIT_MEMORY, "layers.")),
    "transformers' DINOv2": (
        lambda: small(init_values=1.0),
        lambda s: hf(s, names.DINOV2_FILE) | {"embeddings.mask_token": torch.zeros(1, 24)},
    ),
    "torchvision's ViT": (
        small,
        lambda s: (
            names.renamed(s, names.TORCHVISION_EMBEDDINGS, names.TORCHVISION, "encoder.layers.encoder_layer_")
            | {"heads.head.weight": torch.zeros(2, 2)}
        ),
    ),
    "transformers' SigLIP vision": (pooled, names.siglip),
    "transformers' CLIP vision": (with_pre_norm, names.transformers_clip),
    "CLIP's or OpenCLIP's vision tower": (with_pre_norm, names.open_clip),
    "MAE's original names": (
        small,
        lambda s: s | {"mask_token": torch.zeros(1, 1, 2), "decoder_embed.weight": torch.zeros(2, 2)},
    ),
    "DINOv2's original names": (
        lambda: small(init_values=1.0),
        lambda s: (
            {re.sub(r"^blocks\.(\d)", r"blocks.0.\1", name): value for name, value in s.items()}
            | {"mask_token": torch.zeros(1, 24)}
        ),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_every_tensor_finds_its_place(case, tmp_path):
    make, foreign = CASES[case]
    network = make()
    state = {name: value.clone() for name, value in network.state_dict().items()}
    theirs = foreign(state)
    save_file(theirs, tmp_path / "a.safetensors")
    weights = read_into(network, tmp_path / "a.safetensors")
    assert weights.layout == case.removesuffix(" in memory")
    assert same(network, state)


def test_registers_leave_positions_to_patches(tmp_path):
    """transformers and DINOv2 add the class token's position; timm stores their sum."""
    network = small(init_values=1.0, reg_tokens=4, no_embed_class=True)
    state = {name: value.clone() for name, value in network.state_dict().items()}
    place = torch.randn(1, 1, 24)
    registers = state["reg_token"].clone()
    apart = dict(state, cls_token=state["cls_token"] - place, pos_embed=torch.cat([place, state["pos_embed"]], dim=1))
    theirs = hf(apart, names.DINOV2_FILE) | {"embeddings.register_tokens": registers}
    original = apart | {"register_tokens": registers, "mask_token": torch.zeros(1, 24)}
    del original["reg_token"]
    for content, layout in (
        (theirs, "transformers' DINOv2 with registers"),
        (original, "DINOv2's original names"),
    ):
        save_file(content, tmp_path / "a.safetensors")
        assert read_into(network, tmp_path / "a.safetensors").layout == layout
        for name, value in network.state_dict().items():
            torch.testing.assert_close(value, state[name], atol=1e-6, rtol=0)


def test_a_gated_mlp_has_the_gate_first(tmp_path):
    """In transformers' files one matrix, in its memory two."""
    network = small()
    shape = {"blocks.0.mlp.fc1.weight": (20, 24), "blocks.0.mlp.fc1.bias": (20,)}
    joined = {name: torch.randn(size) for name, size in shape.items()}
    state = dict(network.state_dict())
    two = hf(state, names.VIT_MEMORY, "layers.")
    one = dict(two)
    for kind in ("weight", "bias"):
        for parts in (one, two):
            del parts[f"layers.0.mlp.fc1.{kind}"]
        one[f"layers.0.mlp.weights_in.{kind}"] = joined[f"blocks.0.mlp.fc1.{kind}"]
        gate, up = joined[f"blocks.0.mlp.fc1.{kind}"].chunk(2)
        two |= {f"layers.0.mlp.gate_proj.{kind}": gate.clone(), f"layers.0.mlp.up_proj.{kind}": up.clone()}
    for content in (one, two):
        save_file(content, tmp_path / "a.safetensors")
        read = read_weights(tmp_path / "a.safetensors").tensors
        assert all(torch.equal(read[name], value) for name, value in joined.items())


def test_deit_with_a_distillation_token(tmp_path):
    torch.manual_seed(0)
    shape = {"img_size": 16, "patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 3, "num_classes": 0}
    network = VisionTransformerDistilled(**shape)
    state = {name: torch.randn(value.shape) for name, value in network.state_dict().items()}
    theirs = hf(state, names.VIT_FILE) | {"embeddings.distillation_token": state["dist_token"]}
    save_file(theirs, tmp_path / "a.safetensors")
    assert read_into(network, tmp_path / "a.safetensors").layout == "transformers' DeiT with a distillation token"
    assert same(network, state)


def eva(name):
    shape = {"embed_dim": 24, "depth": 1, "num_heads": 3, "patch_size": 8, "img_size": 16}
    return timm.create_model(name, num_classes=0, **shape)


@pytest.mark.parametrize("original", [True, False])
def test_dinov3(original, tmp_path, capsys):
    """With biases; and without, where they are 0: timm has a model for each."""
    network = eva("vit_small_patch16_dinov3_qkvb")
    torch.manual_seed(0)
    state = {name: torch.randn(value.shape) for name, value in network.state_dict().items()}
    file = tmp_path / "a.safetensors"
    save_file(names.dinov3(state, original), file)
    weights = read_into(network, file)
    assert weights.layout == ("DINOv3's original names" if original else "transformers' DINOv3")
    assert same(network, state)
    without = eva("vit_small_patch16_dinov3")
    with pytest.raises(WeightsError, match=r"attn\.q_bias is not part of it"):
        read_into(without, file)
    state |= {name: torch.zeros_like(value) for name, value in state.items() if name.endswith("_bias")}
    save_file(names.dinov3(state, original), file)
    read_into(network, file)
    assert same(network, state)
    read_into(without, file)
    assert same(without, {name: value for name, value in state.items() if not name.endswith("_bias")})
    assert capsys.readouterr().out == ""  # timm's filter prints there


def test_features_of_torchvision_are_its_own(tmp_path):
    from torchvision.models import VisionTransformer

    torch.manual_seed(0)
    theirs = VisionTransformer(
        image_size=16, patch_size=8, num_layers=2, num_heads=3, hidden_dim=24, mlp_dim=96, num_classes=5
    ).eval()
    theirs.heads = torch.nn.Identity()
    for value in theirs.parameters():
        torch.nn.init.normal_(value, std=0.2)
    save_file(theirs.state_dict(), tmp_path / "a.safetensors")
    network = small().eval()
    read_into(network, tmp_path / "a.safetensors")
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(network.forward_features(images)[:, 0], theirs(images), atol=1e-5, rtol=0)


@pytest.mark.parametrize("first", [True, False])
def test_arrays_of_jax(first, tmp_path):
    network = small()
    state = {name: value.clone() for name, value in network.state_dict().items()}
    arrays = names.big_vision(state, heads=3, first=first)
    np.savez(tmp_path / "a.npz", **({} if first else {"opt/step": np.zeros(1)}), **_placed(arrays, first))
    weights = read_into(network, tmp_path / "a.npz")
    assert same(network, state)
    assert weights.heads == 3
    assert set(weights.beside) == (
        {"head/kernel", "head/bias"} if first else {"params/head/kernel", "params/head/bias", "opt/step"}
    )


def _placed(arrays, first):
    return arrays if first else {f"params/{name}": value for name, value in arrays.items()}


def _flip(file, arrays):
    """A bit of an array's values."""
    np.savez(file, **arrays)
    content = bytearray(file.read_bytes())
    content[content.index(arrays["cls"].tobytes())] ^= 1
    file.write_bytes(content)


def _header(file, text):
    """An array whose header ends in the middle, of which numpy raises `TokenError`."""
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.npy", b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text)


def test_arrays_that_are_none_of_a_vit(tmp_path):
    cases = {
        "other.npz": (lambda p: np.savez(p, a=np.zeros(2)), "holds no ViT that is known: found a; expected embedding"),
        "few.npz": (
            lambda p: np.savez(p, **{"embedding/kernel": np.zeros((8, 8, 3, 24)), "cls": np.zeros((1, 1, 24))}),
            "holds no ViT of big_vision that timm can read",
        ),
        "flipped.npz": (
            lambda p: _flip(p, names.big_vision(small().state_dict(), heads=3)),
            r"is torn, or no \.npz \(Bad CRC-32 for file 'cls\.npy'\); download it again",
        ),
        "objects.npz": (lambda p: np.savez(p, a=np.array([{}])), r"a\.npy holds Python objects, which are never read"),
        "torn.npz": (lambda p: p.write_bytes(b"PK\x03\x04 torn"), r"is torn, or no \.npz"),
        "header.npz": (lambda p: _header(p, b"{'descr': '<f4', 'fortran_order': False, 'sha"), r"is torn, or no \.npz"),
        "bomb.npz": (lambda p: np.savez_compressed(p, a=np.zeros(1 << 20)), "its arrays are too large for its size"),
    }
    for name, (write, message) in cases.items():
        write(tmp_path / name)
        with pytest.raises(WeightsError, match=message):
            read_weights(tmp_path / name)
