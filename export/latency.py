"""How long an exported file takes, roughly: for the export report; `cdl bench-latency` measures."""

from __future__ import annotations

import time
from pathlib import Path
from statistics import median

import numpy as np

from cdl_deploy.data.preprocessing import Preprocessing
from cdl_deploy.runtime.bundle import INPUT_NAME
from cdl_deploy.runtime.session import open_session
from cdl_deploy.runtime.session_input import input_shape

RUNS, SECONDS = 20, 2.0
"""At most so many runs, and no more once so many seconds have passed."""


def latency_ms(path: Path, preprocessing: Preprocessing) -> float:
    """Median milliseconds of one image, as the runtime feeds it, on all cores of this machine.

    Of a file that takes several images in one run, their share of it.
    """
    session = open_session(path)
    batch, size = input_shape(session, preprocessing)
    if preprocessing.input == "image":
        feed = np.zeros((batch or 1, *(size or (preprocessing.resize,) * 2), 3), np.uint8)
    else:
        feed = np.zeros((batch or 1, 3, preprocessing.height, preprocessing.width), np.float32)
    session.run(None, {INPUT_NAME: feed})
    times: list[float] = []
    while len(times) < RUNS and sum(times) < SECONDS:
        began = time.perf_counter()
        session.run(None, {INPUT_NAME: feed})
        times.append(time.perf_counter() - began)
    return 1e3 * median(times) / len(feed)
