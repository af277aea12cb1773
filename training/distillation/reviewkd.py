"""ReviewKD, knowledge review (Chen et al., CVPR 2021, arXiv 2104.09044), for the tokens of ViTs.

Every block of the student learns to predict a block of the teacher, not from its own tokens alone: what the deeper
blocks found is handed down, from the last block to the first, and mixed in by learned gates.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cdl_deploy.errors import RunError
from cdl_deploy.run.method_options import ReviewKDConfig
from cdl_deploy.training.backbones.protocol import NetworkShape
from cdl_deploy.training.distillation.features import TokenMatch, drawn_linear
from cdl_deploy.training.distillation.kd import KD
from cdl_deploy.training.distillation.protocol import LearnerOutput, Networks
from cdl_deploy.training.losses import feature_loss
from cdl_deploy.training.shapes import Labels, Tokens


class ReviewKD(KD):
    """KD, and 0.2·mean over the student's blocks l of MSE(ABF_l, f_T of the teacher's last L blocks).

    The fusions are created once, learn in every task, and are left behind when the student is exported.

    Differs: the paper's teachers have at least as many blocks as their students. Here the last n blocks of both are
    compared in order, n being the number of the one that has fewer; of the student only those that are prompted count,
    since what comes before them cannot change.

    Differs: features are compared by their mean square difference alone. The hierarchical context loss (HCL) also
    compares averages of feature maps over ever larger areas; what it would do for tokens was not measured.
    """

    Config = ReviewKDConfig

    def __init__(
        self, student: NetworkShape, teacher: NetworkShape | None, config: ReviewKDConfig, generator: torch.Generator
    ) -> None:
        super().__init__(config)
        assert teacher is not None
        self.weight = config.reviewkd_weight
        self.match = TokenMatch(student.layout, teacher.layout)
        self.hidden_blocks = count = min(student.depth - student.first_block, teacher.depth)
        self.fusions: nn.Module = nn.ModuleList(
            Fusion(student.width, teacher.width, deepest=index == count - 1, generator=generator)
            for index in range(count)
        )

    @classmethod
    def build(cls, networks: Networks, config: ReviewKDConfig, generator: torch.Generator) -> ReviewKD:
        return cls(networks.student, networks.teacher, config, generator)

    def notes(self) -> list[str]:
        return self.match.notes()

    def check_learns(self) -> None:
        if isinstance(self.fusions, EarlierFusions):
            raise RunError(
                "this run was begun by an earlier version, whose --distill reviewkd had other fusions (sigmoids a "
                "token): its finished tasks can be exported and evaluated, but it cannot go on; train a new run"
            )

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        """Keep fusions of earlier versions as they are; no prediction reads any."""
        begin = f"{prefix}fusions."
        if any(name.startswith(begin) and ".reduce." in name for name in state_dict):
            self.fusions = EarlierFusions(
                {n.removeprefix(begin): v for n, v in state_dict.items() if n.startswith(begin)}
            )
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def losses(
        self,
        cross_entropy: Tensor,
        student: LearnerOutput,
        teacher: LearnerOutput | None,
        first_class: int,
        labels: Labels,
    ) -> dict[str, Tensor]:
        """KD's terms and the feature term (method, section 5)."""
        terms = super().losses(cross_entropy, student, teacher, first_class, labels)
        assert teacher is not None
        handed_down: Tensor | None = None
        differences = []
        assert isinstance(self.fusions, nn.ModuleList)
        for fusion, tokens, guide in reversed(list(zip(self.fusions, student.hidden, teacher.hidden, strict=True))):
            predicted, handed_down = fusion(self.match.of_student(tokens), handed_down)
            differences.append(feature_loss(predicted, self.match.of_teacher(guide)))
        return {**terms, "feature": self.weight * torch.stack(differences).mean()}


class Fusion(nn.Module):
    """ABF, attention-based fusion, of one block: its own tokens x with the r that the block behind it handed down.

        g_x = LN(Linear(x))        g_r = LN(Linear(r))        r' = LN(g_x ∘ x + g_r ∘ r)        ABF_l = Linear(r')

    ∘ is element-wise; all of it is of the student's width D but ABF_l, which is of the teacher's. r' is handed on. The
    deepest block has no r: r' = LN(g_x ∘ x).

    Differs: the original's gates, one number a place and stream from both streams together, behind a sigmoid, are one
    number an element, from the stream itself, and no sigmoid (method, section 5). Its 1x1 and 3x3 convolutions with
    batch norm are linear layers with layer norm, as tokens ask for; the output has none, so that nothing forces
    predicted tokens to one length.
    """

    def __init__(self, width: int, teacher_width: int, deepest: bool, generator: torch.Generator) -> None:
        super().__init__()
        self.gate = drawn_linear(width, width, generator)
        self.gate_norm = nn.LayerNorm(width)
        self.handed_gate = None if deepest else drawn_linear(width, width, generator)
        self.handed_gate_norm = None if deepest else nn.LayerNorm(width)
        self.norm = nn.LayerNorm(width)
        self.expand = drawn_linear(width, teacher_width, generator)

    def forward(
        self, tokens: Tokens, handed_down: Tokens | None
    ) -> tuple[Float[Tensor, "B N E"], Float[Tensor, "B N D"]]:
        """ABF_l, and what is handed on to the block before."""
        mixed = self.gate_norm(self.gate(tokens)) * tokens
        if self.handed_gate is not None and self.handed_gate_norm is not None:
            assert handed_down is not None
            mixed = mixed + self.handed_gate_norm(self.handed_gate(handed_down)) * handed_down
        mixed = self.norm(mixed)
        return self.expand(mixed), mixed


class EarlierFusions(nn.Module):
    """What runs of earlier versions trained in place of `Fusion`, under its names: kept, and not used."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        super().__init__()
        for name, value in state.items():
            module: nn.Module = self
            *folders, last = name.split(".")
            for folder in folders:
                if folder not in dict(module.named_children()):
                    module.add_module(folder, nn.Module())
                module = module.get_submodule(folder)
            module.register_buffer(last, torch.empty_like(value))
