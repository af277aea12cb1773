"""What the scripts of this folder share. They run in the environment of a runtime: numpy, and nothing of this package.

    python run_NAME.py MODEL.onnx FEED.npz OUT.npz FOLDER

FEED has `image` [n, …] and `batch`; into OUT go `logits` [n, classes], `version`, and `ms`, the median of one run.
FOLDER takes what the runtime's converter writes.
"""

import statistics
import sys
import time
from pathlib import Path

import numpy as np

RUNS, SECONDS = 20, 2.0
"""At most so many runs are timed, and no more once so many seconds have passed."""


def main(load):
    """`load(model, folder, first)` → `run(batch)` → logits, and the runtime's version; `first` is the first batch."""
    model, feed, out, folder = map(Path, sys.argv[1:5])
    with np.load(feed) as arrays:
        images, batch = arrays["image"], int(arrays["batch"])
    first = images[:batch]
    run, version = load(model, folder, first)
    logits = np.concatenate([np.array(run(images[at : at + batch])) for at in range(0, len(images), batch)])
    times = []
    while len(times) < RUNS and sum(times) < SECONDS:
        began = time.perf_counter()
        run(first)
        times.append(time.perf_counter() - began)
    np.savez(out, logits=logits, version=version, ms=1e3 * statistics.median(times))
