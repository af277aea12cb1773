"""How large is the update that one more task of 10 classes makes, and what do making and applying it cost?

    python benchmarks/update_size.py                                ViT-S/16 at 224, CODA + KDP, 1 → 2 and 10 → 11 tasks
    python benchmarks/update_size.py --tasks 1 --query block:4 --level 19
    python benchmarks/update_size.py --models v1/student.onnx v2/student.onnx

Weights are random, so nothing compresses by luck: a task's new rows are drawn, and what all tasks share (KD token and
KD prompts) moves, as in training. Each update is made and applied in a process of its own, which reports time (median
of `--repeat`) and by how much its peak of memory rose; its result is compared with the full export. Exits 1
where an update is larger than `--bar` percent of the fp32 model.
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
from typing import Any, cast

from cdl_deploy.bench.machine import peak_memory
from cdl_deploy.update import LEVEL, apply_updates, make_update

MODEL = "vit_small_patch16_224"
CLASSES = 10


def export_tasks(folder: Path, numbers: list[int], query: str, model: str) -> dict[int, Path]:
    """Students after so many tasks of 10 classes, exported as `cdl export` does, up to the metadata of a real run."""
    import timm
    import torch

    from cdl_deploy.export.graph import ExportGraph
    from cdl_deploy.export.onnx_file import export_core, save_onnx
    from cdl_deploy.training.config import MethodConfig
    from cdl_deploy.training.models.backbone import Backbone
    from cdl_deploy.training.models.pair import build_pair

    torch.manual_seed(0)
    vit = cast(Any, timm.create_model(model, pretrained=False, num_classes=0))
    backbone = Backbone(vit, (0.5,) * 3, (0.5,) * 3)
    for parameter in backbone.parameters():
        parameter.data.add_(0.02 * torch.randn_like(parameter))  # biases and scales start as zeros and ones
    pair = build_pair({"student": backbone.requires_grad_(False)}, MethodConfig(query=query), seed=0)
    learner, size = pair.student, vit.patch_embed.img_size[0]
    paths = {}
    for number in range(1, max(numbers) + 1):
        pair.begin_task(CLASSES, seed=0)
        for parameter in learner.parameters():
            if parameter.requires_grad:
                parameter.data.add_(0.02 * torch.randn_like(parameter))
        learner.end_task()
        if number in numbers:
            print(f"exporting after {number} tasks", file=sys.stderr)
            graph = export_core(ExportGraph(pair, learner), torch.zeros(2, 3, size, size), "image")
            paths[number] = folder / f"tasks-{number}.onnx"
            names = [f"a class with a name {i}" for i in range(CLASSES * number)]
            save_onnx(graph, paths[number], {"cdl.classes": json.dumps(names)})
    return paths


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
        "| from → to | model, MB | update, MB | share | make, s | apply, s | peak memory making, MB | applying, MB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        share = 100 * row["update_bytes"] / row["model_bytes"]
        lines.append(
            f"| {row['old']} → {row['new']} | {row['model_bytes'] / 1e6:.1f} | {row['update_bytes'] / 1e6:.2f} | "
            f"{share:.2f} % (bar {bar:g} %: {'met' if share <= bar else 'MISSED'}) | {row['make_seconds']:.2f} | "
            f"{row['apply_seconds']:.2f} | {row['make_peak_bytes'] / 1e6:.0f} | {row['apply_peak_bytes'] / 1e6:.0f} |"
        )
    return "\n".join(lines)


def main() -> int:
    """Exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", default="1,10", help="measure the step from each of these numbers to the next")
    parser.add_argument("--query", default="full")
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
            steps = [tuple(options.models)]
        else:
            begins = [int(text) for text in options.tasks.split(",")]
            paths = export_tasks(folder, sorted({n for b in begins for n in (b, b + 1)}), options.query, options.model)
            steps = [(paths[begin], paths[begin + 1]) for begin in begins]
        rows = [measure(old, new, folder, options.level, options.repeat) for old, new in steps]
    print(table(rows, options.bar))
    print(
        f"\n{options.model}, CODA + KDP, query {options.query}, {CLASSES} classes a task, random weights, zstd level "
        f"{options.level}; {platform.machine()}, Python {platform.python_version()}, torch {version('torch')}"
    )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    return int(any(100 * row["update_bytes"] > options.bar * row["model_bytes"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
