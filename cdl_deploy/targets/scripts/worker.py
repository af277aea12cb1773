"""The process in which one model runs: started for `cdl_deploy.bench`, and by the scripts of this folder in the
environments of other runtimes; Python's own library is all it takes. One JSON object a line in and out.

    {"do": "prepare", "job": {…}}                           → {"bytes_before"}: everything is imported, and converted
    {"do": "load"}                                          → {"load_ms"}
    {"do": "inspect", "batch": B}                           → what there is to know apart from times
    {"do": "first", "batch": B}                             → {"ms"}: the first run at this batch size
    {"do": "warm", "batch": B, "streams": N, "seconds": S}  → {"steady", "peak_bytes"}
    {"do": "burst", "batch": B, "streams": N, "seconds": S} → {"ms": [one number a run]}
    {"do": "answer", "feed": FILE, "out": FILE}             → {}: what the model makes of given images
    {"do": "usage"}                                         → {"cpu_seconds", "switched"}

An error is `{"error": text}`; the process ends when its standard input does. A reply follows a MARK: some libraries
print while they are imported.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import statistics
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

MARK = "\x1e"
"""Record separator, as in RFC 7464."""
Run = Callable[[], object]
MakeRunner = Callable[[dict[str, Any]], Any]
"""From a job to what has `load`, `run_of` and `inspect` of `cdl_deploy.bench.runners.Runner`, and perhaps `answer`."""

STEADY = 0.05
"""Two windows of warm-up in a row agree when their medians differ by less than this share."""
WARM_WINDOW = 0.1
"""Seconds of one window of warm-up (at least one run)."""
UNCOUNTED = 0.2
"""Share of a burst's time that runs before its counted part: another process has just used the caches."""
LONG_MS = 250.0
"""A run of this length refills the caches by itself: nothing needs to run uncounted before it."""


class Worker:
    """One model and the inputs it is measured with."""

    def __init__(self, make_runner: MakeRunner, peak_memory: Callable[[], int | None]) -> None:
        self._make_runner, self._peak_memory = make_runner, peak_memory

    def prepare(self, job: dict[str, Any]) -> dict[str, Any]:
        """Import what the job takes."""
        self._runs: dict[int, Run] = {}
        self._last_ms: dict[tuple[int, int], float] = {}
        self._runner = self._make_runner(job)
        return {"bytes_before": self._peak_memory()}

    def load(self) -> dict[str, Any]:
        """Make the model ready. The time covers reading the file and preparing the session, not imports."""
        begin = time.perf_counter()
        self._runner.load()
        return {"load_ms": (time.perf_counter() - begin) * 1e3}

    def inspect(self, batch: int) -> dict[str, Any]:
        """What the runner knows about the model."""
        found: dict[str, Any] = self._runner.inspect(batch)
        return found

    def first(self, batch: int) -> dict[str, Any]:
        """The first run at this batch size, in milliseconds."""
        milliseconds = _run(self._run_of(batch))
        wait_until_idle()  # the next worker is about to be loaded and timed
        return {"ms": milliseconds}

    def warm(self, batch: int, streams: int, seconds: float) -> dict[str, Any]:
        """Run until two windows in a row agree, or for `seconds`."""
        run, deadline = self._run_of(batch), time.perf_counter() + seconds
        before, steady = None, False
        while not steady and (before is None or time.perf_counter() < deadline):
            median = statistics.median(timed(run, WARM_WINDOW, streams))
            steady = before is not None and abs(median / before - 1) < STEADY
            before = median
        self._last_ms[batch, streams] = before or 0.0
        wait_until_idle()
        return {"steady": steady, "peak_bytes": self._peak_memory()}

    def burst(self, batch: int, streams: int, seconds: float) -> dict[str, Any]:
        """Milliseconds of every counted run."""
        run = self._run_of(batch)
        gc.disable()
        try:
            if self._last_ms.get((batch, streams), 0.0) < LONG_MS:
                timed(run, seconds * UNCOUNTED, streams)
            milliseconds = timed(run, seconds, streams)
        finally:
            gc.enable()
        wait_until_idle()
        return {"ms": milliseconds}

    def usage(self) -> dict[str, Any]:
        """Processor time of this process so far, and how often it was taken from the processor for another one."""
        return {"cpu_seconds": time.process_time(), "switched": switched_away()}

    def answer(self, feed: str, out: str) -> dict[str, Any]:
        """Logits of images: from a file into a file (.npy)."""
        self._runner.answer(feed, out)
        return {}

    def _run_of(self, batch: int) -> Run:
        if batch not in self._runs:
            self._runs[batch] = self._runner.run_of(batch)
        return self._runs[batch]


def timed(run: Run, seconds: float, streams: int) -> list[float]:
    """Milliseconds of each run until `seconds` have passed, at least one in each of `streams` threads at once."""
    if streams == 1:
        return _loop(run, time.perf_counter() + seconds)
    found: list[list[float]] = [[] for _ in range(streams)]
    failures: list[BaseException] = []
    together = threading.Barrier(streams)

    def stream(number: int) -> None:
        try:
            together.wait()
            found[number] = _loop(run, time.perf_counter() + seconds)
        except BaseException as error:  # noqa: BLE001  raised again below, in the thread that replies
            failures.append(error)

    threads = [threading.Thread(target=stream, args=(number,)) for number in range(streams)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return [milliseconds for times in found for milliseconds in times]


def _loop(run: Run, end: float) -> list[float]:
    milliseconds = [_run(run)]
    while time.perf_counter() < end:
        milliseconds.append(_run(run))
    return milliseconds


def _run(run: Run) -> float:
    begin = time.perf_counter_ns()
    run()
    return (time.perf_counter_ns() - begin) / 1e6


def wait_until_idle(quiet: float = 0.01, limit: float = 1.0) -> None:
    """Return when this process has used no CPU twice for `quiet` seconds: onnxruntime's pool has stopped spinning.

    Once is not enough on a loaded machine, where a thread that spins may wait for its turn that long.
    """
    deadline, still = time.perf_counter() + limit, 0
    while time.perf_counter() < deadline and still < 2:
        before = time.process_time()
        time.sleep(quiet)
        still = still + 1 if time.process_time() - before < quiet / 20 else 0


def switched_away() -> int | None:
    """How often the system has taken the processor from this process to give it to another one; None on Windows."""
    try:
        import resource
    except ImportError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def serve(
    make_runner: MakeRunner, peak_memory: Callable[[], int | None], known: type[Exception] | tuple[()] = ()
) -> None:
    """Reply to requests until standard input ends. `known`: errors whose text is for the user as it is."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then closes our standard input
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # nothing that native code prints may come between the replies
    worker = Worker(make_runner, peak_memory)
    actions: dict[str, Callable[..., dict[str, Any]]] = {
        "prepare": worker.prepare,
        "load": worker.load,
        "inspect": worker.inspect,
        "first": worker.first,
        "warm": worker.warm,
        "burst": worker.burst,
        "answer": worker.answer,
        "usage": worker.usage,
    }
    for line in sys.stdin:
        request = json.loads(line)
        reply: dict[str, Any]
        try:
            reply = actions[request.pop("do")](**request)
        except known as error:
            reply = {"error": str(error)}
        except Exception as error:  # noqa: BLE001  onnxruntime's share no base class; the parent shows the text
            reply = {"error": f"{type(error).__name__}: {' '.join(str(error).split())}", "unexpected": True}
        print(MARK + json.dumps(reply), file=replies, flush=True)
