"""The process in which one model runs: `python -m cdl_deploy.bench.worker`, one JSON object a line in and out.

    {"do": "load", "model": PATH, "threads": N, "seed": S}            → {"load_ms", "metadata", "file_bytes"}
    {"do": "first", "batch": B}                                       → {"ms"}: the first run at this batch size
    {"do": "warm", "batch": B, "seconds": S}                          → {"steady", "peak_bytes"}
    {"do": "burst", "batch": B, "seconds": S}                         → {"ms": [one number an iteration]}

An error is `{"error": text}`; the process ends when its standard input does.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from cdl_deploy.bench.machine import peak_memory
from cdl_deploy.bundle import open_session
from cdl_deploy.errors import BundleError, CdlError

STEADY = 0.05
"""Two windows of warm-up in a row agree when their medians differ by less than this share."""
WARM_WINDOW = 0.1
"""Seconds of one window of warm-up (at least one iteration)."""
UNCOUNTED = 0.2
"""Share of a burst's time that runs before its counted part (at least one iteration)."""
TYPES: dict[str, type[np.generic]] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(uint8)": np.uint8,
}


class Worker:
    """One onnxruntime session and the inputs it is measured with."""

    def load(self, model: str, threads: int, seed: int) -> dict[str, Any]:
        """Open the model. The time covers reading the file and preparing the session, not importing onnxruntime."""
        import onnxruntime  # noqa: F401  (imported here so that the clock below does not see it)

        begin = time.perf_counter()
        self._session = open_session(model, threads=threads)
        seconds = time.perf_counter() - begin
        self._path, self._random = Path(model), np.random.default_rng(seed)
        self._inputs: dict[int, dict[str, Any]] = {}
        external = Path(model + ".data")  # where torch.onnx puts weights that are not in the file itself
        return {
            "load_ms": seconds * 1e3,
            "metadata": dict(self._session.get_modelmeta().custom_metadata_map),
            "file_bytes": self._path.stat().st_size + (external.stat().st_size if external.is_file() else 0),
        }

    def first(self, batch: int) -> dict[str, Any]:
        """The first run at this batch size, in milliseconds."""
        milliseconds = self._run(self._feed(batch))
        settle()  # the next worker is about to be loaded and timed
        return {"ms": milliseconds}

    def warm(self, batch: int, seconds: float) -> dict[str, Any]:
        """Run until two windows in a row agree, or for `seconds`."""
        feed, deadline = self._feed(batch), time.perf_counter() + seconds
        before, steady = None, False
        while not steady and (before is None or time.perf_counter() < deadline):
            median = statistics.median(self._timed(feed, WARM_WINDOW))
            steady = before is not None and abs(median / before - 1) < STEADY
            before = median
        settle()
        return {"steady": steady, "peak_bytes": peak_memory()}

    def burst(self, batch: int, seconds: float) -> dict[str, Any]:
        """Milliseconds of every counted iteration."""
        feed = self._feed(batch)
        gc.disable()
        try:
            self._timed(feed, seconds * UNCOUNTED)
            milliseconds = self._timed(feed, seconds)
        finally:
            gc.enable()
        settle()
        return {"ms": milliseconds}

    def _timed(self, feed: dict[str, Any], seconds: float) -> list[float]:
        """Milliseconds of at least one iteration, until `seconds` have passed."""
        milliseconds, end = [self._run(feed)], time.perf_counter() + seconds
        while time.perf_counter() < end:
            milliseconds.append(self._run(feed))
        return milliseconds

    def _run(self, feed: dict[str, Any]) -> float:
        begin = time.perf_counter_ns()
        self._session.run(None, feed)
        return (time.perf_counter_ns() - begin) / 1e6

    def _feed(self, batch: int) -> dict[str, Any]:
        """Random values: the time of dense layers does not depend on what they multiply."""
        if batch not in self._inputs:
            nodes = self._session.get_inputs()
            if len(nodes) != 1 or nodes[0].type not in TYPES:
                found = ", ".join(f"{node.name}: {node.type}" for node in nodes)
                raise BundleError(f"{self._path}: inputs are ({found}), expected one image as float or uint8")
            name, shape, kind = nodes[0].name, nodes[0].shape, TYPES[nodes[0].type]
            free = [size for size in shape[1:] if not isinstance(size, int)]
            if free or len(shape) < 2:
                raise BundleError(f"{self._path}: input {name} has shape {shape}, expected only the batch to be free")
            if isinstance(shape[0], int) and shape[0] != batch:
                raise BundleError(f"{self._path}: takes batches of {shape[0]} only, asked for {batch}")
            values = self._random.uniform(0, 255, (batch, *shape[1:])) if kind is np.uint8 else None
            values = self._random.standard_normal((batch, *shape[1:])) if values is None else values
            self._inputs[batch] = {name: np.ascontiguousarray(values.astype(kind))}
        return self._inputs[batch]


def settle(quiet: float = 0.01, limit: float = 1.0) -> None:
    """Return when this process has used no CPU for `quiet` seconds: onnxruntime's pool has stopped spinning."""
    deadline = time.perf_counter() + limit
    while time.perf_counter() < deadline:
        before = time.process_time()
        time.sleep(quiet)
        if time.process_time() - before < quiet / 20:
            return


def main() -> None:
    """Answer requests until standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then closes our standard input
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # nothing that native code prints may come between the answers
    worker = Worker()
    actions: dict[str, Callable[..., dict[str, Any]]] = {
        "load": worker.load,
        "first": worker.first,
        "warm": worker.warm,
        "burst": worker.burst,
    }
    for line in sys.stdin:
        request = json.loads(line)
        answer: dict[str, Any]
        try:
            answer = actions[request.pop("do")](**request)
        except CdlError as error:
            answer = {"error": str(error)}
        except Exception as error:  # noqa: BLE001  onnxruntime's share no base class; the parent shows the text
            answer = {"error": f"{request.get('model', '')} {type(error).__name__}: {' '.join(str(error).split())}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
