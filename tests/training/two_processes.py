"""What each of two processes runs in test_processes.py."""

from __future__ import annotations

import os
from pathlib import Path

import safetensors.torch
import torch

from cdl_deploy.cli import main
from cdl_deploy.errors import DataError
from cdl_deploy.training.data import loading
from cdl_deploy.training.loop import train
from cdl_deploy.training.processes import connected
from cdl_deploy.training.step import make_optimizer, stage_losses
from tests.training.runs import config
from tests.training.test_learner import make_pair, pixels


def gradients(out: Path) -> None:
    """Of batches of 5 images, which do not divide evenly, and of 1, which leaves nothing for the second process."""
    with connected("cpu") as processes:
        for count in (5, 1):
            for role in ("teacher", "student"):
                pair = make_pair()
                labels = torch.tensor([2, 3, 4, 3, 2])[:count]
                chosen = processes.share(range(count)) or [0]
                terms = stage_losses(pair, role, pixels(count)[list(chosen)], labels[list(chosen)])
                values = torch.stack(list(terms.values())) * len(processes.share(range(count))) / count
                values.sum().backward()
                groups = make_optimizer(pair.learners[role], 0.1).param_groups
                total = processes.add_up([v for group in groups for v in group["params"]], values.detach())
                found = {n: v.grad for n, v in pair.learners[role].named_parameters() if v.grad is not None}
                if processes.is_main:
                    safetensors.torch.save_file({**found, "loss terms": total}, out / f"{role}-{count}.safetensors")
        assert processes.any(processes.index == 1)
        assert not processes.any(False)
        assert processes.total([processes.index + 1, 5]) == [3, 10]


def fail_in_the_second() -> None:
    """An image that only the second process meets turns out to be broken, in the middle of training."""
    load, seen = loading.load_known, []

    def load_known(item):
        seen.append(item)
        if os.environ["RANK"] == "1" and len(seen) == 5:
            raise DataError("image 5 is broken: repair it")
        return load(item)

    setattr(loading, "load_known", load_known)  # noqa: B010


def work(task: str, photos: Path, out: Path) -> None:
    """One of the two."""
    if task == "train":
        gradients(out)
        train(config(photos, log="tensorboard"), out / "run")
    else:
        if task == "fail":
            fail_in_the_second()
        options = ["--holdout", "0.2"] if task == "wrong" else []
        models = ["--student", "mini_student", "--teacher", "mini_student", "--device", "cpu", "--batch-size", "4"]
        main(["train", "--data", str(photos), "--tasks", "2", *models, *options, "--epochs", "1", "--out", str(out)])
