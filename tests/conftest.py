"""What all tests share: shape checks while they run, and one small run that is trained, then exported, once.

jaxtyping wraps every module of cdl_deploy.training that is imported after this one; hence the late imports. PyTorch is
imported by whoever collects tests: pytest-xdist's own process does not, and would be the later for it.
"""

from __future__ import annotations

import atexit
import gc
import os
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
from filelock import FileLock
from hypothesis import settings
from hypothesis.internal.entropy import deterministic_PRNG
from jaxtyping import config as jaxtyping_config
from jaxtyping import install_import_hook

import tests.shape_checker
from tests import speed

jaxtyping.jaxtyped = tests.shape_checker.jaxtyped  # type: ignore[assignment]  # the hook writes it before functions
install_import_hook("cdl_deploy.training", "tests.shape_checker.checked")
MadeOnce = Callable[[str, Callable[[Path], None]], Path]

settings.register_profile("the same every time", derandomize=True, deadline=None)
settings.load_profile("the same every time")
with deterministic_PRNG():  # the first time, it looks through all objects there are: now they are few
    pass


def pytest_configure(config: pytest.Config) -> None:
    """As a plugin: of fixtures for the whole session, a conftest.py that is not at the top is told nothing."""
    config.pluginmanager.register(speed)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """While modules are imported there is no rubbish to look for, and timm goes without wandb, a second of its own."""
    gc.disable()
    tracker = sys.modules.setdefault("wandb", None)  # type: ignore[arg-type]  # importing it fails
    try:
        return (yield)
    finally:
        if tracker is None:
            del sys.modules["wandb"]
        gc.enable()


def pytest_collection_finish() -> None:
    """What was imported stays: to look through millions of objects for rubbish takes a tenth of the time.

    At the very end it counts again: libraries in C++ say what is left of them.
    """
    from tests.faster_machine import prepare_machine
    from tests.faster_torch import prepare_torch

    prepare_machine()
    prepare_torch()
    gc.freeze()
    atexit.register(gc.unfreeze)
    gc.set_threshold(500_000, 20, 20)


@contextmanager
def no_shape_checks() -> Iterator[None]:
    """For tracing, which uses symbolic shapes."""
    before = jaxtyping_config.jaxtyping_disable
    jaxtyping_config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping_config.update("jaxtyping_disable", before)


def check_first_epochs_only() -> None:
    """In whole runs: shapes of the first epoch of each kind of learner, then no more. They take a third of the time.

    Idempotent. Single steps, networks and heads have tests of their own, in which everything is checked always.
    """
    from cdl_deploy.training import loop

    if getattr(loop.learn_epoch, "seen", None) is not None:
        return
    every, seen = loop.learn_epoch, set[tuple[object, ...]]()

    def learn_epoch(run: Any, task: Any, stage: Any, *rest: Any) -> None:
        method, optim = run.config.method, task.optim
        kind = (stage.role, method.method, method.distill, method.query, method.head, optim.cache_views > 0)
        if kind in seen or run.processes.count > 1:
            with no_shape_checks():
                return every(run, task, stage, *rest)
        seen.add(kind)
        return every(run, task, stage, *rest)

    learn_epoch.seen = seen  # type: ignore[attr-defined]
    loop.learn_epoch = learn_epoch  # type: ignore[assignment]


@pytest.fixture
def without_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that are started import timm without wandb, which it looks for: half a second each."""
    (tmp_path / "without").mkdir()
    (tmp_path / "without/wandb.py").write_text("raise ImportError\n")
    paths = [str(tmp_path / "without"), os.environ.get("PYTHONPATH")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory, testrun_uid: str) -> MadeOnce:
    """`made_once(name, make)`: the folder that `make` filled in the first of pytest-xdist's processes that asks."""

    def folder(name: str, make: Callable[[Path], None]) -> Path:
        shared = tmp_path_factory.getbasetemp()
        if "PYTEST_XDIST_WORKER" in os.environ:
            shared = shared.parent
        done = shared / f"{name}.{testrun_uid}"
        speed.asks_for(speed.FOLDER + name)
        with FileLock(shared / f"{name}.lock"):
            if not done.exists():
                with speed.measured(speed.FOLDER + name):
                    make(shared / name)
                done.touch()
        return shared / name

    return folder


@pytest.fixture(scope="session")
def small_run(made_once: MadeOnce) -> Path:
    """Two tasks of two classes, KDP, a real teacher of another width and depth."""
    check_first_epochs_only()
    from cdl_deploy.run.config import DataConfig, MethodConfig, ModelConfig, OptimConfig, RunConfig
    from cdl_deploy.training.loop import train
    from tests.training.conftest import COLOURS, write_images

    def make(root: Path) -> None:
        write_images(root / "photos/train", dict.fromkeys(COLOURS, 6))
        write_images(root / "photos/test", dict.fromkeys(COLOURS, 3), seed=1)
        config = RunConfig(
            DataConfig(str(root / "photos"), tasks=2, class_order="natural"),
            ModelConfig(),
            MethodConfig(components_per_task=3),
            OptimConfig(epochs=2, batch_size=4, device="cpu"),
        )
        train(config, root / "run")

    return made_once("small_run", make) / "run"


@pytest.fixture(scope="session")
def small_bundle(small_run: Path, made_once: MadeOnce) -> Path:
    """The folder with student.onnx and teacher.onnx of that run."""
    from cdl_deploy.export import ExportOptions, export_run

    def make(root: Path) -> None:
        root.mkdir()
        with no_shape_checks():
            export_run(small_run, root / "out", ExportOptions(latency=False))

    return made_once("small_bundle", make) / "out"
