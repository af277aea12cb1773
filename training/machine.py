"""What `auto` means on this machine: precision and loading processes. And how a learner is made to run fast on it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import torch

from cdl_deploy.run.config import OptimConfig
from cdl_deploy.training.backbones.packed import can_pack
from cdl_deploy.training.models.teacher_student import TeacherStudent

MAX_WORKERS = 8


def resolve_auto(optim: OptimConfig, device: torch.device, in_memory: bool, processes: int = 1) -> OptimConfig:
    """`optim` with precision and workers resolved; `in_memory`: the images need no file to be read or decoded."""
    precision = optim.precision
    if precision == "auto":
        precision = "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
    workers = optim.workers
    if workers is None:
        # On a CPU the cores are busy with the step itself: loading beside it gains nothing.
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        workers = 0 if in_memory or device.type == "cpu" else min(MAX_WORKERS, max(1, cores // processes - 1))
    return replace(optim, precision=precision, workers=workers)


@contextmanager
def in_precision(pair: TeacherStudent, precision: str) -> Iterator[None]:
    """While it lasts, the matrix products of both backbones run in `precision`, `fp32` or `bf16`; in fp32 on a CPU with
    packed weights, unless they are compiled.

    The comparison of query and keys, heads, losses and parameters are fp32 in any case: they are small. The query comes
    out of a backbone: in bf16, 1 % of L2P's choices are others.
    """
    backbones = [learner.backbone for learner in pair.learners.values()]
    with ExitStack() as stack:
        for backbone in backbones:
            backbone.bf16 = precision == "bf16"
            if not backbone.bf16 and not backbone.compiled and can_pack(backbone.mean.device):
                stack.enter_context(backbone.packed_layers())
        try:
            yield
        finally:
            for backbone in backbones:
                backbone.bf16 = False


def compile_blocks(pair: TeacherStudent, backend: str = "inductor") -> None:
    """Compile what nearly all time is spent in, the blocks of both backbones, as `--compile` asks.

    The rest stays as it is: it is small, and its shapes change with every task.
    """
    for learner in pair.learners.values():
        backbone = learner.backbone
        backbone.compiled = True
        backbone.run_blocks = torch.compile(backbone.run_blocks, backend=backend)  # type: ignore[method-assign]
