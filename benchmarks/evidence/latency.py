"""How long the exported files take: one `cdl bench-latency` over all of them, when the machine is quiet."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.evidence.measure import Place, about_here
from benchmarks.evidence.rows import all_rows
from cdl_deploy.files import write_json


def files(place: Place, seed: int) -> dict[str, Path]:
    """Every exported file of a seed by its name in the record; teachers last, since all are compared with the last."""
    found: dict[str, Path] = {}
    teachers: dict[str, Path] = {}
    for row in all_rows(place.budget):
        for head in row.heads:
            name = f"{row.name}-{head}"
            run = f"{row.name}-{seed}" if head == row.own_head else f"{name}-{seed}"
            for suffix, file in (("", f"{run}.files/student.onnx"), (".int8", f"{run}.small/student.int8.onnx")):
                if (place.runs / file).exists():
                    found[f"{name}{suffix}"] = place.runs / file
            if (place.runs / f"{run}.small/teacher.onnx").exists():
                teachers[f"{name}.teacher"] = place.runs / f"{run}.small/teacher.onnx"
    return {**found, **teachers}


def measure_latency(place: Place, seconds: float, seed: int = 0, batch: int = 1) -> None:
    """Into latency.json of the budget, or beside it where that is of another processor."""
    models = files(place, seed)
    if not models:
        raise SystemExit(f"no exported files in {place.runs}: run first")
    with tempfile.TemporaryDirectory() as temporary:
        copies = [str(shutil.copy(path, Path(temporary) / f"{name}.onnx")) for name, path in models.items()]
        command = [
            sys.executable, "-m", "cdl_deploy", "bench-latency", *copies, "--batch", str(batch), "--threads", "1",
            "--time-limit", str(seconds), "--json",
        ]  # fmt: skip
        report = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    figures = {
        item["model"]: {key: item[key] for key in ("p50_ms", "low_ms", "high_ms", "p99_ms")}
        for item in report["measurements"]
    }
    machine, here = report["machine"], about_here()
    about = f"{here['processor']}, batch {batch}, one thread"
    known = place.record("latency")
    slug = re.sub(r"[^a-z0-9]+", "-", here["processor"].lower()).strip("-")
    other = known.exists() and json.loads(known.read_text())["about"] != about
    write_json(
        place.record(f"latency-{slug}") if other else known,
        {"about": about, "seed": seed, "models": figures, "notes": report["notes"], "machine": machine, **here},
    )
