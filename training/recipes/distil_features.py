"""Distil a student that is cut from a frozen teacher towards what closed-form heads read of the teacher.

That is the class token and the mean of the patches after the final norm, and the mean of the patches after two earlier
blocks: four vectors an image, whatever the size of the image, so that the student may see a smaller one than the
teacher. They are computed once (`TeacherFeatures`).

A head that divides by a covariance reads small directions as well as large ones, so the loss is not the squared error
of the features as they are (`distil_tokens`), in which a few large directions decide. They are centred, turned to their
principal directions, of which the largest are kept, and divided there by their deviation. The student's features, of
its own last blocks, go there by a linear map, which begins as the ridge regression and is thrown away in the end.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from cdl_deploy.training.recipes.backbone_probes import decode
from cdl_deploy.training.recipes.distil_tokens import BATCH, Distillation, TeacherTokens

RECIPE = {"epochs": 1, "batch_size": 32, "lr": 3e-5}
"""What is not as it is for tokens: the student begins near its end, and new images teach it more than known ones."""
EARLIER = (4, 2)
"""So many blocks before the last the patches are read as well, in teacher and student."""
DIRECTIONS = 512
"""Most principal directions of the teacher's features that are learned."""
FLOOR = 0.1
"""Share of the mean variance of these directions that is added to each: what is nearly constant stays small."""
START_IMAGES = 2000
"""Images by which the linear map begins."""
RIDGE = 0.03
"""Of that regression: a share of the mean variance of the student's features."""


class TeacherFeatures(TeacherTokens):
    """The features [4 D] of the first images of a shuffled data set; a folder of shards."""

    what = "features"

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.about["features"] = f"class, patches, patches {' and '.join(map(str, EARLIER))} blocks before the last"

    @torch.no_grad()
    def compute(self, pixels: Tensor) -> Tensor:
        """The features [B, 4 D] of these images, on the teacher's device."""
        teacher, hidden = self.teacher, dict[int, Tensor]()
        pixels = pixels.to(teacher.mean.device)
        teacher.run_blocks(teacher.embed(pixels), 0, teacher.depth, after=hidden.__setitem__)
        first = teacher.layout.first_patch
        last = teacher.final_norm(hidden[teacher.depth - 1])
        earlier = [teacher.final_norm(hidden[teacher.depth - back - 1])[:, first:] for back in EARLIER]
        return pooled(last, first, earlier)


def pooled(last: Tensor, first_patch: int, earlier: list[Tensor]) -> Tensor:
    """Features [B, 4 D] of the tokens [B, N, D] after the final norm and the patches [B, P, D] after earlier blocks."""
    patches = [last[:, first_patch:], *earlier]
    return torch.cat([last[:, 0], *(part.mean(dim=1) for part in patches)], dim=1)


class FeatureDistillation(Distillation):
    """One student on its way to its teacher's features."""

    decay = 0.99
    floor = FLOOR

    def make_head(self, student: VisionTransformer) -> nn.Module:
        """From the student's features to the teacher's principal directions."""
        width = (2 + len(EARLIER)) * self.tokens.teacher.width
        return nn.Linear((2 + len(EARLIER)) * student.embed_dim, min(DIRECTIONS, width, len(self.tokens) - 1))

    def measured(self) -> list[Tensor]:
        """The mean [F] of the teacher's features, what takes them to their scaled principal directions [F, K], and the
        variance there, summed over the directions.

        Where nothing has been learned yet, the head is solved as well.
        """
        features = self.tokens.read(list(range(len(self.tokens)))).double()
        mean = features.mean(dim=0)
        values, vectors = torch.linalg.eigh((features - mean).T @ (features - mean) / (len(features) - 1))
        kept = cast(nn.Linear, self.model["head"]).out_features
        values, vectors = values.flip(0)[:kept], vectors.flip(1)[:, :kept]
        raised = values + self.floor * values.mean()
        scaled = vectors / raised.sqrt()
        if not self.state.file.exists():
            self._solve_head((features[:START_IMAGES] - mean) @ scaled)
        return [it.float().to(self.device) for it in (mean, scaled, (values / raised).sum())]

    def features(self, vit: VisionTransformer, pixels: Tensor) -> Tensor:
        """The student's [B, 4 D], of uint8 pixels [B, 3, side, side]."""
        teacher, depth = self.tokens.teacher, len(vit.blocks)
        images = (pixels.to(self.device).float() / 255 - teacher.mean) / teacher.std
        blocks = [depth - back - 1 for back in EARLIER]
        found = vit.forward_intermediates(images, indices=blocks, norm=True, output_fmt="NLC")
        last, earlier = cast(tuple[Tensor, list[Tensor]], found)
        return pooled(last, vit.num_prefix_tokens, earlier)

    def loss(self, model: nn.ModuleDict, pixels: Tensor, wanted: Tensor, measured: list[Tensor]) -> Tensor:
        """The share of the scaled directions' variance that is not explained."""
        mean, scaled, variance = measured
        target = (wanted.to(self.device) - mean) @ scaled
        found = model["head"](self.features(cast(VisionTransformer, model["vit"]), pixels))
        return (found - target).square().sum(dim=1).mean() / variance

    @torch.no_grad()
    def _solve_head(self, targets: Tensor) -> None:
        """Ridge regression from the student's features, as they are now, to `targets` [n, K]."""
        vit, head = cast(VisionTransformer, self.model["vit"]), cast(nn.Linear, self.model["head"])
        items, parts = self.tokens.items[: len(targets)], []
        for start in range(0, len(items), BATCH):
            parts.append(self.features(vit, decode(items[start : start + BATCH], self.view, self.pool)).double().cpu())
        rows = torch.cat(parts)
        mean = rows.mean(dim=0)
        gram = (rows - mean).T @ (rows - mean)
        gram.diagonal().add_(RIDGE * float(gram.diagonal().mean()))
        weight = torch.linalg.solve(gram, (rows - mean).T @ targets).T
        head.weight.copy_(weight)
        head.bias.copy_(targets.mean(dim=0) - weight @ mean)
        self.average["head"].load_state_dict(head.state_dict())
