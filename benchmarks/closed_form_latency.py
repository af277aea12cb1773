"""Does a closed-form head cost time? ViT-S/16 at 224, its export against one with a learned head that reads the same.

    python benchmarks/closed_form_latency.py                    class+patches, frozen backbone, 100 classes
    python benchmarks/closed_form_latency.py --features class --method coda --rounds 200

The weights are random; neither of the two is faster for that. The closed-form file has the outputs `features` and
`distance`, the learned one has not. They run in turn, one image each, on one thread; shown is the median of the pairs'
ratios. Exits 1 where it is above `--bar`.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

from benchmarks.random_exports import CLASSES, MODEL, SIZE, Recipe, describe, random_backbone  # noqa: E402
from cdl_deploy.closed_form.mahalanobis import mahalanobis  # noqa: E402
from cdl_deploy.export.graph import ExportGraph  # noqa: E402
from cdl_deploy.export.learned_sums import LearnedSums  # noqa: E402
from cdl_deploy.export.onnx_file import export_onnx, save_onnx  # noqa: E402
from cdl_deploy.run.config import MethodConfig  # noqa: E402
from cdl_deploy.runtime.bundle import INPUT_NAME, encode_metadata, open_session  # noqa: E402
from cdl_deploy.training.heads.linear import LinearHead  # noqa: E402
from cdl_deploy.training.models.teacher_student import build_teacher_student  # noqa: E402

TASKS = 10


def export(path: Path, closed_form: bool, features: str, method: str) -> Path:
    """The student after ten tasks of ten classes."""
    head = "slda" if closed_form else "learned"
    config = MethodConfig(method=method, distill="none", head=head, features=features if closed_form else None)
    pair = build_teacher_student({"student": random_backbone(MODEL, 0)}, config, 0)
    learner = pair.student
    if not closed_form:
        learner.class_head = LinearHead(learner.backbone.width, "linear", tuple(features.split("+")))  # type: ignore[arg-type]
    for _ in range(TASKS):
        pair.begin_task(CLASSES, 0)
        learner.end_task()
    bundle = describe(pair, learner, Recipe(tasks=TASKS), path, MODEL, 0)
    distance = None
    if learner.closed_form is not None:
        own, random = learner.closed_form, np.random.default_rng(0)
        count = 2 * CLASSES * TASKS
        rows = random.normal(size=(count, own.width * len(own.features)))
        own.add(own.sums_of(rows, np.arange(count) % (CLASSES * TASKS), None))
        own.solve()
        distance = mahalanobis(own.statistics)
        sums = LearnedSums(own.statistics, own.map, own.rule, rows.shape[1], distance)
        bundle = replace(bundle, features=sums.features("0" * 64))
    with torch.no_grad():
        model = export_onnx(ExportGraph(pair, learner, pixels=True, distance=distance), bundle)
    save_onnx(model, path, encode_metadata(bundle))
    return path


def main() -> int:
    """Exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--features", default="class+patches")
    parser.add_argument("--method", default="none")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--bar", type=float, default=1.01)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        files = [
            export(Path(folder) / f"{name}.onnx", closed, asked.features, asked.method)
            for name, closed in (("learned", False), ("closed", True))
        ]
        sessions = [open_session(path, threads=1) for path in files]
    feed = {INPUT_NAME: np.zeros((1, SIZE, SIZE, 3), np.uint8)}
    times: list[list[float]] = []
    for number in range(asked.rounds + 3):
        pair = [0.0, 0.0]
        for index in (0, 1) if number % 2 else (1, 0):
            began = time.perf_counter()
            sessions[index].run(None, feed)
            pair[index] = 1e3 * (time.perf_counter() - began)
        times.append(pair)
    times = times[3:]
    ratio = median(closed / learned for learned, closed in times)
    found: dict[str, Any] = {
        "features": asked.features,
        "method": asked.method,
        "learned_ms": round(median(learned for learned, _ in times), 2),
        "closed_form_ms": round(median(closed for _, closed in times), 2),
        "ratio": round(ratio, 4),
        "rounds": asked.rounds,
    }
    print(json.dumps(found))
    return int(ratio > asked.bar)


if __name__ == "__main__":
    sys.exit(main())
