"""What the students of Split CIFAR-100 cost as exported: latency, size, size of an update, and accuracy once more.

    python benchmarks/split_cifar_cost.py --data data/cifar100 --runs runs --seed 0

Takes the runs that split_cifar.py and split_cifar_variants.py left in the folder. Every model is exported as it is and
as it was a task earlier, which gives the size of the update between them; the ONNX file is tested on all test images by
`cdl evaluate`; and one `cdl bench-latency` measures all of them against the teacher. Writes docs/results/cost.json, for
split_cifar_report.py.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

from benchmarks.split_cifar import RESULTS, commit  # noqa: E402
from cdl_deploy.export import ExportOptions, Shrink, export_run  # noqa: E402
from cdl_deploy.run.record import read_record  # noqa: E402
from cdl_deploy.update.patch import make_update  # noqa: E402


@dataclass(frozen=True)
class Model:
    """One file to measure."""

    name: str
    run: str
    """Run directory, without the seed."""
    file: str = "student.onnx"
    select: str = "in-graph"

    @property
    def options(self) -> ExportOptions:
        """How it is exported. What int8 loses is shown, so nothing is kept from it."""
        shrink = Shrink(("int8",), max_drop=100) if "int8" in self.file else Shrink()
        return ExportOptions(teacher=self.file == "teacher.onnx", select=self.select, shrink=shrink, latency=False)


MODELS = (
    Model("kdp", "coda-kdp"),
    Model("kdp-int8", "coda-kdp", "student.int8.onnx"),
    Model("kdp-folded", "coda-kdp", select="task:10"),
    Model("kdp-block-1", "block-1"),
    Model("kdp-block-1-int8", "block-1", "student.int8.onnx"),
    Model("kdp-block-4", "block-4"),
    Model("kdp-block-4-int8", "block-4", "student.int8.onnx"),
    Model("kd", "coda-kd"),
    Model("none", "coda-none"),
    Model("l2p-kdp", "l2p-kdp"),
    Model("teacher", "coda-kdp", "teacher.onnx"),
)
"""The teacher comes last: all are compared with it."""


def cdl(*arguments: object) -> Any:
    """What one command of the tool says with --json."""
    command = [sys.executable, "-m", "cdl_deploy", *map(str, arguments), "--json"]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def export(model: Model, run: Path, folder: Path) -> tuple[Path, int | None]:
    """The model's file, and the bytes of the update that makes it from what it was a task earlier.

    A file with the selection folded away has none: it is made for one place, not kept up to date.
    """
    out, path = folder / f"{model.name}.out", folder / f"{model.name}.onnx"
    export_run(run, out, model.options)
    shutil.copy(out / model.file, path)
    if model.select != "in-graph":
        return path, None
    older, tasks = folder / f"{model.name}.older", len(read_record(run).tasks)
    export_run(run, older, model.options, after=tasks - 1)
    update = make_update(older / model.file, path, folder / f"{model.name}.cdlup")
    return path, update.path.stat().st_size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", default="1,32")
    parser.add_argument("--time-limit", type=float, default=240.0)
    given = parser.parse_args()
    rows: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder, paths = Path(temporary), []
        for model in MODELS:
            run = given.runs / f"{model.run}-{given.seed}"
            if not run.exists():
                print(f"{model.name}: {run} is not there, left out", file=sys.stderr)
                continue
            path, update = export(model, run, folder)
            evaluation = cdl("evaluate", path, "--data", given.data)
            rows[model.name] = {
                "run": run.name,
                "file": model.file,
                "select": model.select,
                "accuracy": evaluation["accuracy"],
                "images": evaluation["images"],
                "bytes": path.stat().st_size,
                "update_bytes": update,
            }
            paths.append(path)
            print(f"{model.name}: {rows[model.name]}", file=sys.stderr, flush=True)
        latency = cdl("bench-latency", *paths, "--batch", given.batch, "--time-limit", given.time_limit)
    for item in latency["measurements"]:
        rows[item["model"]].setdefault("latency", {})[str(item["batch"])] = {
            name: item[name] for name in ("p50_ms", "low_ms", "high_ms", "p99_ms", "images_per_second")
        }
    for item in latency["comparisons"]:
        rows[item["model"]]["latency"][str(item["batch"])]["speedup"] = item["speedup"]
    taught = read_record(given.runs / rows["teacher"]["run"])
    record = {
        "seed": given.seed,
        "commit": commit(),
        "backbones": {role: info.sha256 for role, info in taught.backbones.items()},
        "machine": latency["machine"],
        "threads": sorted({item["threads"] for item in latency["measurements"]}),
        "notes": latency["notes"],
        "models": rows,
    }
    (RESULTS / "cost.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
