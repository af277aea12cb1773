"""Imported by the process that tests/children.py forks from: what nearly every such child needs."""

from __future__ import annotations

import sys

sys.modules.setdefault("wandb", None)  # type: ignore[arg-type]  # timm looks for it, a second of its own
import timm  # noqa: E402, F401

if sys.modules["wandb"] is None:
    del sys.modules["wandb"]

import accelerate  # noqa: E402, F401
import torch  # noqa: E402

import cdl_deploy.cli  # noqa: E402
import cdl_deploy.export  # noqa: E402
import cdl_deploy.training.loop  # noqa: E402, F401
import tests.training.test_learner  # noqa: E402, F401

torch.set_num_threads(1)
