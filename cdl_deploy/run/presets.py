"""Named starting points for a configuration: what `cdl train --preset NAME` sets before a file or an option does."""

from __future__ import annotations

from typing import Any

Sections = dict[str, dict[str, Any]]
"""Values by section and field of `RunConfig`; what is not named keeps the value that was below it."""

DEFAULT: Sections = {"method": {"head": "slda"}}
"""What was measured to be best (docs/choosing.md). The fields of `RunConfig` say what runs had before there was a
choice: learned heads."""

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

PRESETS = {"default": DEFAULT, "paper": PAPER}
