"""Named starting points for a configuration: what `cdl train --preset NAME` sets before a file or an option does."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

Sections = dict[str, dict[str, Any]]
"""Values by section and field of `RunConfig`; what is not named keeps the value that was below it."""

DEFAULT: Sections = {"method": {"head": "slda"}}
"""What was measured to be best (docs/choosing.md). The fields of `RunConfig` say what runs had before there was a
choice: learned heads."""

FROZEN: Sections = {"method": {"method": "none", "distill": "none"}}
"""The rest of the default where nothing else is asked for: the backbone stays as it is."""

KDP: Sections = {"method": {"method": "coda", "distill": "kdp", "head": "slda"}}
"""A teacher's help: prompts, KD prompts and the KD token train in the first task, and the head is in closed form."""

PAPER: Sections = {
    "data": {"class_order": "natural", "interpolation": "bilinear"},
    "models": {"pixel_range": "unit"},
    "method": {
        # Summing over two processes doubled these in the published runs.
        "key_loss_weight": 2.0,
        "fitnets_weight": 0.2,
        "reviewkd_weight": 0.4,
        "kd_token_start": "uniform",
        "kd_lr_scale": 1.0,
        "head_start": "linear",
        "components": 100,
        "component_start": "one-pass",
        "unseen_keys": "chosen",
        "apt_teacher": "merged",
    },
    "optim": {
        "batch_size": 64, "last_batch": "drop", "schedule": "quarter-cosine-late", "precision": "fp32",
    },
}  # fmt: skip
"""Where the paper's published numbers were made otherwise (method, section 8); docs/method.md has it as a table."""

PRESETS = {"default": DEFAULT, "kdp": KDP, "paper": PAPER}


# ---- benchmarks ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Benchmark:
    """The paper's runs on one data set."""

    classes: int
    """That the data must have."""
    sections: Sections
    """Between the preset and a file, beside the models: `paper_models`."""


BENCHMARKS = {
    "cifar100": Benchmark(
        100,
        {"data": {"tasks": 10, "augmentation": "photo", "crop": "none"}, "optim": {"epochs": 20}},
    ),
    "imagenet-r": Benchmark(
        200,
        {"data": {"tasks": 10, "augmentation": "photo", "resize": 256}, "optim": {"epochs": 35}},
    ),
}
"""What `--benchmark` sets (method, section 6)."""

TAG = "augreg_in21k_ft_in1k"
"""Of the weights: bare names of ViT-B have stood for others, as timm's versions went by."""
NEXT_LARGER = {"tiny": "small", "small": "base", "base": "large"}
LARGE_BATCH = 32
"""Where a ViT-L takes part."""


def paper_models(models: dict[str, Any], distils: bool) -> tuple[dict[str, Any], int]:
    """The models of a benchmark's run by their full names, and how many images a batch has; 0 for the preset's.

    `models`: what is given of the section, short names (`vit_base`) among it. Without a teacher it is the next larger
    ViT. `distils`: whether there is a teacher at all. A name whose weights come from a file gets no tag.
    """
    student, own_file = models.get("student") or "vit_small", models.get("student_weights")
    size = _size(student)
    teacher = models.get("teacher") or f"vit_{NEXT_LARGER.get(size or '', 'base')}"
    full = {
        "student": _full(student, own_file is None),
        "teacher": _full(teacher, models.get("teacher_weights") is None),
    }
    large = "large" in (size, _size(teacher) if distils or models.get("train_teacher") else None)
    return full, LARGE_BATCH if large else 0


def _size(model: str) -> str | None:
    found = re.match(r"vit_(tiny|small|base|large)(_|\.|$)", model)
    return found[1] if found else None


def _full(model: str, tagged: bool) -> str:
    """`vit_base` and `vit_base_patch16_224` with patch, size and tag; any other name as it is."""
    found = re.fullmatch(r"(vit_(?:tiny|small|base|large))(_patch16_224)?", model)
    if found is None:
        return model
    return f"{found[1]}_patch16_224" + (f".{TAG}" if tagged else "")


# ---- the default -----------------------------------------------------------------------------------------------------

OF_A_FROZEN_BACKBONE = {
    "models": {"student", "student_weights", "student_blocks", "pixel_range", "train_teacher"},
    "method": {
        "head", "teacher_head", "features", "teacher_features", "random_features", "priors", "shrinkage",
        "ridge_penalty", "head_start", "student_head", "calibration",
    },
}  # fmt: skip
"""Options by section that can be given without asking for prompts or for a teacher's help."""


def asks_for_more(given: Sections) -> bool:
    """Whether `given` names a method, a distillation, a teacher to learn from, or an option of theirs."""
    return any(set(given.get(section, {})) - names for section, names in OF_A_FROZEN_BACKBONE.items())
