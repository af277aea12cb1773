"""KDP, distillation with global KD prompts (Zhang et al., arXiv 2407.13911; method, section 4).

One KD token is appended to the sequence before the first prompted block; every block after that gets KD prompt rows
behind its keys and values. A KD head reads the token and learns from the teacher. Token, rows and head are created once
and carried through all tasks: they are the teacher's memory.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cdl_deploy.errors import OptionError
from cdl_deploy.training.config import MethodConfig
from cdl_deploy.training.distillation.protocol import Distillation, Output
from cdl_deploy.training.losses import distillation_loss
from cdl_deploy.training.methods import build_head
from cdl_deploy.training.models.backbone import BlockPrompt, NetworkShape
from cdl_deploy.training.shapes import Logits, Tokens


class KDPrompts(Distillation):
    """KD token [1, D], KD prompt rows [L − 1, 2, p, D] and the KD head.

    Differs: the token starts as the backbone's class token, so that the KD head reads the features the backbone was
    trained to give from the first step on, and token and rows learn at a tenth of the learning rate. The paper starts
    the token uniform in [0, 1) and gives all the whole rate. Where a task has a hundred steps and not fifteen hundred,
    the token then never learns to read, and what earlier tasks' rows of the KD head relied on drifts away under them
    (docs/findings.md). `kd_token_start="uniform"` and `kd_lr_scale=1` are the paper's.
    """

    needs_teacher = True
    reads = (0, -1)

    def __init__(
        self,
        shape: NetworkShape,
        class_token: Float[Tensor, "1 D"],
        config: MethodConfig,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.alpha, self.temperature, self.lr_scale = config.alpha, config.temperature, config.kd_lr_scale
        self.first_prefix = shape.first_block + 1
        prefixes, rows = shape.depth - self.first_prefix, config.kd_prompt_rows
        if prefixes < 1:
            advice = "choose a deeper one" + (" or a smaller K for --query block:K" if shape.first_block else "")
            raise OptionError(
                f"KDP prompts the student from block {self.first_prefix} on, but it ends before: {advice}"
            )
        uniform = torch.rand(1, shape.width, generator=generator)
        self.token = nn.Parameter(uniform if config.kd_token_start == "uniform" else class_token.clone())
        self.rows = nn.Parameter(torch.rand(prefixes, 2, rows, shape.width, generator=generator))
        self.head = build_head(shape.width, config)

    def begin_task(self, new_classes: int, generator: torch.Generator, known: Sequence[int] = ()) -> None:
        self.head.begin_task(new_classes, generator, known)

    def append_token(self, tokens: Tokens) -> Float[Tensor, "B N+1 D"]:
        return torch.cat([tokens, self.token.expand(tokens.shape[0], 1, -1)], dim=1)

    def block_prompts(self) -> dict[int, BlockPrompt]:
        pairs = enumerate(self.rows.unbind(0), start=self.first_prefix)
        return {index: BlockPrompt(after=(pair[0:1], pair[1:2])) for index, pair in pairs}

    def extra_logits(self, normalised_tokens: Tokens) -> Logits:
        return self.head(normalised_tokens[:, -1])

    def shared_parameters(self) -> tuple[list[nn.Parameter], float]:
        return [self.token, self.rows], self.lr_scale

    def predict(self, class_logits: Logits, extra_logits: Logits | None) -> Logits:
        """(1 − α)·z_class + α·z_kd, raw logits."""
        assert extra_logits is not None
        return (1 - self.alpha) * class_logits + self.alpha * extra_logits

    def losses(
        self, cross_entropy: Tensor, student: Output, teacher: Output | None, first_class: int
    ) -> dict[str, Tensor]:
        """(1 − α)·CE on the class head, α·KD on the KD head over the current task's classes (method, section 5)."""
        assert teacher is not None and student.extra_logits is not None
        soft = distillation_loss(
            student.extra_logits[:, first_class:], teacher.class_logits[:, first_class:], self.temperature
        )
        return {"cross_entropy": (1 - self.alpha) * cross_entropy, "distillation": self.alpha * soft}
