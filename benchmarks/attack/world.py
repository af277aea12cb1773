"""What is attacked: small images, runs, models and an update, made once; and child processes to do it in."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from PIL import Image

from cdl_deploy.export import ExportOptions, export_run
from cdl_deploy.export import export as export_module
from cdl_deploy.export.onnx_file import export_onnx
from cdl_deploy.files import write_text
from cdl_deploy.learn.learner import Learner
from cdl_deploy.run.config import DataConfig, MethodConfig, ModelConfig, OptimConfig, RunConfig
from cdl_deploy.runtime.web_page import write_page
from cdl_deploy.training import loop
from cdl_deploy.training.checkpoint import load_run
from cdl_deploy.training.plots import PICTURES
from cdl_deploy.training.preparation import Addition

CLASSES = (("ant", "bee"), ("cat", "dog"), ("eel", "fox"))
FOLDERS = ("first", "second", "third")
TRACES = "traces"
QUIET: dict[str, Any] = {"epochs": 1, "batch_size": 4, "device": "cpu", "workers": 0}


class World:
    """Everything lies in `root` and is only read; an attack works on copies."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.attacks = root / "attacks"
        if not self.attacks.exists():
            for make in (self._images, self._runs, self._models, self._devices, self._page):
                answer = in_child(make)
                if answer != "done":
                    raise SystemExit(f"the world cannot be made: {answer}")
            self.attacks.mkdir()

    def fresh(self, *parts: str) -> Path:
        """An empty folder to attack in, with copies of `parts` of the world."""
        folder = self.attacks / "now"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for part in parts:
            source = self.root / part
            (shutil.copytree if source.is_dir() else shutil.copy)(source, folder / source.name)
        return folder

    def images(self, number: int) -> str:
        """The image folder of task `number`."""
        return str(self.root / FOLDERS[number - 1])

    def config(self, summed: bool = False) -> RunConfig:
        """Of a run of the first task: trained, or with closed-form heads."""
        method: dict[str, Any] = {"method": "none", "head": "slda"} if summed else {"components_per_task": 2}
        return RunConfig(
            DataConfig(self.images(1), tasks=1, class_order="natural"),
            ModelConfig(teacher="mini_student", student="mini_student"),
            MethodConfig(distill="none", **method),
            OptimConfig(**QUIET),
        )

    def _images(self) -> None:
        rng = np.random.default_rng(0)
        for folder, names in zip(FOLDERS, CLASSES, strict=True):
            for name in names:
                for split, count in (("train", 4), ("test", 2)):
                    (self.root / folder / split / name).mkdir(parents=True)
                    for i in range(count):
                        pixels = np.clip(rng.integers(0, 256, 3) + rng.integers(-30, 30, (20, 20, 3)), 0, 255)
                        Image.fromarray(pixels.astype(np.uint8)).save(self.root / folder / split / name / f"{i}.png")

    def _runs(self) -> None:
        """`learned-N` and `summed-N` have learned N tasks, one after another."""
        for kind in ("learned", "summed"):
            loop.train(self.config(kind == "summed"), self.root / f"{kind}-1")
            for number in (2, 3):
                run = self.root / f"{kind}-{number}"
                shutil.copytree(self.root / f"{kind}-{number - 1}", run)
                loop.add_task(run, Addition(self.images(number)))

    def _models(self) -> None:
        """`v1` and `v2`: the run of one task and that of two, and in `v2` the update from one to the other;
        `first-device`: a model that can learn."""
        for number in (1, 2):
            options = ExportOptions(latency=False, update_from=(self.root / "v1",) if number == 2 else ())
            traces = self.root / TRACES / f"learned-{number}"
            traces.mkdir(parents=True)
            with patched(export_module, "export_onnx", keeping(traces)):
                export_run(self.root / f"learned-{number}", self.root / f"v{number}", options)
        export_run(self.root / "summed-1", self.root / "first-device", ExportOptions(teacher=False, latency=False))

    def _devices(self) -> None:
        """`device`: a model that can learn; `device-1` and `device-2` have learned a class each since."""
        traces = self.root / TRACES / "summed-2"
        traces.mkdir(parents=True)
        with patched(export_module, "export_onnx", keeping(traces)):
            export_run(self.root / "summed-2", self.root / "device", ExportOptions(latency=False))
        for number, name in enumerate(CLASSES[2], start=1):
            shutil.copytree(self.root / "device", self.root / f"device-{number}")
            with Learner(self.root / f"device-{number}" / "student.onnx") as learner:
                learner.add(name, sorted((self.root / "third" / "train" / name).iterdir())).save()

    def learning(self, name: str, device: Path) -> Callable[[], None]:
        """The command that teaches a device a class of the third task."""
        model, images = device / "student.onnx", self.root / "third" / "train" / name
        return command("learn", model, "--class", name, images, "-o", model, "--threads", 1)

    def _page(self) -> None:
        write_page(self.root / "v1" / "student.onnx", self.root / "site")


def keeping(traces: Path) -> Callable[..., onnx.ModelProto]:
    """`export_onnx`, whose graphs are kept: tracing takes most of an export's time."""

    def traced(graph: torch.nn.Module, bundle: Any, *more: Any, **named: Any) -> onnx.ModelProto:
        file = traces / f"{bundle.role}.onnx"
        if not file.exists():
            onnx.save(export_onnx(graph, bundle, *more, **named), file)
        return onnx.load(file)

    return traced


class patched:  # noqa: N801  used like a function
    """An attribute of a module is another one for a while."""

    def __init__(self, module: Any, name: str, value: Any) -> None:
        self.module, self.name, self.value = module, name, value

    def __enter__(self) -> None:
        self.before = getattr(self.module, self.name)
        setattr(self.module, self.name, self.value)

    def __exit__(self, *_: object) -> None:
        setattr(self.module, self.name, self.before)


def draw_nothing(matrices: object, title: str, folder: Path) -> None:
    """In place of pictures, which take half of a small run's time: the same files, written in the same way."""
    for name in PICTURES:
        write_text(folder / f"{name}.png", title)


def start(action: Callable[[], Any], answer: Path) -> int:
    """Do `action` in a child, which writes what came of it to `answer`; returns the child's number.

    `done` or what the action returns; the error, where it is one that a user can cause; `Traceback …` for any other.
    """
    child = os.fork()
    if child:
        return child
    try:
        quiet = os.open(os.devnull, os.O_RDWR)
        for number in (0, 1, 2):
            os.dup2(quiet, number)
        torch.set_num_threads(1)
        setattr(loop, "plot_run", draw_nothing)  # noqa: B010  it is imported there for its own use
        said = attempted(action)
        answer.write_text(json.dumps(said))
        os._exit(0)
    finally:
        os._exit(1)


def attempted(action: Callable[[], Any]) -> Any:
    from cdl_deploy.errors import CdlError

    try:
        found = action()
        return "done" if found is None else found
    except CdlError as error:
        return f"error: {error}"
    except SystemExit as end:
        return "done" if not end.code else f"exit code {end.code}"
    except BaseException:  # noqa: BLE001  it is told to whoever started it
        return f"Traceback: {traceback.format_exc()[-1500:]}"


def ended(child: int, answer: Path) -> Any:
    """What a child said; None where it was killed."""
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return None
    if status:
        return f"Traceback: a child ended with status {status}"
    return json.loads(answer.read_text())


def in_child(action: Callable[[], Any]) -> Any:
    """What `action` says in a process of its own; None where that was killed."""
    answer = Path(os.environ.get("TMPDIR", "/tmp"), f"cdl-attack-{os.getpid()}.json")
    try:
        return ended(start(action, answer), answer)
    finally:
        answer.unlink(missing_ok=True)


def command(*words: object) -> Callable[[], None]:
    """`cdl` with these words, in the process that calls it."""

    def run() -> None:
        from cdl_deploy.cli import main

        main([str(word) for word in words])

    return run


def run_state(run: Path) -> dict[str, Any]:
    """What a run has learned, and whether its files agree."""
    record, pair = load_run(run)
    shown = json.loads((run / "run.json").read_text())
    return {
        "classes": record.known_classes,
        "matrices": record.matrices,
        "weights": digest_of(pair.trained_state()),
        "status": shown["status"],
        "shown": [name for task in shown["tasks"] for name in task["classes"]],
        "files": sorted(
            str(path.relative_to(run)) for path in run.rglob("*") if path.is_file() and path.name != ".lock"
        ),
    }


def digest_of(tensors: dict[str, torch.Tensor]) -> str:
    """SHA-256 of names and values."""
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        digest.update(name.encode() + value.contiguous().numpy().tobytes())
    return digest.hexdigest()


def hashes(folder: Path) -> dict[str, str]:
    """SHA-256 by name of every file in a folder, hidden ones as well."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()] if folder.exists() else []
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()[:16] for path in files}


def said_badly(said: Any) -> bool:
    """Whether a process ended with anything but a result or one line."""
    return isinstance(said, str) and (said.startswith("Traceback") or "\n" in said.strip())


if sys.platform == "win32":
    raise SystemExit("processes are forked here, which Windows cannot")


def note_failure(told: dict[str, Any], what: str, text: str) -> None:
    """Count one of `what`, and keep the first three to look at."""
    told[what] += 1
    told["failures"] += 1
    if len(told["examples"]) < 3:
        told["examples"].append(f"{what}: {text}"[:1500])
