"""Packed layers compute what PyTorch's own do, for tokens and for gradients, and leave no trace."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from cdl_deploy.training.backbones import packed
from cdl_deploy.training.backbones.packed import PackedLinear, can_pack
from cdl_deploy.training.backbones.protocol import BlockPrompt
from cdl_deploy.training.machine import compile_blocks, in_precision
from cdl_deploy.training.step import stage_losses
from tests.training.conftest import make_backbone
from tests.training.test_learner import make_pair

needs_kernels = pytest.mark.skipif(not can_pack(torch.device("cpu")), reason="no oneDNN kernels on this machine")


@needs_kernels
@settings(max_examples=25, deadline=None)
@given(st.integers(1, 70), st.integers(1, 70), st.integers(1, 9), st.booleans(), st.booleans())
def test_a_packed_layer_is_a_linear_layer(inputs, outputs, rows, has_bias, contiguous):
    draw = torch.Generator().manual_seed(inputs + 71 * outputs)
    weight = torch.randn(outputs, inputs, generator=draw)
    bias = torch.randn(outputs, generator=draw) if has_bias else None
    x = torch.randn(2, rows, inputs, generator=draw) if contiguous else torch.randn(rows, 2, inputs).transpose(0, 1)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    layer = PackedLinear(weight, bias)
    found, expected = layer(ours), F.linear(theirs, weight, bias)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    gradient = torch.randn(expected.shape, generator=draw)
    found.backward(gradient)
    expected.backward(gradient)
    torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(layer.then_gelu(ours), F.gelu(expected), atol=1e-4, rtol=1e-4)
    with torch.no_grad():
        assert torch.equal(layer(ours), found)
        torch.testing.assert_close(layer.then_gelu(ours), F.gelu(expected), atol=1e-4, rtol=1e-4)


@needs_kernels
@pytest.mark.parametrize("read", [None, (0, -1)])
def test_a_packed_backbone_computes_the_same(read):
    """Blocks with and without prompts, all tokens and some, and the gradients of prompts and tokens."""
    backbone = make_backbone(width=256, depth=2, heads=4)
    draw = torch.Generator().manual_seed(0)
    tokens = torch.randn(2, 5, 256, generator=draw)
    rows = [torch.randn(shape, 3, 256, generator=draw) for shape in (2, 2, 1, 1)]

    def run():
        leaves = [value.clone().requires_grad_() for value in (tokens, *rows)]
        prompt = BlockPrompt(prefix=(leaves[1], leaves[2]), suffix=(leaves[3], leaves[4]))
        out = backbone.run_blocks(leaves[0], 0, 2, {0: prompt}, read)
        out.square().sum().backward()
        return [out.detach(), *(leaf.grad for leaf in leaves)]

    before, names = run(), set(backbone.state_dict())
    with torch.no_grad():
        apart = backbone.run_blocks(tokens, 0, 2)
    with backbone.packed_layers():
        assert len(backbone.packed) == 4
        during = run()
        with torch.no_grad():
            assert isinstance(backbone.block(0).mlp.forward, packed.PackedMlp)
            torch.testing.assert_close(backbone.run_blocks(tokens, 0, 2), apart, atol=1e-4, rtol=1e-4)
        assert set(backbone.state_dict()) == names
    assert not backbone.packed
    for ours, theirs in zip(during, before, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-4)
        assert not torch.equal(ours, theirs), "nothing was packed"
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(run(), before, strict=True)), "not unpacked"


@needs_kernels
def test_what_is_not_packed(monkeypatch):
    """Small models, compiled ones, bf16, other devices, and a PyTorch without the kernels."""
    small = make_backbone()
    with small.packed_layers():
        assert not small.packed
    assert not can_pack(torch.device("meta"))
    pair = make_pair()
    monkeypatch.setattr("cdl_deploy.training.backbones.timm_vit.SMALLEST_WIDTH", 1)
    backbones = [learner.backbone for learner in pair.learners.values()]
    with in_precision(pair, "fp32"):
        assert all(backbone.packed for backbone in backbones)
    with in_precision(pair, "bf16"):
        assert not any(backbone.packed for backbone in backbones)

    def gone(*_):
        raise RuntimeError("no such operator")

    with monkeypatch.context() as patched:
        patched.setattr(packed, "_pack", gone)
        with in_precision(pair, "fp32"):
            assert not any(backbone.packed for backbone in backbones)
    compile_blocks(pair, "eager")
    with in_precision(pair, "fp32"):
        assert not any(backbone.packed for backbone in backbones)


@pytest.mark.parametrize("missing", ["_reorder_linear_weight", "_linear_pointwise"])
def test_without_the_operators_training_goes_on_unpacked(missing, monkeypatch):
    """PyTorch promises nothing about them: where one is gone, or does something else, layers stay as they are."""

    class Gone:
        def __getattr__(self, name):
            if name == missing:
                raise AttributeError(f"'_OpNamespace' 'mkldnn' object has no attribute '{name}'")
            return lambda weight, *rest: weight

    monkeypatch.setattr("cdl_deploy.training.backbones.timm_vit.SMALLEST_WIDTH", 1)
    pair = make_pair()
    images, labels = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8), torch.tensor([2, 3, 4, 2])
    plain = {name: value.item() for name, value in stage_losses(pair, "student", images, labels).items()}
    monkeypatch.setattr(packed, "mkldnn", Gone())
    assert not can_pack(torch.device("cpu"))
    with in_precision(pair, "fp32"):
        found = {name: value.item() for name, value in stage_losses(pair, "student", images, labels).items()}
    assert found == plain
