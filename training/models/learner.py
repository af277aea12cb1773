"""A learner: a frozen backbone with the prompts, heads and, for the student, the distillation that train on it."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from cdl_deploy.training.backbones.protocol import Backbone, BlockPrompt, OutputTokens
from cdl_deploy.training.distillation.protocol import Distillation, LearnerOutput
from cdl_deploy.training.features import Feature, at_the_end, early_blocks, in_order, side_by_side, with_early
from cdl_deploy.training.heads import FoldedHead, Head
from cdl_deploy.training.heads.closed_form import ClosedFormHead
from cdl_deploy.training.methods.protocol import ContinualMethod, Phase, PromptSelection
from cdl_deploy.training.models.calibration import TaskCalibration
from cdl_deploy.training.shapes import Logits, Pixels, Query, Tokens

Role = Literal["teacher", "student"]
CLASS: tuple[Feature, ...] = ("class",)


class QueryResult(NamedTuple):
    """The query of a batch, and the student's tokens as far as computing it has brought them."""

    query: Query | None
    student_tokens: Tokens
    entry: int = 0
    """The block these tokens enter."""


class QueryEncoder:
    """q: the class token after the final norm of the unprompted student backbone (method, section 2).

    Computed once a batch and shared by teacher and student. With `block` K it is the class token after block K − 1,
    through the final norm, and the student goes on from there (method, section 9). With 0, the full query, the
    unprompted pass goes to the end and the student starts over from its embedded tokens.
    """

    def __init__(self, student: Backbone, block: int = 0) -> None:
        self.backbone = student
        self.block = block

    @torch.no_grad()
    def __call__(self, images: Pixels, needed: bool = True) -> QueryResult:
        """The query [B, Q] of the images, or None where no method looks at it."""
        return self.from_tokens(self.backbone.embed(images), needed)

    @torch.no_grad()
    def from_tokens(self, tokens: Tokens, needed: bool = True) -> QueryResult:
        """The same, from the student's embedded tokens."""
        if not needed:
            return QueryResult(None, tokens)
        if self.block:
            tokens = self.backbone.run_blocks(tokens, 0, self.block)
            return QueryResult(self.backbone.pool(tokens, CLASS)[:, 0], tokens, self.block)
        return QueryResult(self.full_query(QueryResult(None, tokens)), tokens)

    @torch.no_grad()
    def full_query(self, result: QueryResult) -> Query:
        """The query of the whole unprompted pass, which goes on where `result` ended."""
        backbone, tokens = self.backbone, result.student_tokens
        last = backbone.run_blocks(tokens, result.entry, backbone.depth, output_tokens=backbone.output_tokens(CLASS))
        return backbone.pool(last, CLASS)[:, 0]


class EarlyPatches:
    """The features of earlier blocks: the mean patch after some of them, through the final norm."""

    def __init__(self, backbone: Backbone, features: Collection[Feature]) -> None:
        """`features`: all that is to be computed."""
        self.backbone = backbone
        self.last, self.blocks = at_the_end(features), early_blocks(features)
        self.found: dict[int, Float[Tensor, "B D"]] = {}

    def take(self, block: int, tokens: Tokens) -> None:
        """The tokens after `block`."""
        if block in self.blocks:
            self.found[block] = self.backbone.mean_patch(self.backbone.final_norm(tokens))

    def beside(self, pooled: Float[Tensor, "B n D"]) -> Float[Tensor, "B m D"]:
        """All features, of those called `last`. RuntimeError where the pass began behind one of the blocks."""
        if missing := set(self.blocks) - set(self.found):
            raise RuntimeError(f"patches@{min(missing)}: the tokens after that block were not computed here")
        return with_early(pooled, self.last, self.found)


class Learner(nn.Module):
    """Teacher or student. `tasks` holds the number of classes each task brought."""

    def __init__(
        self,
        role: Role,
        backbone: Backbone,
        method: ContinualMethod,
        distillation: Distillation,
        class_head: Head,
        first_block: int = 0,
        calibration: TaskCalibration | None = None,
        closed_form: ClosedFormHead | None = None,
    ) -> None:
        """`first_block`: no prompt and no token of a distillation comes before it. `calibration`: of the predictions.
        `closed_form`: what predicts in place of the learned heads, which then serve training alone."""
        super().__init__()
        self.role = role
        self.backbone = backbone
        self.method = method
        self.class_head = class_head
        self.distillation = distillation
        self.first_block = first_block
        self.calibration = calibration
        self.closed_form = closed_form
        self.tasks: list[int] = []
        self.known: list[int] = []
        """Earlier classes that the current task brings new images of, by their position among the logits."""

    def begin_task(
        self,
        new_classes: int,
        generators: dict[str, torch.Generator],
        known: Sequence[int] = (),
        adapts: bool = True,
    ) -> None:
        """Grow heads, prompts and KD head; `generators` are called `method`, `class_head` and `distillation`.

        Prompts grow only in a task in which they train (`adapts`).
        """
        if adapts:
            self.method.begin_task(generators["method"])
        self.class_head.begin_task(new_classes, generators["class_head"], known)
        self.distillation.begin_task(new_classes, generators["distillation"], known)
        if self.calibration is not None:
            self.calibration.begin_task(new_classes)
        self.tasks.append(new_classes)
        self.known = list(known)

    def end_task(self) -> None:
        """The current task is learned."""
        self.method.end_task()

    @property
    def first_class(self) -> int:
        """Index of the current task's first new class."""
        return sum(self.tasks[:-1])

    @property
    def features(self) -> tuple[Feature, ...]:
        """What its learned heads read, in the order in which it is computed."""
        return in_order((*self.class_head.features, *self.distillation.features))

    @property
    def test_features(self) -> tuple[Feature, ...]:
        """What the closed-form head reads as well."""
        return self.features if self.closed_form is None else in_order((*self.features, *self.closed_form.features))

    @property
    def learns_one_class(self) -> bool:
        """Whether the current task has one class alone: among its own classes there is nothing to tell it from."""
        return len(self.known) + self.tasks[-1] == 1

    def unfrozen_columns(self) -> Int[Tensor, "c"] | None:
        """Positions of the current task's classes where known ones are among them, in rising order; otherwise None."""
        if not self.known:
            return None
        new = range(self.first_class, self.first_class + self.tasks[-1])
        return torch.tensor([*sorted(self.known), *new], device=self.backbone.mean.device)

    def forward(
        self,
        tokens: Tokens,
        query: Query | None,
        phase: Phase,
        entry: int = 0,
        hidden_blocks: int = 0,
        prompts: dict[int, BlockPrompt] | None = None,
    ) -> LearnerOutput:
        """From tokens [B, N, D] that enter block `entry` and the query [B, Q] to the logits of every class seen.

        With `prompts` the method selects nothing: every image gets these.

        The last block computes what the heads read, or, where a distillation looks at the tokens after the last
        `hidden_blocks` blocks, all of them.
        """
        features = self.test_features if phase == "test" else self.features
        output_tokens: OutputTokens = None if hidden_blocks else self.backbone.output_tokens(features)
        hidden: deque[Tensor] = deque(maxlen=hidden_blocks)
        selection = self.method(query, phase) if prompts is None else PromptSelection(prompts)
        prompts = merge(selection.prompts, self.distillation.block_prompts())
        early = EarlyPatches(self.backbone, features)
        early.take(entry - 1, tokens)

        def after(block: int, computed: Tensor) -> None:
            hidden.append(computed)
            early.take(block, computed)

        tokens = self.backbone.run_blocks(tokens, entry, self.first_block, after=after)
        tokens = self.distillation.append_token(tokens)
        tokens = self.backbone.run_blocks(tokens, self.first_block, self.backbone.depth, prompts, output_tokens, after)
        output = self.apply_heads(early.beside(self.backbone.pool(tokens, early.last)), features)
        return replace(output, losses=selection.losses, hidden=list(hidden))

    def apply_heads(
        self, computed: Float[Tensor, "B n D"], features: tuple[Feature, ...] | None = None
    ) -> LearnerOutput:
        """What the heads say to the features that have been computed, called `features`: by default, for them alone."""
        logits = self.class_head(side_by_side(computed, self.class_head.features, features or self.features))
        extra = self.distillation.extra_logits(computed)
        return LearnerOutput(class_logits=logits, extra_logits=extra, features=computed)

    def predict(self, output: LearnerOutput) -> Logits:
        """The logits the learner answers with, every class seen."""
        if self.closed_form is not None and self.closed_form.fitted:
            return self.closed_form(self.closed_form_features(output))
        logits = self.uncalibrated(output)
        return logits if self.calibration is None else self.calibration(logits)

    def closed_form_features(self, output: LearnerOutput) -> Float[Tensor, "B F"]:
        """What the closed-form head reads, side by side, before a projection."""
        assert self.closed_form is not None and output.features is not None
        return side_by_side(output.features, self.closed_form.features, self.test_features)

    def uncalibrated(self, output: LearnerOutput) -> Logits:
        """The same before calibration."""
        return self.distillation.predict(output.class_logits, output.extra_logits)

    def fold_heads(self) -> FoldedHead:
        """`predict` of what `apply_heads` says, as one matrix product."""
        if self.closed_form is not None:
            return self.closed_form.fold()
        folded = self.distillation.fold(self.class_head.fold())
        calibration = self.calibration
        return folded if calibration is None else folded.calibrated(calibration.scale, calibration.offset)

    def prediction_state(self) -> dict[str, Tensor]:
        """What was trained and has a part in the prediction: neither projections of a distillation nor statistics."""
        parts = {"class_head": self.class_head.training_only, "method": self.method.training_only}
        if self.distillation.used_in_prediction:
            parts["distillation"] = self.distillation.training_only
        if self.closed_form is not None:
            parts["closed_form"] = (*self.closed_form.training_only, "temperature", "chosen")
            del parts["class_head"]
        split = [(name.partition("."), value) for name, value in self.trained_state().items()]
        return {f"{part}.{name}": v for (part, _, name), v in split if part in parts and name not in parts[part]}

    def trained_state(self) -> dict[str, Tensor]:
        """Everything that was trained: the state without the frozen backbone."""
        return {name: value for name, value in self.state_dict().items() if not name.startswith("backbone.")}

    def load_trained_state(self, state: dict[str, Tensor], tasks: list[int], known: Sequence[int] = ()) -> None:
        """Restore what `trained_state` gave, at whatever task it was taken."""
        missing, unexpected = self.load_state_dict(state, strict=False)
        missing = [name for name in missing if not name.startswith("backbone.")]
        if missing or unexpected:
            raise KeyError(f"state does not fit the learner: missing {missing}, unexpected {unexpected}")
        self.tasks, self.known = list(tasks), list(known)


def merge(first: dict[int, BlockPrompt], second: dict[int, BlockPrompt]) -> dict[int, BlockPrompt]:
    """Prompts of both; in a block that both prompt, `first` gives the prefix and `second` the KD rows."""
    merged = dict(first)
    for index, prompt in second.items():
        merged[index] = replace(merged[index], suffix=prompt.suffix) if index in merged else prompt
    return merged


def learner_output(
    encoder: QueryEncoder,
    learner: Learner,
    images: Pixels,
    query: QueryResult | None = None,
    prompts: dict[int, BlockPrompt] | None = None,
) -> LearnerOutput:
    """What `learner` computes for `images` at test time, with `prompts` instead of those it would select."""
    result = query or encoder(images, learner.method.uses_query and prompts is None)
    if learner.backbone is encoder.backbone:
        return learner(result.student_tokens, result.query, "test", result.entry, prompts=prompts)
    return learner(learner.backbone.embed(images), result.query, "test", prompts=prompts)


def learner_logits(
    encoder: QueryEncoder,
    learner: Learner,
    images: Pixels,
    query: QueryResult | None = None,
    prompts: dict[int, BlockPrompt] | None = None,
) -> Float[Tensor, "B C"]:
    """What `learner` answers for `images` at test time, with `prompts` instead of those it would select."""
    return learner.predict(learner_output(encoder, learner, images, query, prompts))
