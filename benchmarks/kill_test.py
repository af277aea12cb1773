"""Kills a training run with SIGKILL at random moments, resumes it until it ends, and compares the result bit for bit.

    python benchmarks/kill_test.py --runs 20 --seed 0
    python benchmarks/kill_test.py --runs 20 --cache-views 1

Every run (two tasks, then a third one added) is killed three times: at a random write, with half of the file written,
before it is moved to its place, just after, or at a random moment that follows. Moments are counted from a write, and
the first two kills come in the first two thirds of all writes, so that a run is there to be killed however slow the
machine has become; the third may come after the end. The processes are forked from this one, which has imported
everything and computed nothing. Exits 1 where a result differs from that of the uninterrupted run.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from cdl_deploy.run.config import DataConfig, MethodConfig, ModelConfig, OptimConfig, RunConfig
from cdl_deploy.training import cached_views, loop
from cdl_deploy.training.checkpoint import load_run
from cdl_deploy.training.loop import add_task, resume, train
from cdl_deploy.training.preparation import Addition
from cdl_deploy.training.run_directory import RunDirectory

COLOURS = {"ant": (200, 30, 30), "bee": (30, 200, 30), "cat": (30, 30, 200), "dog": (200, 200, 30)}
NEW = {"eel": (30, 200, 200), "fox": (200, 30, 200)}
MOMENTS = ("half written", "before the move", "after the move", "some time later")


def write_images(root: Path, colours: dict[str, tuple[int, int, int]]) -> None:
    """Noise around a colour: five training and three test images a class."""
    rng = np.random.default_rng(0)
    for name, colour in colours.items():
        for split, count in (("train", 5), ("test", 3)):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = np.clip(np.array(colour) + rng.integers(-30, 30, (20, 20, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{i}.png")


def work(run: Path, data: Path, views: int) -> None:
    """Whatever is still to be done: begin, resume, or add the last task."""
    torch.set_num_threads(1)
    cached_views.PART_BYTES = 1  # a part for every batch, so that kills find some
    if not (run / "run.json").exists():
        config = RunConfig(
            DataConfig(str(data / "old"), tasks=2, class_order="natural"),
            ModelConfig(teacher="mini_student", student="mini_student"),
            MethodConfig(components_per_task=2),
            OptimConfig(epochs=2, batch_size=4, device="cpu", cache_views=views),
        )
        train(config, run)
    record = RunDirectory(run).latest_record()
    if not record.finished:
        record = resume(run)
    if len(record.tasks) == 2:  # whether or not the second was written down to the end before a kill
        add_task(run, Addition(str(data / "new")))
    resume(run)


def watch_writes(act: Callable[[int, Path, Path], None]) -> None:
    """Call `act` before this process moves a file to its place: which move it is, counted from 1, and both paths."""
    numbers = itertools.count(1)
    replace = Path.replace

    def watched(self: Path, target: Path) -> Path:
        act(next(numbers), self, target)
        return replace(self, target)

    Path.replace = watched  # type: ignore[method-assign, assignment]


def kill_at_write(number: int, moment: str, seconds: float) -> None:
    """Make this process kill itself at its write with that number, or so many seconds after it."""

    def die(now: int, path: Path, target: Path) -> None:
        if now != number:
            return
        if moment == "some time later":
            threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGKILL)).start()
            return
        if moment == "half written":
            os.truncate(path, path.stat().st_size // 2)
        elif moment == "after the move":
            os.replace(path, target)
        os.kill(os.getpid(), signal.SIGKILL)

    watch_writes(die)


def whole_run(run: Path, data: Path, views: int, told: Path) -> None:
    """The uninterrupted run; `told` says how many writes it made."""
    made: list[int] = []
    watch_writes(lambda number, *_: made.append(number))
    work(run, data, views)
    told.write_text(str(len(made)))


def fork(action: Callable[[], None]) -> int:
    """Process number of a child that does `action`."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        action()
        code = 0
    finally:
        if code:
            traceback.print_exc()
        os._exit(code)


def killed(child: int) -> bool:
    """Wait for a child; whether it died of SIGKILL."""
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return True
    if status:
        raise SystemExit("a run failed by itself: see above")
    return False


def outcome(run: Path) -> tuple[dict[str, torch.Tensor], object]:
    """All trained tensors, and the accuracy matrices."""
    record, pair = load_run(run)
    assert record.finished and len(record.tasks) == 3, "the run is not complete"
    assert json.loads((run / "run.json").read_text())["status"] == "finished"
    leftovers = [path for path in run.rglob("*") if ".tmp" in path.name]
    assert not leftovers and not (run / "views").exists(), f"left behind: {leftovers or 'views'}"
    return pair.trained_state(), record.matrices


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cache-views", type=int, default=0)
    parser.add_argument("--without-pictures", action="store_true", help="in half of the time")
    arguments = parser.parse_args()
    if arguments.without_pictures:
        loop.plot_run = lambda *_: None  # type: ignore[attr-defined]
    rng = random.Random(arguments.seed)
    folder = Path(tempfile.mkdtemp(prefix="cdl-kill-"))
    write_images(folder / "old", COLOURS)
    write_images(folder / "new", NEW)
    views = arguments.cache_views
    began = time.monotonic()
    whole = folder / "whole"
    assert not killed(fork(lambda: whole_run(whole, folder, views, folder / "writes")))
    writes = int((folder / "writes").read_text())
    gap = (time.monotonic() - began) / writes
    kills = dict.fromkeys(MOMENTS, 0)
    differing = 0
    runs = [folder / f"run-{number}" for number in range(arguments.runs)]
    for run in runs:
        for last in (writes // 3, writes // 3, writes):
            moment, number, seconds = rng.choice(MOMENTS), rng.randint(1, last), rng.uniform(0, 2 * gap)

            def action(run: Path = run, moment: str = moment, number: int = number, seconds: float = seconds) -> None:
                kill_at_write(number, moment, seconds)
                work(run, folder, views)

            kills[moment] += killed(fork(action))
        assert not killed(fork(lambda run=run: work(run, folder, views)))  # type: ignore[misc]
    expected, matrices = outcome(whole)
    for run in runs:
        state, found = outcome(run)
        same = state.keys() == expected.keys() and all(torch.equal(expected[name], state[name]) for name in expected)
        differing += not (same and found == matrices)
    shutil.rmtree(folder)
    print(json.dumps({"runs": len(runs), "kills": kills, "differing": differing}))
    sys.exit(1 if differing else 0)


if __name__ == "__main__":
    main()
