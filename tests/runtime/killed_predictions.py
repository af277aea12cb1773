"""Predictions into a file, killed with SIGKILL again and again and resumed, against the file of an undisturbed run.

    python -m tests.runtime.killed_predictions MODEL PHOTOS --runs 200 --seed 0

Every run is killed several times: at a random moment, or in the middle of a write, with a random part of it written.
The processes are forked from this one, which has opened the model and started no thread. Exits 1 where a row is lost,
repeated or changed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from io import FileIO
from pathlib import Path

from cdl_deploy import Classifier
from cdl_deploy.data.paths import expand_paths
from cdl_deploy.rows import file as row_file
from cdl_deploy.rows.file import RowFile
from cdl_deploy.runtime.predict import predict_rows

ROUNDS = 25
"""How often the photographs are gone through: enough rows for many writes."""


def work(classifier: Classifier, photos: str, out: Path, resume: bool) -> None:
    with RowFile(out, out.suffix[1:], 2, resume) as file:
        paths = file.remaining(expand_paths([photos] * ROUNDS), classifier)
        for row in predict_rows(classifier, paths, batch_size=3, top_k=2, workers=2):
            file.write(row)


class DyingFile(FileIO):
    """Kills its process in its write with a certain number, when a part of that is written."""

    left, share = 0, 0.0

    def write(self, data: object, /) -> int:
        self.left -= 1
        if self.left == 0:
            view = memoryview(data)  # type: ignore[arg-type]
            super().write(view[: int(len(view) * self.share)])
            os.kill(os.getpid(), signal.SIGKILL)
        return super().write(data)  # type: ignore[arg-type]


def dying(number: int, share: float) -> None:
    DyingFile.left, DyingFile.share = number, share
    row_file.FileIO = DyingFile  # type: ignore[attr-defined]


def killed(action: Callable[[], None], seconds: float | None) -> bool:
    """Do `action` in a child, for at most so long before it is killed; whether it died of SIGKILL."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            action()
            code = 0
        finally:
            os._exit(code)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    if status and not os.WIFSIGNALED(status):
        raise SystemExit("a run failed by itself: see above")
    return os.WIFSIGNALED(status)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("photos")
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    row_file.FLUSH_BYTES = 300
    classifier = Classifier(arguments.model, threads=1)
    kills = differing = 0
    with tempfile.TemporaryDirectory() as folder:
        for number in range(arguments.runs):
            kind = ("jsonl", "csv")[number % 2]
            whole, out = Path(folder) / f"whole.{kind}", Path(folder) / f"{number}.{kind}"
            seconds = time.perf_counter()
            if not whole.exists():
                assert not killed(lambda whole=whole: work(classifier, arguments.photos, whole, False), None)  # type: ignore[misc]
                usual = time.perf_counter() - seconds
            for attempt in range(3):
                if rng.random() < 0.5:
                    limit, write, share = rng.uniform(0, usual), 0, 0.0
                else:
                    limit, write, share = None, rng.randint(1, 20), rng.random()

                def action(out: Path = out, attempt: int = attempt, write: int = write, share: float = share) -> None:
                    dying(write, share)
                    work(classifier, arguments.photos, out, resume=attempt > 0)

                kills += killed(action, limit)
            assert not killed(lambda out=out: work(classifier, arguments.photos, out, True), None)  # type: ignore[misc]
            differing += out.read_bytes() != whole.read_bytes()
        leftovers = sorted(path.name for path in Path(folder).glob("*.part"))
    print(json.dumps({"runs": arguments.runs, "kills": kills, "differing": differing, "leftovers": leftovers}))
    return int(differing > 0 or bool(leftovers))


if __name__ == "__main__":
    sys.exit(main())
