"""The rows of the table, in the order in which they are measured: a training run, and the heads it is given."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from benchmarks.evidence.budget import Budget

DISTILLATIONS = ("none", "kd", "kdp")
RANPAC = {"head": "ridge", "random_features": 2000}
HEADS: dict[str, dict[str, Any]] = {
    "slda": {"head": "slda"},
    "slda-no-kd": {"head": "slda", "features": "class+patches"},
    "slda-early": {"head": "slda"},
    "ncm": {"head": "ncm"},
    "ridge": {"head": "ridge"},
    "RanPAC": RANPAC,
}
"""What `cdl head` is told; `slda-early` is told as well which earlier blocks, by the row."""


def same_head(head: str) -> str:
    """Under which head others are compared with one under `head`: without a KD token there is nothing to leave out."""
    return head.removesuffix("-no-kd")


@dataclass(frozen=True)
class Row:
    """One run of `cdl train`, its own head first; the other heads are given to the finished run by `cdl head`."""

    name: str
    method: str
    distill: str
    adapt: str
    heads: tuple[str, ...]
    options: dict[str, Any] = field(default_factory=dict)
    teacher_of: str | None = None
    """The row of the same seed whose teacher it takes over."""
    cut: tuple[int, int] | None = None
    """Blocks and pixels of a student that is cut from the teacher otherwise than the table's (`--student-blocks`,
    `--image-size`); it is compared with the frozen row's teacher."""
    distilled: str | None = None
    """The model of a student with weights of its own, WEIGHTS/MODEL-distilled.safetensors (`public_backbone --distil`);
    it is compared with the frozen row's teacher as well."""
    earlier: dict[str, str] = field(default_factory=dict)
    """`--features`, and the teacher's, of the head that reads earlier blocks too."""

    @property
    def own_head(self) -> str:
        return self.heads[0]

    @property
    def has_teacher(self) -> bool:
        return self.distill != "none" or bool(self.options.get("train_teacher"))

    @property
    def frozen(self) -> bool:
        return self.method == "none"

    @property
    def teachers_row(self) -> str:
        """The row with the teacher that it is compared with."""
        return self.teacher_of or (FROZEN.name if self.cut or self.distilled else self.name)

    def told(self, head: str) -> dict[str, Any]:
        """What `cdl head` is told."""
        return HEADS[head] | (self.earlier if head == "slda-early" else {})


FROZEN = Row(
    "frozen", "none", "none", "none", ("slda", "slda-early", "ncm", "ridge", "RanPAC"), {"train_teacher": True},
    earlier={"features": "class+patches+patches@4", "teacher_features": "class+patches+patches@5+patches@8"},
)  # fmt: skip
DEEP = Row(
    "frozen-11x70", "none", "none", "none", ("slda", "slda-early"), cut=(11, 70),
    earlier={"features": "class+patches+patches@6+patches@8"},
)  # fmt: skip
"""At the cost of the table's student, fewer patches and more blocks (benchmarks/student_shapes.py)."""
DISTILLED = (
    *(
        Row(f"distilled-11x{side}", "none", "none", "none", ("slda", "slda-early"), earlier=DEEP.earlier,
            distilled=f"vit_384x11_patch14_{side}")
        for side in (70, 56)
    ),
    Row("distilled-10x56", "none", "none", "none", ("slda-early",), cut=(10, 56), earlier=DEEP.earlier,
        distilled="vit_384x11_patch14_56"),
)  # fmt: skip
"""As deep, distilled towards the teacher's features on other images, without labels; the last of them without its last
block."""
JOINT = "joint"
"""A linear probe on all classes at once: no continual learning, the upper bound."""


def of_method(method: str, adapt: str) -> list[Row]:
    """The student alone, KD, KDP; a closed-form head after `adapt first`, a learned one and slda after `all`."""
    heads = ("slda",) if adapt == "first" else ("learned", "slda")
    others = {"kdp": ("slda-no-kd",)}
    rows = []
    for distill in DISTILLATIONS:
        lender = f"{method}-kd-{adapt}" if distill == "kdp" else None
        own = (*heads, *others.get(distill, ()))
        rows.append(Row(f"{method}-{distill}-{adapt}", method, distill, adapt, own, teacher_of=lender))
    return rows


def all_rows(budget: Budget) -> list[Row]:
    """In the order in which they are worth their time: the frozen baseline, then method by method, the cheap first."""
    of_methods = [row for method in budget.methods for adapt in budget.adapts for row in of_method(method, adapt)]
    return [FROZEN, DEEP, *DISTILLED, *of_methods]


FIVEFOLD = "five times the epochs"


@dataclass(frozen=True)
class Change:
    """One thing that is changed of CODA's row with this distillation and `--adapt`."""

    distill: str
    adapt: str
    words: str
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def heads(self) -> tuple[str, ...]:
        return ("slda",) if self.adapt == "first" else ("learned",)


CHANGES: dict[str, Change] = {
    "none-longer": Change("none", "first", FIVEFOLD),
    "kdp-longer": Change("kdp", "first", FIVEFOLD),
    "kdp-head-only": Change("kdp", "first", "`--kd-token-start none --kd-prompt-length 0`: no token, no KD prompts",
                            {"kd_token_start": "none", "kd_prompt_length": 0}),
    "kdp-alpha": Change("kdp", "first", "`--alpha 0.25`", {"alpha": 0.25}),
    "kdp-length": Change("kdp", "first", "`--kd-prompt-length 6`", {"kd_prompt_length": 6}),
    "kdp-depth": Change("kdp", "first", "`--kd-prompt-blocks 2`", {"kd_prompt_blocks": 2}),
    "dkd": Change("dkd", "first", "logits: the target's and the others' apart"),
    "fitnets": Change("fitnets", "first", "tokens after the last block beside logits"),
    "reviewkd": Change("reviewkd", "first", "tokens after several blocks, fused, beside logits"),
    "none-all-longer": Change("none", "all", FIVEFOLD),
    "kd-all-longer": Change("kd", "all", FIVEFOLD),
    "kdp-all-longer": Change("kdp", "all", FIVEFOLD),
}  # fmt: skip


def ablation_rows(budget: Budget) -> list[Row]:
    """One thing changed each. The teacher is that of KD, as in the table; more epochs in every task have their own."""
    rows = []
    for name, change in CHANGES.items():
        if change.adapt not in budget.adapts:
            continue
        own = {"epochs": 5 * budget.epochs} if change.words == FIVEFOLD else change.options
        lender = "coda-kd-first" if change.adapt == "first" else "coda-kd-all-longer"
        teacher = None if change.distill in ("none", "kd") else lender
        rows.append(Row(f"coda-{name}", "coda", change.distill, change.adapt, change.heads, own, teacher))
    return rows
