"""Record and weights from one source, one writer at a time, and files that do not fit told in one line."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch

from cdl_deploy.cli import main
from cdl_deploy.data import sources
from cdl_deploy.data.images import load_image
from cdl_deploy.errors import CdlError, RunError
from cdl_deploy.run.config import MethodConfig
from cdl_deploy.run.latest import latest_record
from cdl_deploy.training import loop
from cdl_deploy.training.checkpoint import load_run
from cdl_deploy.training.loop import add_task, resume, train
from cdl_deploy.training.plots import PICTURES, draw_run
from cdl_deploy.training.preparation import Addition
from cdl_deploy.training.progress import Progress
from cdl_deploy.training.run_directory import RunDirectory
from tests.training.conftest import write_images
from tests.training.runs import Interrupt, config

PROJECT = Path(__file__).resolve().parents[2]
PAIRS = {"first": ("ant", "bee"), "second": ("cat", "dog"), "third": ("eel", "fox")}


class Killed(BaseException):
    """What ends a process here, in place of SIGKILL."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """Images of three tasks; `base`, which has learned the first; `whole`, which was never interrupted."""
    root = tmp_path_factory.mktemp("runs")
    for folder, names in PAIRS.items():
        for seed, name in enumerate(names):
            write_images(root / folder / "train", {name: 5}, seed=seed)
            write_images(root / folder / "test", {name: 3}, seed=seed + 10)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "plot_run", lambda *_: None)
        one = config(root / "first", "none", epochs=1)
        train(replace(one, data=replace(one.data, tasks=1)), root / "base")
        shutil.copytree(root / "base", root / "whole")
        for folder in ("second", "third"):
            add_task(root / "whole", Addition(str(root / folder)))
    return root


@pytest.fixture
def run(runs, tmp_path) -> Path:
    """A copy of `base`."""
    shutil.copytree(runs / "base", tmp_path / "run")
    return tmp_path / "run"


def same(run: Path, other: Path) -> None:
    (record, pair), (expected, learners) = load_run(run), load_run(other)
    assert record.classes == expected.classes
    assert record.matrices == expected.matrices
    state, wanted = pair.trained_state(), learners.trained_state()
    assert state.keys() == wanted.keys()
    assert all(torch.equal(state[name], wanted[name]) for name in wanted)


KILLS = [
    (name, after)
    for name in ("heldout/task-02.safetensors", "checkpoints/task-02.safetensors", "checkpoints/last.safetensors")
    for after in (False, True)
] + [("accuracy_student.csv", False), ("run.json", False), ("run.json", True)]


@pytest.mark.parametrize(("name", "after"), KILLS)
def test_killed_near_the_end_of_a_task_it_is_there_or_it_is_learned_again(runs, run, name, after, monkeypatch):
    """At every write that ends the second task; then, without --resume where none is needed, the third is added."""
    move, armed = Path.replace, False

    def dying(self: Path, target: Path) -> Path:
        if not (armed and target == run / name):
            return move(self, target)
        if after:
            move(self, target)
        raise Killed

    class Arm(Progress):
        def evaluated(self, record):
            nonlocal armed
            armed = True

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", dying)
        with pytest.raises(Killed):
            add_task(run, Addition(str(runs / "second")), Arm())
    assert armed
    if not RunDirectory(run).latest_record().finished:
        assert name.startswith(("heldout", "checkpoints/task", "checkpoints/last"))
        resume(run)
    assert len(load_run(run)[0].tasks) == 2, "export sees what --add sees"
    add_task(run, Addition(str(runs / "third")))
    same(run, runs / "whole")
    assert RunDirectory(run).read_record() == RunDirectory(run).latest_record()


def test_pictures_come_last_and_are_drawn_again(runs, run, monkeypatch):
    def broken(matrices, title, folder):
        raise Killed

    monkeypatch.setattr(loop, "plot_run", broken)
    with pytest.raises(Killed):
        add_task(run, Addition(str(runs / "second")))
    assert RunDirectory(run).read_record().classes == ["ant", "bee", "cat", "dog"]
    drawn = []
    monkeypatch.setattr(loop, "plot_run", lambda matrices, title, folder: drawn.append(len(matrices["student"])))
    assert resume(run).finished
    assert drawn == [2]
    for name in PICTURES:
        (run / f"{name}.png").write_bytes(b"")
    resume(run)
    assert drawn == [2]


def test_the_pictures_that_are_looked_for_are_those_that_are_drawn():
    assert tuple(draw_run({"student": [[50.0]]}, "title")) == PICTURES


class Meanwhile(Progress):
    """Does something once, while images are checked."""

    def __init__(self, action) -> None:
        self.action = action

    def checking(self, done, total):
        action, self.action = self.action, None
        if action:
            action()


def test_of_two_additions_at_once_the_second_is_told_who_is_at_work(runs, run):
    """Each is read, and written, on its own: none vanishes."""
    told = []

    def second() -> None:
        with pytest.raises(RunError) as error:
            add_task(run, Addition(str(runs / "third")))
        told.append(str(error.value))

    add_task(run, Addition(str(runs / "second")), Meanwhile(second))
    assert told == [
        f"{run} is in use by another process (process {os.getpid()} on {socket.gethostname()}): "
        "wait for it, or choose another --out"
    ]
    add_task(run, Addition(str(runs / "third")))
    same(run, runs / "whole")


def test_a_run_that_is_being_resumed_is_not_resumed_by_another(photos, tmp_path):
    run, told = tmp_path / "run", []
    with pytest.raises(KeyboardInterrupt):
        train(config(photos), run, Interrupt(3))

    def second() -> None:
        with pytest.raises(RunError, match="is in use by another process"):
            resume(run)
        told.append(True)

    assert resume(run, Meanwhile(second)).finished
    assert told == [True]


def test_a_directory_that_was_taken_while_images_were_checked_is_left_alone(photos, tmp_path):
    run = tmp_path / "run"
    with pytest.raises(RunError, match="already holds a run"):
        train(config(photos, "none", epochs=1), run, Meanwhile(lambda: train(config(photos, "none", epochs=1), run)))
    assert load_run(run)[0].finished


def test_resume_decodes_what_is_still_to_be_learned(photos, tmp_path, monkeypatch):
    """A bad image of the first task stays left out, though it is not looked at again."""
    (photos / "train/ant/0.png").write_bytes(b"no image")
    (photos / "test/bee/0.png").write_bytes(b"nor this")
    skipping = config(photos, "none", epochs=1)
    skipping = replace(skipping, data=replace(skipping.data, skip_bad=True))
    whole, seen = train(skipping, tmp_path / "whole"), []
    assert len(whole.skipped_images) == 2
    with pytest.raises(KeyboardInterrupt):
        train(skipping, tmp_path / "run", Interrupt(4))  # the first step of the second task

    def load(path):
        seen.append(path.parent.name)
        return load_image(path)

    monkeypatch.setattr(sources, "load_image", load)
    assert resume(tmp_path / "run").matrices == whole.matrices
    assert sorted(seen) == sorted(["cat", "dog"] * 9)
    same(tmp_path / "run", tmp_path / "whole")


HOLD = """
import os, signal, sys, time
from pathlib import Path
from cdl_deploy.training.run_directory import RunDirectory
with RunDirectory(Path(sys.argv[1])).lock():
    if os.fork() == 0:  # like a process that loads images, which inherits the lock and ends some seconds later
        os.close(1)
        sys.stdin.read()
        time.sleep(0.5)
        os._exit(0)
    print("held", flush=True)
    signal.pause()
"""


def test_a_lock_goes_with_its_process(runs, run):
    """And with those that it has started: they are waited for."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(run)], cwd=PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(RunError, match=rf"in use by another process \(process {holder.pid} on "):
            add_task(run, Addition(str(runs / "second")))
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.communicate()
    assert (run / ".lock").exists()
    assert len(add_task(run, Addition(str(runs / "second"))).tasks) == 2
    assert not (run / ".lock").exists()


def test_what_a_run_shows_is_what_it_has_learned(runs, run, monkeypatch, capsys):
    """Also where a kill has left run.json behind."""
    before = (run / "run.json").read_bytes()
    add_task(run, Addition(str(runs / "second")))
    (run / "run.json").write_bytes(before)
    assert latest_record(run) == RunDirectory(run).latest_record()
    with pytest.raises(SystemExit):
        main(["runs", str(run), "--json"])
    shown = json.loads(capsys.readouterr().out)["tasks"]
    assert [task["classes"] for task in shown] == [["ant", "bee"], ["cat", "dog"]]
    (run / "checkpoints/last.safetensors").write_bytes(b"\x08" + bytes(7) + b"{}      ")
    with pytest.raises(RunError, match=r"last\.safetensors: it is no checkpoint of a run, or damaged"):
        latest_record(run)


def test_a_changed_bit_in_the_record_of_a_checkpoint_is_noticed(runs, run):
    """Where no tensors are taken from it, too: another name of a class would go into everything that follows."""
    file = run / "checkpoints/last.safetensors"
    data = file.read_bytes()
    assert data.count(b'\\"ant\\"') >= 2
    file.write_bytes(data.replace(b'\\"ant\\"', b'\\"bnt\\"'))
    for action in (load_run, lambda run: add_task(run, Addition(str(runs / "second")))):
        with pytest.raises(RunError, match=r"last\.safetensors is damaged: .* \(its hash differs\)"):
            action(run)


def test_a_run_in_the_middle_of_a_task_needs_its_last_checkpoint(runs, run):
    with pytest.raises(KeyboardInterrupt):
        add_task(run, Addition(str(runs / "second")), Interrupt(2))
    (run / "checkpoints/last.safetensors").unlink()
    with pytest.raises(RunError, match=r"last\.safetensors is missing: the run directory is incomplete"):
        resume(run)


def test_a_record_without_a_student_is_one_line(run):
    (run / "checkpoints/last.safetensors").unlink()
    record = json.loads((run / "run.json").read_text())
    del record["backbones"]["student"]
    (run / "run.json").write_text(json.dumps(record))
    with pytest.raises(RunError, match=r"run\.json is damaged: 'student' is missing in backbones"):
        load_run(run)


def change(path: Path, edit) -> None:
    """Write a checkpoint again with other tensors; its header and its digest are right."""
    directory = RunDirectory(path.parents[1])
    tensors, header = directory.load_tensors(path)
    directory.save_tensors(path, edit(tensors), header)


def without_one(tensors):
    return {name: value for name, value in tensors.items() if not name.endswith("class_head.weight.trainable")}


def of_another_shape(tensors):
    return {name: value[..., :-1] if "class_head.weight" in name else value for name, value in tensors.items()}


@pytest.mark.parametrize("edit", [without_one, of_another_shape])
def test_a_checkpoint_that_does_not_fit_is_one_line(runs, run, edit):
    change(run / "checkpoints/task-01.safetensors", edit)
    for action in (load_run, lambda run: add_task(run, Addition(str(runs / "second")))):
        with pytest.raises(
            RunError, match=r"task-01\.safetensors does not fit the run of .*run, it is damaged or"
        ) as e:
            action(run)
        assert "\n" not in str(e.value)


def test_a_checkpoint_of_another_run_is_one_line(runs, run, photos, tmp_path):
    other = replace(config(photos, "none", epochs=1), method=MethodConfig(method="l2p", distill="none"))
    train(other, tmp_path / "other")
    for source, name in ((runs / "whole", "task-03"), (tmp_path / "other", "task-01")):
        shutil.copy(source / f"checkpoints/{name}.safetensors", run / "checkpoints/task-01.safetensors")
        with pytest.raises(RunError, match=r"task-01\.safetensors (does not fit|is not of) the run") as error:
            load_run(run)
        assert "\n" not in str(error.value)


def flipped(data: bytes) -> bytes:
    return data[:-5] + bytes([data[-5] ^ 4]) + data[-4:]


DAMAGE = {
    "cut": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "random": lambda data: bytes(range(256)) * 40,
    "flipped": flipped,
}
FILES = ("checkpoints/task-01", "checkpoints/last", "backbones/student", "heldout/task-01")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_of_tensors_is_one_line(runs, run, name, damage):
    """Read by --add, which needs each of them, or tests on what is kept of the first task."""
    if name == "checkpoints/last":  # that of a finished run has no tensors: one in the middle of a task
        with pytest.raises(KeyboardInterrupt):
            add_task(run, Addition(str(runs / "second")), Interrupt(2))
    file = run / f"{name}.safetensors"
    file.write_bytes(DAMAGE[damage](file.read_bytes()))
    action = resume if name == "checkpoints/last" else load_run
    if name.startswith("heldout"):
        action = lambda run: RunDirectory(run).load_heldout(1)  # noqa: E731
    with pytest.raises(CdlError, match=name.rpartition("/")[2]) as error:
        action(run)
    assert "\n" not in str(error.value)


def test_files_from_before_there_were_digests_are_read(run):
    file = run / "checkpoints/task-01.safetensors"
    tensors = safetensors.torch.load_file(file)
    with safetensors.safe_open(file, framework="pt") as opened:
        metadata = dict(opened.metadata())
    assert len(metadata.pop("sha256")) == 64
    safetensors.torch.save_file(tensors, file, metadata)
    assert load_run(run)[0].finished
