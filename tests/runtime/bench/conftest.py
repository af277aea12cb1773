"""Reports made up for what reads them: headline, notes, table, pictures, baseline, command line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cdl_deploy.bench import (
    BenchOptions,
    BenchReport,
    Comparison,
    Machine,
    Measurement,
    ModelRecord,
    Watch,
)
from cdl_deploy.bench.models import find_models
from cdl_deploy.bench.rounds import bench_latency
from cdl_deploy.runtime.bundle import encode_metadata

QUIET = Machine("cpu", 2, 2, "Linux", "3.11", "1.32", {"numpy": "2.0"})
CALM = Watch(0.01, 0.0, 0.1, 0, 3.0, (0.5,) * 30)


def made_up_record(name: str, size: int, accuracy: float | None, **changes: Any) -> ModelRecord:
    values: dict[str, Any] = {
        "name": name, "path": f"{name}.onnx", "kind": "onnx", "role": name if name in ("student", "teacher") else None,
        "file_bytes": size, "sha256": None, "input": "image", "parameters": 1_000_000, "macs": 2_000_000_000,
        "uncounted": (), "accuracy": accuracy, "classes": 10, "load_ms": 1.0, "first_inference_ms": 1.0,
        "loads_ms": (1.0,), "firsts_ms": (1.0,), "bytes_before": 1,
    }  # fmt: skip
    return ModelRecord(**values | changes)


def made_up(model: str, p50: float, batch: int = 1, **changes: Any) -> Measurement:
    values: dict[str, Any] = {
        "model": model, "stage": "graph", "threads": 2, "streams": 1, "batch": batch, "samples": 500, "rounds": 20,
        "p50_ms": p50, "low_ms": p50, "high_ms": p50, "within_percent": 0.5, "precise": True, "p90_ms": p50,
        "p95_ms": p50, "p99_ms": p50, "mean_ms": p50, "images_per_second": batch / p50 * 1000, "drift_percent": 0.0,
        "spread_percent": 1.0, "steady": True, "peak_bytes": None, "round_medians_ms": (p50,) * 20,
        "quantiles_ms": tuple(p50 * (1 + percent / 500) for percent in range(101)),
    }  # fmt: skip
    return Measurement(**values | changes)


def made_up_report(verdict: str = "faster", speedup: float = 3.096, **changes: Any) -> BenchReport:
    models = (made_up_record("student", 4_100_000, 91.0), made_up_record("teacher", 21_200_000, 94.2))
    comparison = Comparison("student", "teacher", "graph", 2, 1, 1, speedup, 3.0, 3.2, verdict)
    values: dict[str, Any] = {
        "machine": QUIET, "watch": CALM, "options": BenchOptions(batches=(1,), threads=(2,)), "seconds": 1.0,
        "models": models, "measurements": (made_up("student", 0.52), made_up("teacher", 1.61)),
        "comparisons": (comparison,), "notes": (), "created": "2026-01-02T03:04:05+00:00",
    }  # fmt: skip
    return replace(BenchReport(**values), **changes)


@pytest.fixture(scope="session")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[BenchReport, list[Any]]:
    """A real report of two tiny models at two batch sizes, and all that was told meanwhile."""
    from tests.runtime.conftest import build_model, example_bundle, save_model

    folder: Path = tmp_path_factory.mktemp("models")
    for role, layers in (("student", 0), ("teacher", 40)):
        path = folder / f"{role}.onnx"
        save_model(build_model(extra_layers=layers), path, encode_metadata(example_bundle(path, role=role)))
    heard: list[Any] = []
    options = BenchOptions(batches=(1, 2), threads=(1,), time_limit=2, precision=50)
    return bench_latency(find_models([folder]), options, heard.append), heard
