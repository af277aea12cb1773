"""The parent's end of a worker process (`scripts/worker.py`)."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from cdl_deploy.errors import BundleError
from cdl_deploy.targets.scripts.worker import MARK

LAST_LINES = 5
"""Of what a process says before it ends."""


class WorkerError(BundleError):
    """`why`: the error that the process reported, or how it ended and what it said last."""

    def __init__(self, message: str, why: str) -> None:
        super().__init__(message)
        self.why = why


class WorkerClient:
    """One model in a process of its own. A context manager: leaving it ends the process.

    Every call raises `WorkerError` if the worker reports an error or dies.
    """

    def __init__(self, model: Path, command: Sequence[str | Path], patience: float | None = None) -> None:
        """Start the process; nothing is loaded yet. An answer that takes longer than `patience` seconds ends it."""
        self.model = model
        self._patience = patience
        # A pipe could fill and block the worker; closed in __exit__.
        self._stderr = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
            encoding="utf-8",
        )

    def prepare(self, job: dict[str, Any]) -> int | None:
        """Import what the job takes, and convert where that is the way: bytes of memory that this needs."""
        bytes_before: int | None = self._ask(do="prepare", job=job)["bytes_before"]
        return bytes_before

    def load(self) -> float:
        """Make the model ready: milliseconds."""
        return float(self._ask(do="load")["load_ms"])

    def inspect(self, batch: int) -> dict[str, Any]:
        """What there is to know apart from times."""
        return self._ask(do="inspect", batch=batch)

    def first(self, batch: int) -> float:
        """Milliseconds of the first run at a batch size."""
        return float(self._ask(do="first", batch=batch)["ms"])

    def warm(self, batch: int, streams: int, seconds: float) -> tuple[bool, int | None]:
        """Run until steady or for `seconds`: (whether it became steady, peak memory so far in bytes)."""
        reply = self._ask(do="warm", batch=batch, streams=streams, seconds=seconds)
        return bool(reply["steady"]), reply["peak_bytes"]

    def burst(self, batch: int, streams: int, seconds: float) -> list[float]:
        """Milliseconds of each run of one burst."""
        return list(self._ask(do="burst", batch=batch, streams=streams, seconds=seconds)["ms"])

    def answer(self, feed: Path, out: Path) -> None:
        """Run the images [batch, …] of a .npy file; their logits go into another one."""
        self._ask(do="answer", feed=str(feed), out=str(out))

    def usage(self) -> tuple[float, int]:
        """(processor seconds so far, how often it was taken from the processor for another program)."""
        reply = self._ask(do="usage")
        return float(reply["cpu_seconds"]), int(reply["switched"] or 0)

    def _ask(self, **request: Any) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        late = threading.Event()
        with contextlib.ExitStack() as stack:
            if self._patience is not None:

                def end() -> None:
                    late.set()
                    self._process.kill()

                timer = threading.Timer(self._patience, end)
                timer.start()
                stack.callback(timer.cancel)
            try:
                self._process.stdin.write(json.dumps(request) + "\n")
                self._process.stdin.flush()
                line = self._reply()
            except BrokenPipeError:
                line = ""
        if not line:
            why = f"stopped after {self._patience:g} s" if late.is_set() else self._last_words()
            raise WorkerError(f"{self.model}: the process measuring it ended: {why}", why)
        reply: dict[str, Any] = json.loads(line)
        if "error" in reply:
            error = str(reply["error"])
            raise WorkerError(f"{self.model}: {error}" if "unexpected" in reply else error, error)
        return reply

    def _reply(self) -> str:
        """The next reply, past whatever else was printed; empty at the end."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            _, mark, reply = line.partition(MARK)
            if mark:
                return reply
        return ""

    def _last_words(self) -> str:
        code = self._process.wait()
        if code == -signal.SIGKILL:
            return "killed, probably because memory ran out; try smaller batches with --batch"
        self._stderr.seek(0)
        lines = self._stderr.read().strip().splitlines()[-LAST_LINES:]
        return f"exit code {code}" + (f": {' | '.join(line.strip() for line in lines)}" if lines else "")

    def __enter__(self) -> WorkerClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(patience=0 if error else 5)  # after an error it may be in the middle of a long run

    def close(self, patience: float = 5) -> None:
        """End the process, by force after `patience` seconds. It may be called twice."""
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(timeout=patience)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._stderr.close()
