"""timm's own ViTs as PyTorch's exporter writes them: from the ONNX file back to the same values.

Here and not in the suite, because an export takes seconds.
"""

from __future__ import annotations

from functools import partial

import pytest
import torch
from timm.layers import QuickGELU, SwiGLUPacked
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from cdl_deploy.training.backbones.weights_files.filling import fill
from cdl_deploy.training.backbones.weights_files.weights import read_weights

pytestmark = [pytest.mark.foreign, pytest.mark.filterwarnings("default")]

SHAPE = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 4, "mlp_ratio": 2}
CASES = {
    "plain": {},
    "registers and layer scale": {"reg_tokens": 4, "no_embed_class": True, "init_values": 1.0},
    "clip": {"pre_norm": True, "act_layer": QuickGELU, "norm_layer": partial(nn.LayerNorm, eps=1e-5)},
    "mean of patches": {"class_token": False, "global_pool": "avg", "fc_norm": False},
    "gated": {"mlp_layer": SwiGLUPacked, "act_layer": nn.SiLU, "mlp_ratio": 3},
    "other gelu": {"act_layer": "gelu_tanh"},
}


class Bytes(nn.Module):
    """A classifier of bytes, channels last, that normalises pixels itself."""

    def __init__(self, vit):
        super().__init__()
        self.vit = vit

    def forward(self, images):
        return self.vit((images.permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.25).softmax(-1)


@pytest.mark.parametrize("case", [*CASES, "bytes"])
def test_values_come_back(case, tmp_path):
    torch.manual_seed(0)
    changes = CASES.get(case, {})
    vit = VisionTransformer(**{**SHAPE, "num_classes": 5, **changes}).eval()
    for value in vit.parameters():
        nn.init.normal_(value, std=0.2)
    images = torch.randn(1, 3, 32, 32)
    model = vit
    if case == "bytes":
        model, images = Bytes(vit).eval(), torch.randint(0, 255, (1, 32, 32, 3), dtype=torch.uint8)
    torch.onnx.export(model, (images,), tmp_path / "vit.onnx", dynamo=True, verbose=False)
    weights = read_weights(tmp_path / "vit.onnx")
    assert weights.heads == 4
    assert "the same" in weights.checked
    assert len(weights.beside) >= 2  # the classifier's
    again = VisionTransformer(**{**SHAPE, "num_classes": 0, **changes})
    fill(again, weights.tensors, tmp_path)
    values = vit.state_dict()
    assert all(torch.equal(value, values[name]) for name, value in again.state_dict().items())
