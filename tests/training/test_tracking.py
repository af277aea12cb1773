"""--log: curves of what was learned, the same however often a run is interrupted; and they change nothing."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cdl_deploy.errors import CdlError, MissingExtraError, OptionError, RunError
from cdl_deploy.run.config import OptimConfig
from cdl_deploy.run.record import read_record
from cdl_deploy.training import loop as loop_module
from cdl_deploy.training import trackers
from cdl_deploy.training.loop import add_task, resume, train
from cdl_deploy.training.preparation import Addition
from cdl_deploy.training.progress import Progress, Stage
from cdl_deploy.training.tracking import Tracking
from tests.training.conftest import write_images
from tests.training.runs import Interrupt, config, weights

Curves = dict[str, list[tuple[int, float]]]
"""(number, value as float32) by name."""


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    """Half of such a small run's time."""
    monkeypatch.setattr(loop_module, "plot_run", lambda *_: None)


@pytest.fixture
def wandb_home(tmp_path, monkeypatch) -> Iterator[None]:
    """Weights & Biases as on a machine where nobody has logged in; it reads the environment once a process."""
    import wandb

    for name in ("HOME", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    wandb.teardown()
    yield
    wandb.teardown()


class Watch(Progress):
    """The curves that --log must give, from the hooks alone and counted here."""

    def __init__(self) -> None:
        self.curves: Curves = {}
        self.number = 0
        self.events: list[str] = []

    def add(self, name: str, value: float) -> None:
        self.curves.setdefault(name, []).append((self.number, float(np.float32(value))))

    def epoch_started(self, stage, epoch, lr):
        for name, value in (("lr", lr), ("task", stage.task), ("epoch", epoch + 1)):
            self.add(f"{stage.role}/{name}", value)

    def step(self, stage, epoch, images, losses):
        for name, value in losses.items():
            self.add(f"{stage.role}/{name}", value)
        self.number += 1

    def evaluated(self, record):
        for role, matrix in record.matrices.items():
            row = matrix[-1]
            for task, value in enumerate(row, start=1):
                self.add(f"accuracy/{role}/task_{task:02d}", value)
            self.add(f"accuracy/{role}/mean", sum(row) / len(row))
            self.add(f"forgetting/{role}", sum(matrix[j][j] - row[j] for j in range(len(row))) / len(row))
        self.number += 1


def tensorboard_curves(run: Path) -> Curves:
    """As TensorBoard itself reads them, all files of the run together."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "logs" / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    return {name: [(e.step, e.value) for e in events.Scalars(name)] for name in events.Tags()["scalars"]}


def next_second() -> None:
    """TensorBoard puts the files of a run in order by the second in their name."""
    began = int(time.time())
    while int(time.time()) == began:
        time.sleep(0.02)


def test_curves_go_on_where_the_run_does(photos, tmp_path):
    """Interrupted in the middle of an epoch, and given another task, against a run of which nothing was asked."""
    write_images(tmp_path / "more/train", {"eel": 6, "fox": 6})
    write_images(tmp_path / "more/test", {"eel": 3, "fox": 3}, seed=1)
    more, watch = Addition(str(tmp_path / "more")), Watch()
    train(config(photos), tmp_path / "plain", watch)
    watch.number = 2 * (2 * 2 * 3 + 1)
    add_task(tmp_path / "plain", more, watch)

    run = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train(config(photos, log="tensorboard"), run, Interrupt(8))  # an epoch has three steps: two are taken again
    next_second()
    with pytest.raises(KeyboardInterrupt):
        resume(run, Interrupt(4))
    next_second()
    resume(run)
    next_second()
    record = add_task(run, more)

    assert record.config.optim.log == "tensorboard"
    assert len(list((run / "logs/tensorboard").iterdir())) == 4
    assert {"teacher/cross_entropy", "student/distillation", "student/lr", "accuracy/student/task_03"} <= set(
        watch.curves
    )
    assert tensorboard_curves(run) == watch.curves
    expected, state = weights(tmp_path / "plain"), weights(run)
    assert all(torch.equal(expected[name], state[name]) for name in expected)
    assert not (tmp_path / "plain/logs").exists()


def test_a_checkpoint_holds_nothing_that_is_not_in_the_file(photos, tmp_path, monkeypatch):
    """A kill right after any checkpoint loses no event: whatever was told before it is on the disk."""
    run, watch, compared = tmp_path / "run", Watch(), []

    class Killed(Progress):
        def saving(self):
            assert tensorboard_curves(run) == watch.curves
            compared.append(watch.number)

    for name in ("epoch_started", "step", "evaluated"):
        setattr(Killed, name, getattr(watch, name))
    train(config(photos, "none", log="tensorboard"), run, Killed())
    assert compared == [3, 6, 7, 10, 13, 14]


def wandb_records(file: Path) -> Iterator[Any]:
    """The whole records of a `.wandb` file: a LevelDB log of protocol buffers."""
    from wandb.proto import wandb_internal_pb2

    data, at, parts = file.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        length, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        if at + 7 + length > len(data):
            return
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield wandb_internal_pb2.Record.FromString(parts)  # type: ignore[attr-defined]
            parts = b""


def wandb_history(file: Path) -> Iterator[dict[str, float]]:
    """Rows that were logged. wandb's own process may still be writing the last ones: it is waited for."""
    end = time.monotonic() + 30
    while not any(record.WhichOneof("record_type") == "exit" for record in wandb_records(file)):
        assert time.monotonic() < end, f"{file} has no end"
        time.sleep(0.05)
    for record in wandb_records(file):
        if record.WhichOneof("record_type") == "history":
            yield {
                "/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item
            } | {"number": record.history.step.num}


def test_wandb_is_one_run_however_often_it_is_interrupted(photos, tmp_path, monkeypatch, wandb_home):
    """Offline, as wandb itself writes it: every process leaves a folder, all with one id."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    run, watch = tmp_path / "run", Watch()
    train(config(photos, "none"), tmp_path / "plain", watch)
    with pytest.raises(KeyboardInterrupt):
        train(config(photos, "none", log="tensorboard, wandb"), run, Interrupt(5))
    next_second()  # folders are named by the second
    resume(run)

    id = (run / "logs/wandb-id").read_text().strip()
    files = sorted((run / "logs/wandb").glob(f"offline-run-*-{id}/*.wandb"))
    assert len(files) == 2
    curves: dict[str, dict[int, float]] = {}
    for file in files:
        for row in wandb_history(file):
            for name, value in row.items():
                if not name.startswith("_") and name != "number":
                    known = curves.setdefault(name, {}).setdefault(row["number"], value)
                    assert known == value, "what was written twice has changed"
    rounded = {n: [(at, float(np.float32(v))) for at, v in sorted(values.items())] for n, values in curves.items()}
    assert rounded == watch.curves
    assert (run / "logs/tensorboard").is_dir()


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_missing_package_is_said_before_anything_is_made(photos, tmp_path, monkeypatch, name):
    def missing(name: str):
        raise ModuleNotFoundError(f"No module named '{name}'", name=name)

    monkeypatch.setattr(trackers, "import_module", missing)
    with pytest.raises(MissingExtraError) as caught:
        train(config(photos, log=name), tmp_path / "run")
    assert str(caught.value) == f"--log {name} needs {name}, which is not installed: pip install 'cdl-deploy[{name}]'"
    assert not (tmp_path / "run").exists()


def test_so_is_a_missing_login(photos, tmp_path, wandb_home):
    with pytest.raises(OptionError, match="--log wandb: no key is known: run wandb login, or set WANDB_MODE=offline"):
        train(config(photos, log="wandb"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_names(photos):
    assert OptimConfig().trackers == ()
    assert OptimConfig(log="wandb, tensorboard,wandb").trackers == ("wandb", "tensorboard")
    with pytest.raises(OptionError, match=r"--log 'tensorbord' is unknown, .*; did you mean 'tensorboard'"):
        OptimConfig(log="wandb,tensorbord")


def test_a_full_disk_ends_in_one_line(photos, tmp_path, monkeypatch):
    """After the first epoch, the event file cannot be written any more; its checkpoint remains."""
    run = tmp_path / "run"

    class Full(trackers.TensorBoard):
        def write(self, number, values):
            if number == 4:
                raise OSError(28, "No space left on device")
            super().write(number, values)

    with monkeypatch.context() as patched:
        patched.setitem(trackers.TRACKERS, "tensorboard", Full)
        with pytest.raises(RunError) as caught:
            train(config(photos, "none", log="tensorboard"), run)
    assert str(caught.value) == f"cannot write {run}/logs: No space left on device; the last checkpoint is intact"
    assert isinstance(caught.value, CdlError)
    next_second()
    resume(run)
    train(config(photos, "none"), tmp_path / "plain")
    assert all(
        torch.equal(a, b) for a, b in zip(weights(run).values(), weights(tmp_path / "plain").values(), strict=True)
    )


def test_steps_of_both_learners_have_numbers_of_their_own_where_images_are_held_out(small_run):
    """--alpha-holdout: the student learns from fewer images than the teacher, and so in fewer steps."""
    tracking = Tracking(Progress(), [], Path(), replace(read_record(small_run), tasks=[]))
    tracking.stage_started(Stage(1, 1, "teacher", 2, 28, 4, 28), 0, 0)
    assert tracking.number == 0
    tracking.stage_started(Stage(1, 1, "student", 2, 16, 4, 28), 0, 0)
    assert tracking.number == 2 * 7
