"""Runs of a model that end: when they are told to, and when they take longer than any classifier of images does.

A graph may hold a loop without an end, and Python cannot interrupt onnxruntime; its `terminate` flag, which it looks at
between two operators, can.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnxruntime

from cdl_deploy.errors import BundleError
from cdl_deploy.typed_json import short

SECONDS_AN_IMAGE = 120.0
"""Longer than a large model takes on the slowest board."""
_LOOK_SECONDS = 0.5

_under_way: dict[int, tuple[float, onnxruntime.RunOptions]] = {}
"""When each run has to be over, and how to end it."""
_lock = threading.Lock()
_watch: threading.Thread | None = None


def run_graph(
    path: Path, session: onnxruntime.InferenceSession, names: Sequence[str], feed: Mapping[str, Any], images: int
) -> list[Any]:
    """The outputs `names` for a batch of `images`. `BundleError` where the graph fails, or does not come to an end."""
    limit, options = SECONDS_AN_IMAGE * images, onnxruntime.RunOptions()
    began = time.monotonic()
    _begin(options, began + limit)
    try:
        found: list[Any] = session.run(list(names), dict(feed), options)
    except Exception as error:  # onnxruntime's exceptions share no base class
        if options.terminate:
            took = time.monotonic() - began
            why = f"stopped after {took:.0f} s: at most {limit:.0f} s are given to {images} images"
        elif isinstance(error, MemoryError) or re.search("allocate memory|bad_alloc", str(error)):
            why = "it needs more memory than there is"
        else:
            why = short(str(error))
        fed = ", ".join(f"{value.dtype} {list(value.shape)}" for value in feed.values())
        raise BundleError(f"{path} cannot be run on {fed}: {why}") from error
    finally:
        _under_way.pop(id(options), None)
    return found


def stop_runs() -> None:
    """End every run of this process at the operator that it has reached."""
    for _, options in list(_under_way.values()):
        options.terminate = True


def _begin(options: onnxruntime.RunOptions, until: float) -> None:
    global _watch
    with _lock:
        _under_way[id(options)] = until, options
        if _watch is None:
            _watch = threading.Thread(target=_look, name="cdl-watch", daemon=True)
            _watch.start()


def _look() -> None:
    """Until nothing has run for a moment: a thread that is left over would trouble a program that forks."""
    global _watch
    while True:
        time.sleep(_LOOK_SECONDS)
        now = time.monotonic()
        for until, options in list(_under_way.values()):
            if now > until:
                options.terminate = True
        with _lock:
            if not _under_way:
                _watch = None
                return
