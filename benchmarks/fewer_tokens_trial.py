"""Which way of having fewer tokens loses least? In PyTorch, before anything is exported.

    python benchmarks/fewer_tokens_trial.py --data data/cifar100 --weights weights
    python benchmarks/fewer_tokens_trial.py … --only "merged in block 0" "dropped in block 0"

The frozen student of `make evidence` at 98 pixels (49 patches, 6 blocks), class token and mean of the patches under
scikit-learn's LDA (shrinkage 0.1), the first 20 training and 20 test images of each class of CIFAR-100. A row: share of
the network's multiplications, accuracy with the head of all tokens, and with a head that was fitted to these features.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from torch import Tensor

PER_CLASS, BATCH = 20, 250
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Way = Callable[[Tensor, Tensor, Tensor, Tensor, int], tuple[Tensor, Tensor]]
"""(tokens, sizes, keys, attention of the class token, how many go) → tokens and sizes that are left."""


def pixels(data: Path, split: str) -> tuple[Tensor, np.ndarray]:
    """Normalised images [n, 3, 98, 98] and labels."""
    images, labels = [], []
    for label, folder in enumerate(sorted((data / split).iterdir())):
        for path in sorted(folder.iterdir())[:PER_CLASS]:
            image = Image.open(path).convert("RGB").resize((98, 98), Image.Resampling.BICUBIC)
            images.append((np.asarray(image, np.float32) / 255 - MEAN) / STD)
            labels.append(label)
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float(), np.array(labels)


def matched(keys: Tensor, gone: int) -> Tensor:
    """[B, left, patches]: 1 where a patch token becomes part of one that is left."""
    unit, count = F.normalize(keys, dim=2), keys.shape[1]
    best, nearest = (unit[:, ::2] @ unit[:, 1::2].transpose(1, 2)).max(dim=2)
    order = best.sort(dim=1, descending=True, stable=True).indices
    going, staying = order[:, :gone], order[:, gone:]
    rows, odd = torch.eye(count), torch.arange(1, count, 2)
    into = F.one_hot(nearest.gather(1, going), len(odd)).float()
    return torch.cat([rows[::2][staying], rows[odd] + into.transpose(1, 2) @ rows[::2][going]], dim=1)


def merge(tokens: Tensor, sizes: Tensor, keys: Tensor, seen: Tensor, gone: int) -> tuple[Tensor, Tensor]:
    """ToMe."""
    join = matched(keys[:, 1:], gone)
    count = join @ sizes[:, 1:]
    left = join @ (tokens[:, 1:] * sizes[:, 1:]) / count
    return torch.cat([tokens[:, :1], left], dim=1), torch.cat([sizes[:, :1], count], dim=1)


def drop(tokens: Tensor, sizes: Tensor, keys: Tensor, seen: Tensor, gone: int) -> tuple[Tensor, Tensor]:
    """Those that the class token attends to least."""
    kept = seen.sort(dim=1, descending=True, stable=True).indices[:, : seen.shape[1] - gone] + 1
    own = torch.cat([torch.zeros_like(kept[:, :1]), kept], dim=1).unsqueeze(2)
    return tokens.gather(1, own.expand(-1, -1, tokens.shape[2])), sizes.gather(1, own)


def fuse(tokens: Tensor, sizes: Tensor, keys: Tensor, seen: Tensor, gone: int) -> tuple[Tensor, Tensor]:
    """The same, but one more token is their mean."""
    kept = drop(tokens, sizes, keys, seen, gone)
    lost = seen.sort(dim=1, descending=True, stable=True).indices[:, seen.shape[1] - gone :] + 1
    mean = tokens.gather(1, lost.unsqueeze(2).expand(-1, -1, tokens.shape[2])).mean(dim=1, keepdim=True)
    return torch.cat([kept[0], mean], dim=1), torch.cat([kept[1], torch.full_like(sizes[:, :1], gone)], dim=1)


@torch.no_grad()
def features(
    net: Any, images: Tensor, way: Way, plan: dict[int, int], log_size: bool = True
) -> tuple[np.ndarray, float]:
    """[n, 2 D], and the share of the multiplications; `plan`: block → how many go between attention and MLP."""
    found, width, done = [], net.embed_dim, 0.0
    for chunk in images.split(BATCH):
        tokens = net._pos_embed(net.patch_embed(chunk))
        sizes, patches = torch.ones(*tokens.shape[:2], 1), tokens.shape[1] - 1
        done = patches * 588 * width
        for index, block in enumerate(net.blocks):
            attention, count = block.attn, tokens.shape[1]
            qkv = attention.qkv(block.norm1(tokens)).unflatten(2, (3, attention.num_heads, -1))
            query, key, value = qkv.permute(2, 0, 3, 1, 4)
            scores = query * attention.scale @ key.transpose(2, 3)
            shares = (scores + sizes.log()[:, None, None, :, 0] if log_size else scores).softmax(dim=3)
            tokens = tokens + block.ls1(attention.proj((shares @ value).transpose(1, 2).flatten(2)))
            if index in plan:
                tokens, sizes = way(tokens, sizes, key.mean(dim=1), shares[:, :, 0, 1:].mean(dim=1), plan[index])
            tokens = tokens + block.ls2(block.mlp(block.norm2(tokens)))
            done += 4 * count * width**2 + 2 * count**2 * width + 8 * tokens.shape[1] * width**2
        normed, weights = net.norm(tokens), sizes[:, 1:] / sizes[:, 1:].sum(dim=1, keepdim=True)
        found.append(torch.cat([normed[:, 0], (normed[:, 1:] * weights).sum(dim=1)], dim=1))
    whole = patches * 588 * width + len(net.blocks) * (12 * (patches + 1) * width**2 + 2 * (patches + 1) ** 2 * width)
    return torch.cat(found).double().numpy(), done / whole


@torch.no_grad()
def unmerged(net: Any, images: Tensor, gone: int) -> tuple[np.ndarray, float]:
    """All tokens live on: each block computes the merged ones, and what it adds is added to every member."""
    found, width, patches = [], net.embed_dim, net.patch_embed.num_patches
    for chunk in images.split(BATCH):
        tokens = net._pos_embed(net.patch_embed(chunk))
        first = net.blocks[0].attn.qkv(net.blocks[0].norm1(tokens)).unflatten(2, (3, net.blocks[0].attn.num_heads, -1))
        join = F.pad(matched(first[:, 1:, 1].mean(dim=2), gone), (1, 0, 1, 0))
        join[:, 0, 0] = 1
        sizes = join.sum(dim=2, keepdim=True)
        for block in net.blocks:
            own = join @ tokens / sizes
            query, key, value = block.attn.qkv(block.norm1(own)).unflatten(
                2, (3, block.attn.num_heads, -1)
            ).permute(2, 0, 3, 1, 4)  # fmt: skip
            shares = (query * block.attn.scale @ key.transpose(2, 3) + sizes.log()[:, None, None, :, 0]).softmax(dim=3)
            new = own + block.ls1(block.attn.proj((shares @ value).transpose(1, 2).flatten(2)))
            new = new + block.ls2(block.mlp(block.norm2(new)))
            tokens = tokens + join.transpose(1, 2) @ (new - own)
        normed = net.norm(tokens)
        found.append(torch.cat([normed[:, 0], normed[:, 1:].mean(dim=1)], dim=1))
    blocks = len(net.blocks)
    costs = [
        patches * 588 * width + blocks * (12 * count * width**2 + 2 * count**2 * width)
        for count in (patches + 1 - gone, patches + 1)
    ]
    return torch.cat(found).double().numpy(), (costs[0] + (patches + 1) * width**2) / costs[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, default=Path("weights"))
    parser.add_argument("--only", nargs="+", default=[])
    given = parser.parse_args()
    torch.set_num_threads(1)
    net = timm.create_model("vit_small_patch14_dinov2", img_size=98, depth=6, num_classes=0).eval()
    net.load_state_dict(load_file(given.weights / "student.safetensors"))

    def plain(way: Way, plan: dict[int, int], log_size: bool = True) -> Callable[[Tensor], tuple[np.ndarray, float]]:
        return lambda images: features(net, images, way, plan, log_size)

    ways: dict[str, Callable[[Tensor], tuple[np.ndarray, float]]] = {
        "all tokens": plain(merge, {}),
        "merged in block 0": plain(merge, {0: 24}),
        "the same, attention without sizes": plain(merge, {0: 24}, log_size=False),
        "merged in blocks 0 and 1": plain(merge, {0: 14, 1: 10}),
        "merged in blocks 1 and 2": plain(merge, {1: 22, 2: 10}),
        "merged in blocks 0 to 4": plain(merge, dict.fromkeys(range(5), 8)),
        "merged in blocks 2 to 4": plain(merge, {2: 24, 3: 12, 4: 6}),
        "dropped in block 0": plain(drop, {0: 24}),
        "dropped in block 0, their mean kept": plain(fuse, {0: 24}),
        "merged for each block, all live on": lambda images: unmerged(net, images, 24),
    }
    (train, labels), (test, truth) = (pixels(given.data, split) for split in ("train", "test"))

    def fitted(rows: np.ndarray) -> Any:
        return LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.1).fit(rows, labels)

    first = fitted(ways["all tokens"](train)[0])
    print("| | cost | head of all tokens | head of these features |\n|---|---|---|---|")
    for name, way in ways.items():
        if given.only and name not in given.only:
            continue
        rows, cost = way(test)
        own = fitted(way(train)[0])
        shown = [100 * float((head.predict(rows) == truth).mean()) for head in (first, own)]
        print(f"| {name} | {cost:.3f} | {shown[0]:.1f} | {shown[1]:.1f} |", flush=True)


if __name__ == "__main__":
    main()
