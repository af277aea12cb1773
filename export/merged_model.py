"""The trained model with its patch tokens merged: what a file of `--tokens` is compared with.

It merges by another computation than the graph's: every patch keeps a token, and those that are merged hold the same
values, their mean. So no attention and no mean has to know how many patches a token stands for.

Which tokens merge is a choice, and where two choices are equally good to within rounding the file may make the other
one: images with such a choice are told apart (`clear`), and the comparison is of the others.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from cdl_deploy.errors import OptionError
from cdl_deploy.export.images_of_run import task_data
from cdl_deploy.export.merging import patch_count, patches_left, plan_merging
from cdl_deploy.run.record import RunRecord
from cdl_deploy.training.backbones.plain import PlainViT
from cdl_deploy.training.backbones.protocol import Backbone, BlockPrompt, OutputTokens
from cdl_deploy.training.data.task_data import TaskImages
from cdl_deploy.training.data.transforms import PixelTransform
from cdl_deploy.training.fitting import fit_closed_form
from cdl_deploy.training.heads.closed_form import ClosedFormHead
from cdl_deploy.training.models.learner import Learner, QueryEncoder, learner_output
from cdl_deploy.training.models.teacher_student import TeacherStudent
from cdl_deploy.training.processes import Processes
from cdl_deploy.training.shapes import Pixels, Tokens

CLOSE = 1e-5
"""Difference of two cosines, of keys that the file computes in another order, within which either may be the larger."""
BATCH = 64


class MergingViT(PlainViT):
    """A `PlainViT` whose patches merge in the blocks of `steps`: block → how many go."""

    steps: Mapping[int, int]
    groups: Int64[Tensor, "B patches"]
    """Which token each patch has become part of."""
    margins: list[Float[Tensor, " B"]] | None
    """Where they are asked for: the least difference that decided about each image, a merging each."""

    @classmethod
    def of(cls, backbone: Backbone, steps: Mapping[int, int]) -> MergingViT:
        """With the parameters of `backbone`, which stays as it is."""
        if not isinstance(backbone, PlainViT):
            raise OptionError(f"--tokens is not known for {type(backbone).__name__}: leave it out")
        own = copy.copy(backbone)
        family = type(backbone)  # what another package's overrides stays so
        own.__class__ = cls if family is PlainViT else type(f"Merging{family.__name__}", (cls, family), {})
        merging: MergingViT = own  # type: ignore[assignment]
        merging.steps, merging.margins = dict(steps), None
        return merging

    def run_block(
        self, index: int, tokens: Tokens, prompt: BlockPrompt | None = None, output_tokens: OutputTokens = None
    ) -> Float[Tensor, "B n D"]:
        if index not in self.steps:
            return super().run_block(index, tokens, prompt, output_tokens)
        normed = self.norm(index, tokens)
        tokens = self.add_attention(index, tokens, self._attention(index, normed, prompt or BlockPrompt()))
        keys = self.position(index, self.qkv(index, normed, 1, 1)[0], True).mean(dim=1)
        patches = slice(self.layout.first_patch, self.layout.count)
        if index == min(self.steps):
            self.groups = torch.arange(patch_count(self)).expand(len(tokens), -1)
        self.merge(keys[:, patches], self.steps[index])
        member = torch.nn.functional.one_hot(self.groups).to(tokens)  # [B, patches, groups]
        means = member.transpose(1, 2) @ tokens[:, patches] / member.sum(dim=1).unsqueeze(2)
        merged = [tokens[:, : patches.start], member @ means, tokens[:, patches.stop :]]
        return self.mlp(index, torch.cat(merged, dim=1))

    def merge(self, keys: Float[Tensor, "B patches d"], gone: int) -> None:
        """Join groups: those at odd places take `gone` of those at even ones. All members of a group have one key."""
        first = torch.nn.functional.one_hot(self.groups).argmax(dim=1)  # the first patch of each group
        units = torch.nn.functional.normalize(keys.gather(1, first.unsqueeze(2).expand(-1, -1, keys.shape[2])), dim=2)
        scores = units[:, ::2] @ units[:, 1::2].transpose(1, 2)
        best, nearest = scores.max(dim=2)
        order = best.sort(dim=1, descending=True, stable=True).indices
        going, staying = order[:, :gone], order[:, gone:].sort(dim=1).values
        new = torch.empty_like(first)
        new[:, 1::2] = torch.arange(scores.shape[2]) + staying.shape[1]
        evens = new[:, ::2].clone()
        evens.scatter_(1, staying, torch.arange(staying.shape[1]).expand_as(staying))
        evens.scatter_(1, going, nearest.gather(1, going) + staying.shape[1])
        new[:, ::2] = evens
        self.groups = new.gather(1, self.groups)
        if self.margins is not None:
            self.margins.append(least_margin(scores, best, order, gone))


def least_margin(
    scores: Float[Tensor, "B a b"], best: Float[Tensor, "B a"], order: Int64[Tensor, "B a"], gone: int
) -> Float[Tensor, " B"]:
    """By how much the nearest of B is nearer than the next, of those that go; and the last to go before the next."""
    margins = [torch.full_like(best[:, 0], torch.inf)]
    if scores.shape[2] > 1:
        two = scores.topk(2, dim=2).values
        margins.append((two[..., 0] - two[..., 1]).gather(1, order[:, :gone]).amin(dim=1))
    if gone < best.shape[1]:
        ordered = best.gather(1, order)
        margins.append(ordered[:, gone - 1] - ordered[:, gone])
    return torch.stack(margins).amin(dim=0)


class MergedModel:
    """A learner, and the query that its prompts are selected by, with their tokens merged as export merges them."""

    def __init__(self, pair: TeacherStudent, learner: Learner, share: float) -> None:
        """Neither `pair` nor `learner` is changed. Raises OptionError where `share` is not possible for one of them."""
        encoder = pair.encoder
        own = MergingViT.of(learner.backbone, plan_merging(learner.backbone, share, learner.first_block))
        query = own
        if learner.backbone is not encoder.backbone:
            steps = {} if encoder.block else plan_merging(encoder.backbone, share)
            query = MergingViT.of(encoder.backbone, steps)
        self.backbones = [own] if query is own else [own, query]
        self.left, self.patches = patches_left(own, share), patch_count(own)
        self.learner = copy.copy(learner)
        self.learner._modules = {**learner._modules, "backbone": own}
        self.pair = TeacherStudent(QueryEncoder(query, encoder.block), self.learner, None)

    def solve_head(self, tasks: Iterable[TaskImages], transform: PixelTransform) -> None:
        """Solve the closed-form head anew from the images of all tasks, as training did, of merged tokens."""
        old = self.learner.closed_form
        assert old is not None
        head = ClosedFormHead(old.width, old.rule, old.features, old.map.projection)
        self.learner._modules["closed_form"] = head
        for images in tasks:
            fit_closed_form(self.pair, images, transform, 0, Processes(torch.device("cpu")))

    @torch.no_grad()
    def clear(self, images: Pixels, prompts: dict[int, BlockPrompt] | None = None) -> Bool[Tensor, " n"]:
        """Of which images no choice was close; with `prompts` in place of those that an image selects."""
        found = []
        for chunk in images.split(BATCH):
            margins: list[Tensor] = []
            for backbone in self.backbones:
                backbone.margins = margins
            learner_output(self.pair.encoder, self.learner, chunk, prompts=prompts)
            found.append(torch.stack(margins).amin(dim=0) > CLOSE)
        for backbone in self.backbones:
            backbone.margins = None
        return torch.cat(found)


def training_tasks(root: Path, record: RunRecord) -> list[TaskImages] | None:
    """The training images of every task, without those of forgotten classes; None where some are gone or changed."""
    data, known = task_data(root, record), set(record.known_positions)
    tasks = []
    for number in range(1, len(record.tasks) + 1):
        images = data.kept_training(number)
        if images is None:
            return None
        kept = [place for place, label in enumerate(images.labels) if label in known]
        if kept:
            tasks.append(images.at(kept))
    return tasks
