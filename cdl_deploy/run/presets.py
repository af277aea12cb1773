"""Named starting points for a configuration: what `cdl train --preset NAME` sets before a file or an option does."""

from __future__ import annotations

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
    "data": {"class_order": "natural"},
    "models": {"pixel_range": "unit"},
    "method": {
        # Summing over two processes doubled these in the published runs.
        "key_loss_weight": 2.0,
        "fitnets_weight": 0.2,
        "reviewkd_weight": 0.4,
        "kd_token_start": "uniform",
        "kd_lr_scale": 1.0,
        "head_start": "linear",
    },
    "optim": {"batch_size": 64, "schedule": "cosine-late"},
}
"""Where the paper's published numbers were made otherwise (method, section 8); docs/method.md has it as a table."""

PRESETS = {"default": DEFAULT, "kdp": KDP, "paper": PAPER}

OF_A_FROZEN_BACKBONE = {
    "models": {"student", "student_weights", "pixel_range", "train_teacher"},
    "method": {
        "head", "teacher_head", "features", "random_features", "priors", "shrinkage", "ridge_penalty", "head_start",
        "student_head", "calibration",
    },
}  # fmt: skip
"""Options by section that can be given without asking for prompts or for a teacher's help."""


def asks_for_more(given: Sections) -> bool:
    """Whether `given` names a method, a distillation, a teacher to learn from, or an option of theirs."""
    return any(set(given.get(section, {})) - names for section, names in OF_A_FROZEN_BACKBONE.items())
