"""Two processes at once: what must not mix does not, nothing that was reported as done is gone, and nobody hangs.

Two processes are let go at the same moment, apart by a random part of what one of them takes. Those of `cdl update`
believe that they have the same process number, as the first processes of two containers on one volume do.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import filelock

from benchmarks.attack.kills import exported
from benchmarks.attack.world import World, command, ended, hashes, in_child, note_failure, run_state, said_badly, start
from cdl_deploy.training import loop
from cdl_deploy.training.preparation import Addition
from cdl_deploy.training.progress import Progress
from cdl_deploy.training.revisions import undo_task
from cdl_deploy.training.run_directory import RunDirectory
from cdl_deploy.update.patch import apply_updates, make_update

Act = Callable[[Path], object]


@dataclass(frozen=True)
class Race:
    """Two processes in a folder."""

    parts: tuple[str, ...]
    acts: tuple[Act, Act]
    wrong: Callable[[Path, list[Any]], str | None]
    """What is wrong with what is there, given what they said; None if nothing is."""
    prepare: Act = lambda folder: None
    watch: Callable[[Path], object] | None = None
    """Looks, while they are at it, at what others see."""
    allowed: Callable[[Path], list[object]] = lambda folder: []
    """What it may find."""
    shy: bool = False
    """Both may be refused: one by the other, which finds that it has nothing to do."""


def attack(world: World, arguments: argparse.Namespace) -> dict[str, Any]:
    """Figures by name of the race."""
    wanted = [name for name in arguments.only.split(",") if name]
    chosen = {name: it for name, it in races(world).items() if not wanted or name in wanted}
    rng = random.Random(arguments.seed)
    told = {}
    for name, race in chosen.items():
        told[name] = run_often(world, race, arguments.races, rng)
        print(f"races: {name}: {told[name]}", file=sys.stderr)
    return told


def run_often(world: World, race: Race, times: int, rng: random.Random) -> dict[str, Any]:
    told: dict[str, Any] = {"races": times, "both": 0, "refused": 0, "looks": 0, "mixed": 0, "tracebacks": 0}
    told |= {"failures": 0, "examples": []}

    note = partial(note_failure, told)
    usual = 0.0
    for _ in range(times):
        folder = world.fresh(*race.parts)
        in_child(lambda f=folder: race.prepare(f))  # type: ignore[misc]
        allowed = race.allowed(folder)
        delays = [0.0, rng.uniform(0, usual)]
        rng.shuffle(delays)
        said, looks, seconds = together(folder, race, delays, allowed, note)
        usual = usual or seconds / 2
        told["looks"] += looks
        done = sum(not str(one).startswith("error") and not said_badly(one) for one in said)
        told["both"] += done == 2
        told["refused"] += done == 1
        if any(map(said_badly, said)) or (done == 0 and not race.shy):
            note("tracebacks", str(said))
        problem = in_child(lambda f=folder, s=said: race.wrong(f, s))  # type: ignore[misc]
        if problem != "done":
            note("mixed", f"{problem}; they said {said}")
    return told


def together(
    folder: Path, race: Race, delays: list[float], allowed: list[object], note: Callable[[str, str], None]
) -> tuple[list[Any], int, float]:
    """What both said, how often was looked, and the seconds it took."""
    waiting, go = os.pipe()
    answers = [folder.parent / f"said-{number}.json" for number in (0, 1)]

    def after_the_start(act: Act, delay: float) -> object:
        os.close(go)
        os.read(waiting, 1)
        time.sleep(delay)
        return act(folder)

    children = [
        start(partial(after_the_start, act, delay), answer)
        for act, delay, answer in zip(race.acts, delays, answers, strict=True)
    ]
    began, looks = time.monotonic(), 0
    os.close(waiting)
    os.close(go)
    said = []
    for child, answer in zip(children, answers, strict=True):
        while race.watch is not None and os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            found = race.watch(folder)
            looks += 1
            if found not in allowed:
                note("mixed", f"seen meanwhile: {found}")
            time.sleep(0.002)
        said.append(ended(child, answer))
    return said, looks, time.monotonic() - began


# ---- what races ------------------------------------------------------------------------------------------------------


def races(world: World) -> dict[str, Race]:
    """By name."""
    second, third = (partial(added, world, number) for number in (2, 3))
    grow = Race(("learned-1",), (second, third), partial(additions, world))
    contents = model_contents(world)
    update = Race(
        (),
        (partial(updated, "a"), partial(updated, "b")),
        partial(one_of, contents),
        partial(update_files, contents),
        model_there,
        lambda folder: [digest(content) for content in contents],
    )
    return {
        "add against add": grow,
        "add against resume": Race(
            ("learned-1",), (third, resumed), partial(additions, world), partial(interrupted, world), shy=True
        ),
        "add against undo": Race(("learned-2",), (third, undone), partial(additions_and_undo, world)),
        "train against train": Race((), (partial(trained, world), partial(trained, world)), one_run),
        "update against update": update,
        "update against update without locks": Race(
            (),
            (partial(updated, "a", locks=False), partial(updated, "b", locks=False)),
            update.wrong,
            update.prepare,
            update.watch,
            update.allowed,
        ),
        "export against export": Race(
            ("v1",),
            (partial(exported, world, 1), partial(exported, world, 2)),
            partial(one_bundle, world),
            watch=bundle_there,
            allowed=lambda folder: bundles(world),
        ),
        "predict against predict": Race((), (partial(predicted, world), partial(predicted, world)), whole_rows),
    }


def run_in(folder: Path) -> Path:
    (run,) = (path for path in folder.iterdir() if path.name.startswith(("learned", "run")))
    return run


def added(world: World, number: int, folder: Path) -> None:
    loop.add_task(run_in(folder), Addition(world.images(number)))


def resumed(folder: Path) -> None:
    loop.resume(run_in(folder))


def undone(folder: Path) -> None:
    undo_task(run_in(folder))


def trained(world: World, folder: Path) -> None:
    loop.train(world.config(), folder / "run")


class Interrupt(Progress):
    def step(self, *given: object) -> None:
        raise KeyboardInterrupt


def interrupted(world: World, folder: Path) -> None:
    """The second task is in the middle."""
    try:
        loop.add_task(run_in(folder), Addition(world.images(2)), Interrupt())
    except KeyboardInterrupt:
        return


def additions(world: World, folder: Path, said: list[Any]) -> str | None:
    """What was reported as learned is there, and what it weighs is what it weighs alone."""
    run = run_in(folder)
    if not RunDirectory(run).latest_record().finished:
        loop.resume(run)
    state = run_state(run)
    if state["shown"] != state["classes"] or state["status"] != "finished":
        return f"run.json is behind: {state['shown']}, {state['classes']}"
    if len(state["classes"]) < 4:
        return f"learned {state['classes']}"
    names = state["classes"]
    if names[2:4] == ["cat", "dog"]:  # then there is a run to compare with
        known = run_state(world.root / f"learned-{len(names) // 2}")
        if names == known["classes"] and state["weights"] != known["weights"]:
            return f"other weights than {len(names) // 2} tasks have alone"
    return None


def additions_and_undo(world: World, folder: Path, said: list[Any]) -> str | None:
    run = run_in(folder)
    names = run_state(run)["classes"]
    expected = {
        ("done", "done"): (["ant", "bee", "cat", "dog"], ["ant", "bee", "eel", "fox"]),
        ("done", "error"): (["ant", "bee", "cat", "dog", "eel", "fox"],),
        ("error", "done"): (["ant", "bee"],),
    }[tuple("error" if str(one).startswith("error") else "done" for one in said)]  # type: ignore[index]
    return None if names in expected else f"learned {names}"


def one_run(folder: Path, said: list[Any]) -> str | None:
    state = run_state(folder / "run")
    return None if state["classes"] == ["ant", "bee"] == state["shown"] else f"learned {state['classes']}"


def model_contents(world: World) -> list[bytes]:
    """Old, and two new versions of a model, large enough for their writing to take a while."""
    old = (world.root / "v1" / "student.onnx").read_bytes()
    noise = random.Random(0).randbytes(3 << 20)
    return [old + noise, b"1" + noise + old, noise[::-1] + b"2" + old]


def update_files(contents: list[bytes], folder: Path) -> None:
    (folder / "old.onnx").write_bytes(contents[0])
    shutil.copy(folder / "old.onnx", folder / "student.onnx")
    for name, content in zip("ab", contents[1:], strict=True):
        (folder / "new.onnx").write_bytes(content)
        make_update(folder / "old.onnx", folder / "new.onnx", folder / f"{name}.cdlup")


def updated(name: str, folder: Path, locks: bool = True) -> str:
    os.getpid = lambda: 7
    if not locks:

        def none(*given: object, **more: object) -> None:
            raise OSError("no locks here")

        filelock.FileLock.acquire = none  # type: ignore[method-assign, assignment]
    for _ in range(4):
        done = apply_updates(folder / "old.onnx", [folder / f"{name}.cdlup"], folder / "student.onnx")
    return done.identity.sha256


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def model_there(folder: Path) -> str:
    return digest((folder / "student.onnx").read_bytes())


def one_of(contents: list[bytes], folder: Path, said: list[Any]) -> str | None:
    """The file is one of the results, each said which it made, and nothing is left behind."""
    if said != [digest(content) for content in contents[1:]]:
        return "one did not say what it made"
    if model_there(folder) not in said:
        return "the file is neither of the two"
    left = [path.name for path in folder.iterdir() if path.name.startswith(".")]
    return f"left behind: {left}" if left else None


def bundle_there(folder: Path) -> dict[str, str]:
    """What is in the folder that has the name when it has been read."""
    while True:
        opened = os.open(folder / "v1", os.O_RDONLY)
        try:
            names = sorted(os.listdir(opened))
            found = {name: digest(_content(opened, name))[:16] for name in names}
            if os.path.samestat(os.fstat(opened), os.stat(folder / "v1")):
                return found
        except FileNotFoundError:  # it was the old one, which is being removed
            continue
        finally:
            os.close(opened)


def _content(folder: int, name: str) -> bytes:
    with open(os.open(name, os.O_RDONLY, dir_fd=folder), "rb") as file:
        return file.read()


def bundles(world: World) -> list[object]:
    return [{n: d for n, d in hashes(world.root / f"v{number}").items() if "cdlup" not in n} for number in (1, 2)]


def one_bundle(world: World, folder: Path, said: list[Any]) -> str | None:
    found = hashes(folder)
    wanted = [{f"v1/{name}": value for name, value in one.items()} for one in bundles(world)]  # type: ignore[attr-defined]
    return None if found in wanted else f"found {found}"


def predicted(world: World, folder: Path) -> None:
    photos = world.root / "first" / "test"
    words = ("predict", world.root / "v2" / "student.onnx", photos, photos, "--threads", 1)
    command(*words, "--output", folder / "rows.jsonl")()


def whole_rows(folder: Path, said: list[Any]) -> str | None:
    count = len((folder / "rows.jsonl").read_text().splitlines())
    return None if count == 8 else f"{count} rows"
