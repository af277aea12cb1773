"""Every command, killed before each change that it makes to a file, and then carried on as a user would.

Python tells an audit hook of every change to a file before it is made: open for writing, rename, remove, and so on. A
process with such a hook kills itself with SIGKILL before the first of them, the next one before the second, until one
lives. A kill before a rename is made twice, with the file that was to be moved whole and cut to half.

Right after the kill nobody may see a mixture; when the command was given again, everything is what it would have been.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.attack.world import (
    TRACES,
    World,
    command,
    digest_of,
    hashes,
    in_child,
    keeping,
    note_failure,
    patched,
    run_state,
    said_badly,
)
from cdl_deploy.export import ExportOptions, export_run, onnx_file
from cdl_deploy.export import export as export_module
from cdl_deploy.learn.learner import Learner
from cdl_deploy.runtime.bundle import read_bundle
from cdl_deploy.runtime.web_page import write_page
from cdl_deploy.training import loop
from cdl_deploy.training.preparation import Addition
from cdl_deploy.training.revisions import forget_class, new_heads, undo_task
from cdl_deploy.training.run_directory import RunDirectory

CHANGES = frozenset(
    ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod", "os.chown")
)
"""Audit events of changes to files; `open` is another one where it is for writing."""
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


@dataclass(frozen=True)
class Victim:
    """A command to kill. Everything happens in a folder that is the first argument."""

    parts: tuple[str, ...]
    """Of the world, to be copied there."""
    act: Callable[[Path], object]
    again: Callable[[Path], object]
    """What a user does after the kill."""
    seen: Callable[[Path], object]
    """What others see of it at any time: that of before, or that of after."""
    outcome: Callable[[Path], object]
    also: tuple[Any, ...] = field(default=())
    """What else may be seen."""


def attack(world: World, arguments: argparse.Namespace) -> dict[str, Any]:
    """Figures by name of the victim."""
    wanted = [name for name in arguments.only.split(",") if name]
    chosen = {name: it for name, it in victims(world).items() if not wanted or name in wanted}
    told = {}
    for name, victim in chosen.items():
        told[name] = kill_everywhere(world, victim, arguments.every)
        print(f"kills: {name}: {told[name]}", file=sys.stderr)
    return told


def kill_everywhere(world: World, victim: Victim, every: int) -> dict[str, Any]:
    folder = world.fresh(*victim.parts)
    before = in_child(lambda: victim.seen(folder))
    said = in_child(lambda: victim.act(folder))
    if said_badly(said) or str(said).startswith("error"):
        raise SystemExit(f"it fails without a kill: {said}")
    after, whole = in_child(lambda: victim.seen(folder)), in_child(lambda: victim.outcome(folder))
    told: dict[str, Any] = {"kills": 0, "mixed": 0, "lost": 0, "tracebacks": 0, "failures": 0, "examples": []}

    note = partial(note_failure, told)
    number = 1
    while True:
        lived = False
        for torn in (False, True):
            folder = world.fresh(*victim.parts)
            said = in_child(lambda f=folder, n=number, torn=torn: killed(f, n, torn, victim.act))  # type: ignore[misc]
            if said == "no rename":
                continue
            if said is not None:
                lived = True
                if said_badly(said):
                    note("tracebacks", f"at {number}: {said}")
                break
            told["kills"] += 1
            seen = in_child(lambda f=folder: victim.seen(f))  # type: ignore[misc]
            if seen not in (before, after, *victim.also):
                note("mixed", f"at {number}, torn {torn}: {seen}")
            said = in_child(lambda f=folder: victim.again(f))  # type: ignore[misc]
            found = in_child(lambda f=folder: victim.outcome(f))  # type: ignore[misc]
            if said_badly(said) or said_badly(found):
                note("tracebacks", f"at {number}, torn {torn}: {said} {found}")
            elif found != whole:
                note("lost", f"at {number}, torn {torn}: said {said}; {difference(found, whole)}")
        if lived:
            return told
        number += every


def difference(found: Any, whole: Any) -> str:
    if isinstance(found, dict) and isinstance(whole, dict):
        names = [name for name in found.keys() | whole.keys() if found.get(name) != whole.get(name)]
        return "; ".join(f"{name} is {found.get(name)}, expected {whole.get(name)}" for name in sorted(names))
    return f"{found}, expected {whole}"


def killed(folder: Path, number: int, torn: bool, act: Callable[[Path], object]) -> object:
    """Do `act` and die before the change to a file below `folder` with that number.

    `torn`: only where it is a rename, with the file cut to half; where it is none, `no rename` is returned.
    """
    left, inside = number, str(folder)

    def hook(event: str, given: tuple[Any, ...]) -> None:
        nonlocal left
        if event == "open":
            if not (isinstance(given[2], int) and given[2] & WRITING):
                return
        elif event not in CHANGES:
            return
        path = given[0]
        if not isinstance(path, str | bytes | os.PathLike) or not os.path.abspath(os.fsdecode(path)).startswith(inside):
            return
        left -= 1
        if left:
            return
        if torn:
            if event != "os.rename" or not os.path.isfile(path):
                answer = Path(os.environ.get("TMPDIR", "/tmp"), f"cdl-attack-{os.getppid()}.json")
                answer.write_text('"no rename"')
                os._exit(0)
            half = os.open(path, os.O_RDWR)
            os.ftruncate(half, os.fstat(half).st_size // 2)
        os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    return act(folder)


# ---- what is killed --------------------------------------------------------------------------------------------------


def victims(world: World) -> dict[str, Victim]:
    photos, model = world.root / "first" / "test", world.root / "v2" / "student.onnx"

    def predicting(name: str) -> Victim:
        return Victim((), predicted(name, model, photos), resumed(name, model, photos), rows, whole)

    trained = partial(learned, 2)
    export = partial(exported, world)
    page = partial(paged, world)
    return {
        "train": Victim((), partial(trained_anew, world), partial(trained_on, world), nothing, run_of("run")),
        "add": Victim(("learned-1",), partial(added, world, 2), partial(added_on, world), trained, run_of("learned-1")),
        "undo": Victim(("learned-3",), undone, undone_on, partial(learned, 3), run_of("learned-3")),
        "forget": Victim(("summed-2",), forgotten, forgotten_on, partial(known, "summed-2"), summed_outcome),
        "head": Victim(("learned-2",), headed, headed_on, lambda f: (f / "slda").exists(), run_of("slda")),
        "export": Victim((), partial(export, 2), partial(export, 2), bundle, whole),
        "export over an older one": Victim(("v1",), partial(export, 2), partial(export, 2), bundle, whole),
        "export above 2 GB": Victim(("v1",), partial(large, world), partial(large, world), bundle, whole),
        "page": Victim((), partial(page, 2), partial(page, 2), site, whole),
        "page over an older one": Victim(("site",), partial(page, 2), partial(page, 2), site, whole),
        "update": Victim(("v1", "v2"), updated, updated, described, whole),
        "learn": Victim(
            ("device",), partial(taught, world), partial(taught_on, world), device, partial(device_later, world)
        ),
        "merge": Victim(("device-1", "device-2"), met, met, device, device_whole),
        "predict": predicting("rows.jsonl"),
        "predict parquet": predicting("rows.parquet"),
    }


def nothing(folder: Path) -> str:
    return ""


def run_of(name: str) -> Callable[[Path], object]:
    return lambda folder: run_state(folder / name)


def known(name: str, folder: Path) -> list[str]:
    """The classes that whoever reads the run finds."""
    return RunDirectory(folder / name).latest_record().known_classes


def learned(_: int, folder: Path) -> list[str]:
    (run,) = (path for path in folder.iterdir() if path.name.startswith("learned"))
    return known(run.name, folder)


def trained_anew(world: World, folder: Path) -> None:
    loop.train(world.config(), folder / "run")


def trained_on(world: World, folder: Path) -> None:
    if (folder / "run" / "run.json").exists():
        loop.resume(folder / "run")
    else:
        trained_anew(world, folder)


def added(world: World, number: int, folder: Path) -> None:
    loop.add_task(folder / "learned-1", Addition(world.images(number)))


def added_on(world: World, folder: Path) -> None:
    """Without --resume where none is needed: the run may be behind its last checkpoint."""
    run = folder / "learned-1"
    record = RunDirectory(run).latest_record()
    if not record.finished:
        loop.resume(run)
    elif len(record.tasks) == 1:
        added(world, 2, folder)
    loop.resume(run)


def undone(folder: Path) -> None:
    undo_task(folder / "learned-3")


def undone_on(folder: Path) -> None:
    if len(known("learned-3", folder)) == 6:
        undone(folder)
    loop.resume(folder / "learned-3")


def forgotten(folder: Path) -> None:
    forget_class(folder / "summed-2", "bee")


def forgotten_on(folder: Path) -> None:
    if "bee" in known("summed-2", folder):
        forgotten(folder)
    loop.resume(folder / "summed-2")


def summed_outcome(folder: Path) -> object:
    """The sums of the forgotten class are in no file."""
    run = RunDirectory(folder / "summed-2")
    return {
        **run_state(run.root),
        "sums": [digest_of(run.load_tensors(run.task_checkpoint(number))[0]) for number in (1, 2)],
    }


def headed(folder: Path) -> None:
    new_heads(folder / "learned-2", folder / "slda", {"head": "slda"})


def headed_on(folder: Path) -> None:
    if not (folder / "slda").exists():
        headed(folder)


def exported(world: World, number: int, folder: Path) -> None:
    with patched(export_module, "export_onnx", keeping(world.root / TRACES / f"learned-{number}")):
        export_run(world.root / f"learned-{number}", folder / "v1", ExportOptions(latency=False))


def large(world: World, folder: Path) -> None:
    with patched(onnx_file, "LARGEST_FILE", 10_000):
        exported(world, 2, folder)


def bundle(folder: Path) -> dict[str, str]:
    return hashes(folder / "v1")


def whole(folder: Path) -> dict[str, str]:
    return {name: digest for name, digest in hashes(folder).items() if not name.startswith("v2")}


def paged(world: World, number: int, folder: Path) -> None:
    write_page(world.root / f"v{number}" / "student.onnx", folder / "site")


def site(folder: Path) -> dict[str, str]:
    return hashes(folder / "site")


def updated(folder: Path) -> None:
    command("update", folder / "v1/student.onnx", folder / "v2/student.cdlup", "-o", folder / "v1/student.onnx")()


def described(folder: Path) -> str:
    """Which model is there, unless the file beside it describes another."""
    model, beside = folder / "v1" / "student.onnx", folder / "v1" / "student.json"
    classes = list(read_bundle(model).classes)
    if beside.exists() and json.loads(beside.read_text())["classes"] != classes:
        return "the description of another model"
    return hashes(folder)["v1/student.onnx"]


def taught(world: World, folder: Path) -> None:
    world.learning("eel", folder / "device")()


def taught_on(world: World, folder: Path) -> None:
    """The same images twice are refused."""
    if "eel" not in read_bundle(folder / "device/student.onnx").classes:
        taught(world, folder)


def met(folder: Path) -> None:
    command("merge", *(folder / f"device-{n}/student.onnx" for n in (1, 2)), "-o", folder / "device-1/student.onnx")()


def device(folder: Path) -> object:
    """The first device's model and its statistics, which must be of one another, and a description of no other."""
    model = next(path for path in sorted(folder.iterdir()) if path.name.startswith("device")) / "student.onnx"
    with Learner(model) as learner:  # refuses statistics that are not the model's
        classes, sums = list(learner.classes), learner.bundle.statistics
    beside = model.with_suffix(".json")
    if beside.exists() and json.loads(beside.read_text())["classes"] != classes:
        return "the description of another model"
    return [hashes(model.parent)["student.onnx"], sums.sha256 if sums else ""]


def device_whole(folder: Path) -> object:
    """All of its files: nothing is left of killed processes."""
    device(folder)
    return {name: digest for name, digest in hashes(folder).items() if name.startswith("device-1")}


def device_later(world: World, folder: Path) -> object:
    """The same when it has learned once more, which removes what is left of killed processes."""
    model = folder / "device" / "student.onnx"
    with Learner(model) as learner:
        learner.add("fox", sorted((world.root / "third" / "train" / "fox").iterdir())).save()
    return hashes(folder)


def predicted(name: str, model: Path, photos: Path) -> Callable[[Path], None]:
    words = ("predict", model, photos, photos, photos, "--threads", 1, "--batch-size", 2, "--output")
    return lambda folder: command(*words, folder / name)()


def resumed(name: str, model: Path, photos: Path) -> Callable[[Path], None]:
    def again(folder: Path) -> None:
        words = ("predict", model, photos, photos, photos, "--threads", 1, "--batch-size", 2, "--output", folder / name)
        command(*words, *["--resume"] * (folder / f"{name}.part").exists())()

    return again


def rows(folder: Path) -> dict[str, str]:
    """The finished file; its part is for --resume alone."""
    return {name: digest for name, digest in hashes(folder).items() if name.startswith("rows") and "part" not in name}
