#!/usr/bin/env bash
# timm's loader of original DINOv3 weights leaves trained q and v biases out where the model has none, and strict loading
# then succeeds: the model gives other features than the checkpoint's.
#
# timm 1.0.31, torch 2.15.0. vit_*_patch16_dinov3 has no q/k/v biases, vit_*_patch16_dinov3_qkvb has. The published
# checkpoints have biases that are next to zero; those of a fine-tuned one are not. timm.models.eva.checkpoint_filter_fn
# prints a line on standard output for each and drops them, whatever their values, so load_state_dict(strict=True), which
# people rely on to tell them, says that all keys match.
#
# Seen (it exits with 1 where this changes):
#   with biases: all keys matched, features differ by 0.0
#   without: all keys matched, features differ by more than 0.1
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet timm==1.0.31 torch==2.15.0 torchvision==0.29.2
"$folder/venv/bin/python" - <<'CODE'
import sys

import timm
import torch
from timm.models.eva import checkpoint_filter_fn

small = {"img_size": 32, "patch_size": 16, "embed_dim": 48, "depth": 1, "num_heads": 3, "num_classes": 0}
torch.manual_seed(0)
trained = timm.create_model("vit_small_patch16_dinov3_qkvb", **small).eval()
for parameter in trained.parameters():
    torch.nn.init.normal_(parameter, std=0.5)

checkpoint = {}  # the same weights under the names of the original code
for name, value in trained.state_dict().items():
    if not name.endswith(("q_bias", "v_bias")):
        name = name.replace("gamma_1", "ls1.gamma").replace("gamma_2", "ls2.gamma").replace("reg_token", "storage_tokens")
        checkpoint[name] = value
attention = trained.blocks[0].attn
zeros = torch.zeros_like(attention.q_bias)
checkpoint["blocks.0.attn.qkv.bias"] = torch.cat([attention.q_bias, zeros, attention.v_bias]).detach()

images = torch.rand(2, 3, 32, 32)
found = []
for words, tag in (("with biases", "vit_small_patch16_dinov3_qkvb"), ("without", "vit_small_patch16_dinov3")):
    model = timm.create_model(tag, **small).eval()
    matched = model.load_state_dict(checkpoint_filter_fn(dict(checkpoint), model), strict=True)
    with torch.no_grad():
        difference = (model(images) - trained(images)).abs().max().item()
    print(f"{words}: {matched}, features differ by {difference:.2f}")
    found.append((not matched.missing_keys and not matched.unexpected_keys, difference))
sys.exit(0 if found[0] == (True, 0.0) and found[1][0] and found[1][1] > 0.1 else 1)
CODE
