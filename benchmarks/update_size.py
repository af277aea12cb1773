"""How large is the update that one more task of 10 classes makes, and what do making and applying it cost?

    python benchmarks/update_size.py                                ViT-S/16 at 224, CODA + KDP, 1 → 2 and 10 → 11 tasks
    python benchmarks/update_size.py --tasks 1 --query block:4 --kinds fp32 --level 19
    python benchmarks/update_size.py --models v1/student.onnx v2/student.onnx

Weights are random, so nothing compresses by luck: a task's new rows are drawn, and what all tasks share (KD token and
KD prompts) moves, as in training. Each update is made and applied in a process of its own, which reports time (median
of `--repeat`) and by how much its peak of memory rose; its result is compared with the full export. Exits 1
where an update is larger than `--bar` percent of the fp32 model; its share of an int8 model is shown beside that.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

from cdl_deploy.process_memory import peak_memory  # noqa: E402  found once the line above has run
from cdl_deploy.update.patch import LEVEL, apply_updates, make_update  # noqa: E402

MODEL = "vit_small_patch16_224"
CLASSES = 10


def export_tasks(folder: Path, tasks: int, query: str, model: str, kind: str) -> Path:
    """The student after so many tasks of 10 classes."""
    from benchmarks.random_exports import Recipe, export_student

    path = folder / f"tasks-{tasks}.{kind}.onnx"
    if not path.exists():
        print(f"exporting {path.name}", file=sys.stderr)
        export_student(Recipe(query=query, tasks=tasks, quantise=None if kind == "fp32" else kind), path, model, seed=0)
    return path


def measured(action: str, *arguments: object) -> dict[str, float]:
    """Run this script's `action` in a fresh process: its seconds and its peak of memory in bytes."""
    command = [sys.executable, __file__, "--action", action, *map(str, arguments)]
    report: dict[str, float] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return report


def act(action: str, arguments: list[str]) -> None:
    """The inside of `measured`."""
    idle = peak_memory() or 0
    began = time.perf_counter()
    first, second, third = map(Path, arguments[:3])
    if action == "make":
        make_update(first, second, third, int(arguments[3]))
    else:
        apply_updates(first, [second], third)
    seconds = time.perf_counter() - began
    print(json.dumps({"seconds": seconds, "peak": (peak_memory() or 0) - idle}))


def measure(old: Path, new: Path, folder: Path, level: int, repeat: int) -> dict[str, Any]:
    """Size, time and memory of the update from `old` to `new`."""
    update, result = folder / "student.cdlup", folder / "result.onnx"
    made = [measured("make", old, new, update, level) for _ in range(repeat)]
    applied = [measured("apply", old, update, result) for _ in range(repeat)]
    if result.read_bytes() != new.read_bytes():
        raise SystemExit("the result is not the full export")
    return {
        "old": old.name,
        "new": new.name,
        "model_bytes": new.stat().st_size,
        "update_bytes": update.stat().st_size,
        **{f"{name}_seconds": statistics.median(r["seconds"] for r in rows) for name, rows in pairs(made, applied)},
        **{f"{name}_peak_bytes": max(r["peak"] for r in rows) for name, rows in pairs(made, applied)},
    }


def pairs(made: list[dict[str, float]], applied: list[dict[str, float]]) -> list[tuple[str, list[dict[str, float]]]]:
    return [("make", made), ("apply", applied)]


def table(rows: list[dict[str, Any]], bar: float) -> str:
    """Markdown."""
    lines = [
        "| from → to | model, MB | update, MB | of the fp32 model | of this model | make, s | apply, s "
        "| peak memory making, MB | applying, MB |",
        "|" + "---|" * 9,
    ]
    for row in rows:
        share = 100 * row["update_bytes"] / row["fp32_bytes"]
        lines.append(
            f"| {row['old']} → {row['new']} | {row['model_bytes'] / 1e6:.1f} | {row['update_bytes'] / 1e6:.2f} | "
            f"{share:.2f} % (bar {bar:g} %: {'met' if share <= bar else 'MISSED'}) | "
            f"{100 * row['update_bytes'] / row['model_bytes']:.2f} % | {row['make_seconds']:.2f} | "
            f"{row['apply_seconds']:.2f} | {row['make_peak_bytes'] / 1e6:.0f} | {row['apply_peak_bytes'] / 1e6:.0f} |"
        )
    return "\n".join(lines)


def main() -> int:
    """Exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", default="1,10", help="measure the step from each of these numbers to the next")
    parser.add_argument("--query", default="full")
    parser.add_argument("--kinds", default="fp32,int8,int8-dynamic", help="of models")
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--level", type=int, default=LEVEL, help="of zstd")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--bar", type=float, default=2.5, help="percent")
    parser.add_argument("--models", nargs=2, type=Path, metavar=("OLD", "NEW"), help="measure these instead")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--action", choices=("make", "apply"), help=argparse.SUPPRESS)
    options, rest = parser.parse_known_args()
    if options.action:
        act(options.action, rest)
        return 0
    if rest:
        parser.error(f"unknown: {' '.join(rest)}")
    with tempfile.TemporaryDirectory(prefix="cdl-update-size-") as name:
        folder = Path(name)
        if options.models:
            steps = [(*options.models, options.models[1])]
        else:

            def export(tasks: int, kind: str) -> Path:
                return export_tasks(folder, tasks, options.query, options.model, kind)

            steps = [
                (export(begin, kind), export(begin + 1, kind), export(begin + 1, "fp32"))
                for begin in map(int, options.tasks.split(","))
                for kind in options.kinds.split(",")
            ]
        rows = [
            {**measure(old, new, folder, options.level, options.repeat), "fp32_bytes": fp32.stat().st_size}
            for old, new, fp32 in steps
        ]
    print(table(rows, options.bar))
    print(
        f"\n{options.model}, CODA + KDP, query {options.query}, {CLASSES} classes a task, random weights, zstd level "
        f"{options.level}; {platform.machine()}, Python {platform.python_version()}, torch {version('torch')}"
    )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    return int(any(100 * row["update_bytes"] > options.bar * row["fp32_bytes"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
