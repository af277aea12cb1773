"""Processes of their own that need PyTorch: forked from one that has imported it once, which takes seconds.

That one is started by the first test that asks, as a fresh Python without pytest, shape checks or threads.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from tests import speed

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.imported_beforehand"])


class Child:
    """`function(*arguments)`, which can be found by name, in a process of its own; it ends as a program does."""

    def __init__(
        self, function: Callable[..., object], *arguments: Any, env: Mapping[str, str] | None = None, cwd: Path = Path()
    ) -> None:
        self.said = tempfile.TemporaryDirectory(prefix="child-")
        files = [os.path.join(self.said.name, name) for name in ("out", "err", "seconds")]
        self.process = CONTEXT.Process(
            target=_inside, args=(function, arguments, dict(env or {}), str(cwd.resolve()), files)
        )
        self.process.start()

    @property
    def pid(self) -> int:
        """Its number."""
        assert self.process.pid is not None
        return self.process.pid

    def finished(self, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        """What it left, as `subprocess.run` tells it. Raises TimeoutError, and ends it, after so many seconds."""
        self.process.join(timeout)
        if self.process.exitcode is None:
            self.process.kill()
            raise TimeoutError(f"process {self.pid} does not end")
        out, err = (Path(self.said.name, name).read_text(encoding="utf-8") for name in ("out", "err"))
        spent = Path(self.said.name, "seconds")  # not there where it was killed
        speed.elsewhere += float(spent.read_text()) if spent.exists() else 0.0
        self.said.cleanup()
        code = self.process.exitcode
        self.process.close()
        return subprocess.CompletedProcess([], code, out, err)


def run_program(file: Path, words: list[str]) -> None:
    """As `python file words`."""
    sys.argv = [str(file), *words]
    runpy.run_path(str(file), run_name="__main__")


def _inside(
    function: Callable[..., object], arguments: Iterable[Any], env: dict[str, str], cwd: str, files: list[str]
) -> None:
    for descriptor, file in enumerate(files[:2], start=1):
        opened = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(opened, descriptor)
        os.close(opened)
    sys.stdout = os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", closefd=False)
    os.environ.update(env)
    os.chdir(cwd)
    try:
        function(*arguments)
    finally:
        Path(files[2]).write_text(str(sum(os.times()[:4])))
