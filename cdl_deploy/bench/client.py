"""The parent's end of a worker process."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import tempfile
from types import TracebackType
from typing import Any

from cdl_deploy.bench.options import ModelSpec
from cdl_deploy.errors import BundleError


class WorkerClient:
    """One model in a process of its own. A context manager: leaving it ends the process.

    Every call raises `BundleError` if the worker reports an error or dies.
    """

    def __init__(self, model: ModelSpec) -> None:
        """Start the process; nothing is loaded yet."""
        self.model = model
        # A pipe could fill and block the worker; closed in __exit__.
        self._stderr = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        self._process = subprocess.Popen(
            # -P: a file called random.py in the user's folder must not be taken for the standard library's
            [sys.executable, "-P", "-m", "cdl_deploy.bench.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
            encoding="utf-8",
        )

    def prepare(self, job: dict[str, Any]) -> int | None:
        """Import what the job takes (see `cdl_deploy.bench.runners.Job`): bytes of memory that this needs."""
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

    def usage(self) -> tuple[float, int]:
        """(processor seconds so far, how often it was taken from the processor for another program)."""
        reply = self._ask(do="usage")
        return float(reply["cpu_seconds"]), int(reply["switched"] or 0)

    def _ask(self, **request: Any) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise BundleError(f"{self.model.path}: the process measuring it ended: {self._last_words()}")
        reply: dict[str, Any] = json.loads(line)
        if "error" in reply:
            raise BundleError(f"{self.model.path}: {reply['error']}" if "unexpected" in reply else reply["error"])
        return reply

    def _last_words(self) -> str:
        code = self._process.wait()
        if code == -signal.SIGKILL:
            return "killed, probably because memory ran out; try smaller batches with --batch"
        self._stderr.seek(0)
        lines = self._stderr.read().strip().splitlines()
        return f"exit status {code}" + (f", {lines[-1]}" if lines else "")

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
