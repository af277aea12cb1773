"""`cdl learn`, killed (SIGKILL) at random moments of its life: alone, or two at once that learn into the same file.

`kills.py` kills before every change to a file; here nobody knows where. Every second moment is drawn from the whole
life of a process, the others from the time since one of them has locked the file, which is when it writes. Whoever
looks after the kill finds the old model or a new one, with its own statistics and description, and what a process said
it had done. Then the command is given again, and one more, and everything is there and nothing left over.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.attack.world import CLASSES, World, command, ended, in_child, note_failure, said_badly, start
from cdl_deploy.learn.opened import open_learnable
from cdl_deploy.runtime.bundle import read_bundle

OLD, NEW = list(CLASSES[0]), list(CLASSES[1])
LONGER = 1.1
"""Moments are drawn from a process's usual time, and so much more, so that some of them live."""


def attack(world: World, arguments: argparse.Namespace) -> dict[str, Any]:
    """Figures by what is killed."""
    wanted = [name for name in arguments.only.split(",") if name]
    rng = random.Random(arguments.seed)
    told = {}
    for name, processes in (("learn", 1), ("two learn at once", 2)):
        if not wanted or name in wanted:
            told[name] = kill_at_moments(world, processes, arguments.moments // 2, rng)
            print(f"moments: {name}: {told[name]}", file=sys.stderr)
    return told


def kill_at_moments(world: World, processes: int, moments: int, rng: random.Random) -> dict[str, Any]:
    told: dict[str, Any] = {"moments": moments, "kills": 0, "old": 0, "new": 0, "mixed": 0, "lost": 0, "tracebacks": 0}
    told |= {"failures": 0, "examples": []}
    note = partial(note_failure, told)
    names = NEW[:processes]
    folder = world.fresh("first-device")
    usual = [max(together(world, folder, names, [60.0] * processes)[1])]
    folder = world.fresh("first-device")
    usual.append(max(together(world, folder, names, [60.0] * processes, writing=True)[1]))
    for number in range(moments):
        folder = world.fresh("first-device")
        delays = [rng.uniform(0, LONGER * usual[number % 2]) for _ in names]
        said, _ = together(world, folder, names, delays, writing=number % 2 == 1)
        told["kills"] += said.count(None)
        found = in_child(partial(there, folder))
        if any(map(said_badly, said)) or said_badly(found):
            note("mixed" if said_badly(found) else "tracebacks", f"after {delays}: said {said}, found {found}")
            continue
        told["old" if found == OLD else "new"] += 1
        if found[:2] != OLD or not set(found[2:]) <= set(names):
            note("mixed", f"after {delays}: {found}")
        for name, one in zip(names, said, strict=True):
            if one == "done" and name not in found:
                note("lost", f"after {delays}: said {said}, found {found}")
        missing = [name for name in names if name not in found]
        again = together(world, folder, missing, [60.0] * len(missing))[0]
        again += together(world, folder, OLD[:1], [60.0])[0]  # whoever writes next clears away what a kill left
        found = in_child(partial(there, folder, tidy=True))
        if again != ["done"] * (len(missing) + 1) or sorted(found) != sorted([*OLD, *names]):
            note("lost", f"after {delays}: again {again}, found {found}")
    return told


def together(
    world: World, folder: Path, names: list[str], delays: list[float], writing: bool = False
) -> tuple[list[Any], list[float]]:
    """One process for each class, killed after its seconds; what they said (None: killed), and how long they took.

    `writing`: seconds count from when one of them has locked the file.
    """
    model = folder / "first-device" / "student.onnx"
    answers = [folder.parent / f"said-{name}.json" for name in names]
    began = time.monotonic()
    children = [start(learn(world, model, name), answer) for name, answer in zip(names, answers, strict=True)]
    took = dict.fromkeys(children, 0.0)
    waiting = dict(zip(children, delays, strict=True))
    lock = model.with_name(f".{model.name}.lock")
    while waiting:
        if writing and lock.exists():
            began, writing = time.monotonic(), False
        for child, delay in list(waiting.items()):
            gone = os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
            if not gone and not writing and time.monotonic() - began >= delay:
                os.kill(child, signal.SIGKILL)
                gone = True
            if gone:
                took[child] = 0.0 if writing else time.monotonic() - began
                del waiting[child]
        time.sleep(0.0005)
    said = [ended(child, answer) for child, answer in zip(children, answers, strict=True)]
    return said, list(took.values())


def learn(world: World, model: Path, name: str) -> Any:
    folder = world.root / ("second/train" if name in NEW else "first/test")
    images = sorted((folder / name).iterdir())
    return command("learn", model, "--class", name, *images, "-o", model, "--threads", 1)


def there(folder: Path, tidy: bool = False) -> list[str]:
    """The classes of the model that is there, which fits its statistics; `tidy`: with nothing beside them."""
    path = folder / "first-device" / "student.onnx"
    opened = open_learnable(path)
    opened.close()
    classes = list(read_bundle(path).classes)
    beside = path.with_suffix(".json")
    if beside.exists() and json.loads(beside.read_text())["classes"] != classes:
        raise RuntimeError(f"{beside.name} describes another model")
    if tidy:
        expected = sorted([path.name, beside.name, opened.statistics.file])
        found = sorted(os.listdir(path.parent))
        if found != expected:
            raise RuntimeError(f"left over: {found}, expected {expected}")
    return classes
