"""The method written a second time: one image, one head, one row at a time, as slowly and plainly as possible."""

from __future__ import annotations

import math

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor


def naive_attention(vit, index: int, tokens: Tensor, before=None, after=None, shift=None) -> Tensor:
    """Attention of one image [N, D]; `before` and `after` are pairs of rows [p, D]."""
    attention = vit.blocks[index].attn
    width, heads = tokens.shape[1], attention.num_heads
    size = width // heads
    q, k, v = (tokens @ attention.qkv.weight[i * width : (i + 1) * width].T for i in range(3))
    if attention.qkv.bias is not None:
        q, k, v = (x + attention.qkv.bias[i * width : (i + 1) * width] for i, x in enumerate((q, k, v)))
    if shift is not None:
        k, v = k.clone(), v.clone()
        k[0] += shift[0]
        v[0] += shift[1]
    rows_k = [*(before[0] if before else []), *k, *(after[0] if after else [])]
    rows_v = [*(before[1] if before else []), *v, *(after[1] if after else [])]
    result = torch.zeros_like(tokens)
    for n in range(len(tokens)):
        for h in range(heads):
            cut = slice(h * size, (h + 1) * size)
            scores = torch.stack([torch.dot(q[n, cut], row[cut]) / math.sqrt(size) for row in rows_k])
            weights = torch.exp(scores - scores.max())
            weights = weights / weights.sum()
            result[n, cut] = sum(weights[j] * rows_v[j][cut] for j in range(len(rows_v)))
    return result @ attention.proj.weight.T + attention.proj.bias


@torch.no_grad()
def tokens_after(vit, images: Tensor, block: int) -> Tensor:
    """By timm's own forward pass: the tokens [B, N, D] after a block, counted from 0, through the final norm."""
    kept = []
    hook = vit.blocks[block].register_forward_hook(lambda module, inputs, output: kept.append(output))
    vit.forward_features(images)
    hook.remove()
    return vit.norm(kept[0])


def naive_block(vit, index: int, tokens: Tensor, **prompts) -> Tensor:
    block = vit.blocks[index]
    tokens = tokens + naive_attention(vit, index, block.norm1(tokens), **prompts)
    return tokens + block.mlp(block.norm2(tokens))


def naive_embed(vit: VisionTransformer, image: Tensor) -> Tensor:
    """One normalised image [3, h, w] → tokens [N, D], patch by patch."""
    weight, bias = vit.patch_embed.proj.weight, vit.patch_embed.proj.bias
    size = weight.shape[-1]
    patches = []
    for y in range(0, image.shape[1], size):
        for x in range(0, image.shape[2], size):
            patches.append((weight * image[:, y : y + size, x : x + size]).sum((1, 2, 3)) + bias)
    return torch.stack([vit.cls_token[0, 0], *patches]) + vit.pos_embed[0]


def naive_coda_weights(query: Tensor, attentions: Tensor, keys: Tensor) -> list[float]:
    weights = []
    for a, k in zip(attentions, keys, strict=True):
        product = query * a
        weights.append((torch.dot(product, k) / (product.norm() * k.norm())).item())
    return weights
