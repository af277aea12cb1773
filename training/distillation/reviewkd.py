"""ReviewKD, knowledge review (Chen et al., CVPR 2021, arXiv 2104.09044), for the tokens of ViTs.

Every block of the student learns to predict a block of the teacher, not from its own tokens alone: what the deeper
blocks found is handed down, from the last block to the first, and mixed in by a learned gate.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

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
        self.fusions = nn.ModuleList(
            Fusion(student.width, teacher.width, deepest=index == count - 1, generator=generator)
            for index in range(count)
        )

    @classmethod
    def build(cls, networks: Networks, config: ReviewKDConfig, generator: torch.Generator) -> ReviewKD:
        return cls(networks.student, networks.teacher, config, generator)

    def notes(self) -> list[str]:
        return self.match.notes()

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
        for fusion, tokens, guide in reversed(list(zip(self.fusions, student.hidden, teacher.hidden, strict=True))):
            predicted, handed_down = fusion(self.match.of_student(tokens), handed_down)
            differences.append(feature_loss(predicted, self.match.of_teacher(guide)))
        return {**terms, "feature": self.weight * torch.stack(differences).mean()}


class Fusion(nn.Module):
    """ABF, attention-based fusion, of one block: its own tokens x with the r that the block behind it handed down.

        x = LN(Linear(f_l))        (a, b) = sigmoid(Linear([x, r])) per token        r' = a·x + b·r
        ABF_l = LN(Linear(r')), of the teacher's width; r' is handed on

    The deepest block has no r: r' = x.

    Differs: the original's 1x1 and 3x3 convolutions with batch norm are linear layers with layer norm, as tokens ask
    for, and its middle width is the student's own.
    """

    def __init__(self, width: int, teacher_width: int, deepest: bool, generator: torch.Generator) -> None:
        super().__init__()
        self.reduce = drawn_linear(width, width, generator)
        self.reduce_norm = nn.LayerNorm(width)
        self.gate = None if deepest else drawn_linear(2 * width, 2, generator)
        self.expand = drawn_linear(width, teacher_width, generator)
        self.expand_norm = nn.LayerNorm(teacher_width)

    def forward(
        self, tokens: Tokens, handed_down: Tokens | None
    ) -> tuple[Float[Tensor, "B N E"], Float[Tensor, "B N D"]]:
        """ABF_l, and what is handed on to the block before."""
        mixed = self.reduce_norm(self.reduce(tokens))
        if self.gate is not None:
            assert handed_down is not None
            gates = self.gate(torch.cat([mixed, handed_down], dim=2)).sigmoid()
            mixed = gates[:, :, :1] * mixed + gates[:, :, 1:] * handed_down
        return self.expand_norm(self.expand(mixed)), mixed
