"""The model as it was trained, in PyTorch. Imported only where it is asked for: it needs `cdl-deploy[train]`."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from cdl_deploy.bench.runners import Job, Run
from cdl_deploy.data.images import load_image
from cdl_deploy.errors import BundleError
from cdl_deploy.run.metrics import final_average_accuracy
from cdl_deploy.run.record_parts import Role
from cdl_deploy.training.checkpoint import load_run
from cdl_deploy.training.data.transforms import evaluation_transform
from cdl_deploy.training.models.learner import learner_logits
from cdl_deploy.training.run_directory import RunDirectory


class TorchRunner:
    """A learner of a run, as `cdl train` tests it: eager, on the CPU, uint8 pixels in, logits out."""

    def __init__(self, job: Job) -> None:
        self.job, self.root = job, Path(job.model)
        torch.set_num_threads(job.threads)

    def load(self) -> None:
        """Rebuild the networks from the weights that the run keeps."""
        self.record, self.pair = load_run(self.root)
        role = cast(Role, self.job.role)
        if role not in self.pair.learners:
            raise BundleError(f"{self.root} has no {role}: it was trained alone")
        self.learner = self.pair.learners[role].eval()
        self.preprocessing = self.record.preprocessing.resize_crop

    def run_of(self, batch: int) -> Run:
        """One batch of random pixels, or of the next photographs."""
        encoder, learner, side = self.pair.encoder, self.learner, self.preprocessing.height
        if not self.job.photos:
            random = np.random.default_rng(self.job.seed)
            pixels = torch.from_numpy(random.integers(0, 256, (batch, 3, side, side), dtype=np.uint8))

            @torch.inference_mode()
            def run() -> object:
                return learner_logits(encoder, learner, pixels)

            return run
        transform, photos, starts = evaluation_transform(self.preprocessing), self.job.photos, count(step=batch)

        @torch.inference_mode()
        def run_photos() -> object:
            start = next(starts)
            chosen = [photos[(start + i) % len(photos)] for i in range(batch)]
            return learner_logits(encoder, learner, torch.stack([transform(load_image(photo)) for photo in chosen]))

        return run_photos

    def inspect(self, batch: int) -> dict[str, Any]:
        """What the record says, and the products that PyTorch counts."""
        role, directory = cast(Role, self.job.role), RunDirectory(self.root)
        side = self.preprocessing.height
        files = [directory.backbone_file(role), directory.task_checkpoint(len(self.record.tasks))]
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):  # the fused kernel is not counted
            self.run_of(1)()
        trained = sum(value.numel() for value in self.learner.trained_state().values())
        return {
            "metadata": {},
            "inputs": f"image: uint8 [B, 3, {side}, {side}]",
            "fixed_batch": None,
            "file_bytes": sum(file.stat().st_size for file in files),
            "sha256": None,
            "parameters": self.record.backbones[role].parameters + trained,
            "macs": counter.get_total_flops() // 2,
            "uncounted": [],
            "accuracy": final_average_accuracy(self.record.matrices[role]),
            "classes": len(self.record.classes),
        }
