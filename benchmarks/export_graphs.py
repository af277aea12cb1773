"""Is the exported graph as fast and as small as it can be? Every form of a student against a plain timm ViT.

    python benchmarks/export_graphs.py --work /tmp/graphs --build-only      # about 5 minutes, once
    python benchmarks/export_graphs.py --work /tmp/graphs                   # every graph, batch 1 and 8
    python benchmarks/export_graphs.py --work /tmp/graphs --graphs full,block4 --seconds 60 --json found.json
    python benchmarks/export_graphs.py --graphs dinov3-full,dinov3-task,dinov3-block4,dinov3-block4-int8
    python benchmarks/export_graphs.py cpu --work /tmp/graphs               # where other programs cannot be kept away
    python benchmarks/export_graphs.py profile --work /tmp/graphs --graphs block4-int8
    python benchmarks/export_graphs.py photographs --work /tmp/graphs
    python benchmarks/export_graphs.py large                                # what exporting a ViT-B takes

ViT-S/16 at 224, CODA-Prompt and KDP, 10 tasks of 10 classes, random weights (`random_exports.py`). The unit is a plain
timm ViT-S exported the ordinary way, which gets a normalised tensor; ours get uint8 pixels and preprocess them inside
the measured time. `cdl_deploy.bench` measures: each model in a process of its own, taking turns in short bursts in
random order; a ratio is the median over the rounds of (time of the graph / time of its unit). What begins with `dinov3`
is the same of DINOv3's ViT-S/16, against timm's own.

`cpu` compares processor time of single-threaded runs at batch 1 instead, also in processes of their own that take
turns: what other programs do to the clock does not enter, nor does what two threads share. It prints no verdicts.

Exits 1 where a bar is missed.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

from cdl_deploy.bench import BenchOptions, BenchReport, ModelSpec, bench_latency  # noqa: E402
from cdl_deploy.bench.machine import cpu_model  # noqa: E402
from cdl_deploy.process_memory import peak_memory  # noqa: E402

UNIT = "plain"
TIME_BARS: dict[str, float | None] = {
    "reference": None,
    "full": 1.80,
    "task": 0.92,
    "block4": 0.93,
    "block4-int8": 0.55,
    "block4-int8-dynamic": 0.48,
    "full-int8": None,
    "full-int8-dynamic": None,
    "task-int8": None,
}
"""× the unit, at batch 1 and 8."""
ROTARY_UNIT = "dinov3-plain"
ROTARY_BARS: dict[str, float | None] = {
    "dinov3-full": 1.85,
    "dinov3-task": 0.95,
    "dinov3-block4": 0.97,
    "dinov3-block4-int8": 0.45,
}
"""× timm's DINOv3 ViT-S/16, which turns its queries and keys as well."""
SIZE_BARS = {
    "full": 1.12, "task": 1.12, "block4": 1.12,
    "full-int8": 0.32, "full-int8-dynamic": 0.32, "block4-int8": 0.32, "block4-int8-dynamic": 0.32, "task-int8": 0.32,
}  # fmt: skip
"""× the unit's file."""
OWN_UNITS = {"full-100-tasks": ("full", 1.03), "block4-100-tasks": ("block4", 1.03), "block4-fp16": ("block4", 1.02)}
"""Graphs that are compared with another one of ours: with 100 tasks, with weights stored in fp16. Unit and bar."""
LARGE = "vit_base_patch16_224"
LARGE_SECONDS, LARGE_BYTES = 120, 8e9
KINDS = ("latency", "cpu", "profile", "photographs", "large")
NAMES = [UNIT, *TIME_BARS, *OWN_UNITS, ROTARY_UNIT, *ROTARY_BARS]


def unit_of(name: str) -> str:
    """What a graph is compared with."""
    if name in OWN_UNITS:
        return OWN_UNITS[name][0]
    return ROTARY_UNIT if name in (ROTARY_UNIT, *ROTARY_BARS) else UNIT


# ---- latency and size ------------------------------------------------------------------------------------------------


def measure(names: list[str], folder: Path, batches: tuple[int, ...], threads: int, seconds: float, seed: int) -> Any:
    """Rows of the table."""
    names = with_units(names)
    models = [ModelSpec(folder / f"{name}.onnx", name) for name in names]
    report = bench_latency(models, BenchOptions(batches, (threads,), time_limit=seconds, precision=0.5, seed=seed))
    rows = []
    for batch in batches:
        found = {m.model: m for m in report.measurements if m.batch == batch}
        for name in names:
            against = unit_of(name)
            ratio = ratio_of(report, name, against, batch) if against in found else None
            bar = OWN_UNITS[name][1] if name in OWN_UNITS else {**TIME_BARS, **ROTARY_BARS}.get(name)
            rows.append(
                {"what": "latency", "graph": name, "batch": batch, "value": found[name].p50_ms, "unit": "ms",
                 "rounds": found[name].rounds, "against": against, "ratio": ratio, "bar": bar}
            )  # fmt: skip
    for name in [name for name in names if name not in OWN_UNITS]:
        size, unit = ((folder / f"{it}.onnx").stat().st_size for it in (name, unit_of(name)))
        rows.append(
            {"what": "file", "graph": name, "batch": None, "value": size / 1e6, "unit": "MB", "against": unit_of(name),
             "ratio": size / unit, "bar": SIZE_BARS.get(name)}
        )  # fmt: skip
    return rows, report


def with_units(names: list[str]) -> list[str]:
    """With what they are compared with, which come last."""
    units = [unit for unit in ("full", "block4", UNIT, ROTARY_UNIT) if unit in map(unit_of, names)]
    return [*[name for name in names if name not in units], *units]


def ratio_of(report: BenchReport, name: str, against: str, batch: int) -> float:
    """Median over the rounds of the two times' ratio."""
    ours, theirs = (
        next(m.round_medians_ms for m in report.measurements if (m.model, m.batch) == (model, batch))
        for model in (name, against)
    )
    return median(a / b for a, b in zip(ours, theirs, strict=True))


def print_rows(rows: list[dict[str, Any]]) -> int:
    """Markdown; how many bars were missed."""
    missed = 0
    print("| graph | what | | ratio | bar | |\n|---|---|---|---|---|---|")
    for row in rows:
        what = row["what"] + (f", batch {row['batch']}" if row["batch"] else "")
        verdict = ""
        if row["bar"] is not None and row["ratio"] is not None:
            met = row["ratio"] <= row["bar"]
            missed += not met
            verdict = "met" if met else "not met"
        ratio = "" if row["ratio"] is None else f"{row['ratio']:.3f}× {row['against']}"
        bar = "" if row["bar"] is None else f"≤ {row['bar']:g}×"
        print(f"| {row['graph']} | {what} | {row['value']:.2f} {row['unit']} | {ratio} | {bar} | {verdict} |")
    return missed


# ---- processor time --------------------------------------------------------------------------------------------------


def cpu_times(names: list[str], folder: Path, rounds: int, seed: int) -> list[dict[str, Any]]:
    """Median milliseconds of processor time of one image on one thread, and ratios over the unit's, round by round."""
    import random

    names = with_units(names)
    order, workers = random.Random(seed), {name: start_worker(folder / f"{name}.onnx") for name in names}
    try:
        found: dict[str, list[float]] = {name: [] for name in names}
        for _ in range(rounds):
            for name in order.sample(names, len(names)):
                ask(workers[name])  # fills the caches, uncounted
                found[name].append(ask(workers[name]))
    finally:
        for worker in workers.values():
            worker.communicate()
    rows = []
    for name in names:
        against = unit_of(name)
        ratio = median(a / b for a, b in zip(found[name], found[against], strict=True)) if against in found else None
        rows.append(
            {"what": "processor time", "graph": name, "batch": 1, "value": 1e3 * median(found[name]), "unit": "ms",
             "rounds": rounds, "against": against, "ratio": ratio, "bar": None}
        )  # fmt: skip
    return rows


def start_worker(path: Path) -> subprocess.Popen[str]:
    """A process that runs `path` once for every line it reads and answers with the seconds of processor time."""
    command = [sys.executable, __file__, "--worker", str(path)]
    worker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    ask(worker)
    return worker


def ask(worker: subprocess.Popen[str]) -> float:
    assert worker.stdin is not None
    assert worker.stdout is not None
    worker.stdin.write("run\n")
    worker.stdin.flush()
    return float(worker.stdout.readline())


def work(path: Path) -> None:
    """The inside of such a process."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feed = make_feed(session, 1)
    for _ in sys.stdin:
        began = time.process_time()
        session.run(None, feed)
        print(time.process_time() - began, flush=True)


# ---- where the time goes ---------------------------------------------------------------------------------------------


def profile(path: Path, batch: int, threads: int, runs: int = 30) -> list[dict[str, Any]]:
    """Median milliseconds a run of every kind of operator, the slowest first. Profiling itself costs a little."""
    import onnxruntime

    with tempfile.TemporaryDirectory(prefix="cdl-profile-") as folder:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        feed = make_feed(session, batch)
        for _ in range(runs + 5):
            session.run(None, feed)
        events = json.loads(Path(session.end_profiling()).read_text())
    spent: dict[tuple[str, str], list[float]] = defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            node = event["name"].removesuffix("_kernel_time")
            spent[event["args"]["op_name"], node].append(event["dur"] / 1e3)
    kinds: dict[str, list[float]] = defaultdict(list)
    for (kind, _), times in spent.items():
        kinds[kind].append(median(times[5:]))
    rows = [{"operator": kind, "nodes": len(times), "ms": sum(times)} for kind, times in kinds.items()]
    return sorted(rows, key=lambda row: -row["ms"])


def make_feed(session: Any, batch: int, height: int = 224, width: int = 224) -> dict[str, np.ndarray]:
    """Random pixels, or a random tensor, whichever it takes."""
    random = np.random.default_rng(0)
    if session.get_inputs()[0].type == "tensor(uint8)":
        return {"image": random.integers(0, 256, (batch, height, width, 3), dtype=np.uint8)}
    return {"image": random.standard_normal((batch, 3, height, width)).astype(np.float32)}


# ---- preprocessing ---------------------------------------------------------------------------------------------------


PHOTOGRAPHS = {"224×224": (224, 224), "640×480": (480, 640), "3000×2000": (2000, 3000)}


def photographs(folder: Path, threads: int, runs: int = 20) -> list[dict[str, Any]]:
    """Milliseconds that the preprocessing adds to a run for images of several sizes, and what Pillow takes."""
    import onnx
    import onnxruntime
    from PIL import Image

    from cdl_deploy.data.images import to_crop
    from cdl_deploy.runtime.bundle import decode_metadata

    path = folder / "block4.onnx"
    model = onnx.load(path)
    bundle = decode_metadata(path, {entry.key: entry.value for entry in model.metadata_props})
    with tempfile.TemporaryDirectory(prefix="cdl-photographs-") as name:
        part = Path(name) / "pixels.onnx"
        onnx.utils.extract_model(str(path), str(part), ["image"], ["pixels"])
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(part, options, providers=["CPUExecutionProvider"])
        rows = []
        for size, (height, width) in PHOTOGRAPHS.items():
            feed = make_feed(session, 1, height, width)
            image = Image.fromarray(feed["image"][0])
            ours, theirs = [], []
            for _ in range(runs):
                ours.append(seconds_of(lambda feed=feed: session.run(None, feed)))
                theirs.append(seconds_of(lambda image=image: to_crop(image, bundle.preprocessing)))
            rows.append({"image": size, "graph_ms": 1e3 * median(ours), "pillow_ms": 1e3 * median(theirs)})
    return rows


def seconds_of(run: Any) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


# ---- a large model ---------------------------------------------------------------------------------------------------


def export_large(seed: int) -> dict[str, float]:
    """Seconds and peak bytes of this process, from a model in memory to a checked file."""
    from benchmarks.random_exports import Recipe, export_student, random_pair

    with tempfile.TemporaryDirectory(prefix="cdl-large-") as folder:
        began = time.perf_counter()
        random_pair("full", 10, LARGE, seed)
        made = time.perf_counter()
        export_student(Recipe(), Path(folder) / "student.onnx", LARGE, seed)
        ended = time.perf_counter()
        size = (Path(folder) / "student.onnx").stat().st_size
    peak = peak_memory() or 0
    return {"seconds": ended - made - (made - began), "bytes": peak, "file_bytes": size}


# ---- all of it -------------------------------------------------------------------------------------------------------


def about(seed: int, threads: int) -> dict[str, Any]:
    """What the figures depend on."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=PROJECT, capture_output=True, text=True)
    changed = subprocess.run(["git", "status", "--porcelain"], cwd=PROJECT, capture_output=True, text=True)
    versions = {name: version(name) for name in ("onnxruntime", "onnx", "torch", "timm")}
    return {
        "machine": f"{threads} threads of {cpu_model()}, {platform.machine()}",
        **versions,
        "python": platform.python_version(),
        "seed": seed,
        "commit": commit.stdout.strip() + (" with changes" if changed.stdout.strip() else ""),
    }


def chosen(text: str | None) -> Iterator[str]:
    for name in (text or ",".join(NAMES)).split(","):
        if name not in NAMES:
            raise SystemExit(f"unknown graph '{name}', expected some of {', '.join(NAMES)}")
        yield name


def main() -> int:
    """Exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "what", nargs="?", default="latency", choices=("latency", "cpu", "profile", "photographs", "large")
    )
    parser.add_argument("--work", type=Path, help="folder that keeps the graphs; without it they are built anew")
    parser.add_argument("--graphs", help=f"comma-separated, of {', '.join(NAMES)}; default: all")
    parser.add_argument("--build-only", action="store_true", help="fill the folder and end")
    parser.add_argument("--batch", default="1,8")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=180, help="at most so long; it ends when medians are precise")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--rounds", type=int, default=20, help="of `cpu`")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.worker:
        work(a.worker)
        return 0
    names = list(chosen(a.graphs))
    facts = about(a.seed, a.threads)
    print(", ".join(f"{key} {value}" for key, value in facts.items()), flush=True)
    found: dict[str, Any] = {"about": facts}
    missed = 0
    with tempfile.TemporaryDirectory(prefix="cdl-graphs-") as temporary:
        folder = a.work or Path(temporary)
        if a.what == "large":
            found["large"] = large = export_large(a.seed)
            missed += print_large(large)
        else:
            needed = {"photographs": ["block4"], "profile": names}.get(a.what, with_units(names))
            from benchmarks.random_exports import build

            for name in dict.fromkeys(needed):
                build(name, folder, a.seed)
        batches = tuple(int(text) for text in a.batch.split(","))
        if a.build_only:
            return 0
        if a.what == "latency":
            found["rows"], report = measure(names, folder, batches, a.threads, a.seconds, a.seed)
            missed += print_rows(found["rows"])
            found["notes"] = list(report.notes)
            print("\n" + "\n".join(f"note: {note}" for note in report.notes))
        elif a.what == "cpu":
            found["rows"] = cpu_times(names, folder, a.rounds, a.seed)
            print_rows(found["rows"])
        elif a.what == "profile":
            found["profiles"] = {
                f"{name}, batch {batch}": profile(folder / f"{name}.onnx", batch, a.threads)
                for name in names
                for batch in batches
            }
            for title, rows in found["profiles"].items():
                print(f"\n{title}: {sum(row['ms'] for row in rows):.2f} ms in nodes")
                for row in rows:
                    print(f"  {row['ms']:8.3f} ms  {row['nodes']:4} × {row['operator']}")
        elif a.what == "photographs":
            found["photographs"] = photographs(folder, a.threads)
            for row in found["photographs"]:
                print(f"  {row['image']:>10}  graph {row['graph_ms']:7.2f} ms  Pillow {row['pillow_ms']:7.2f} ms")
    if a.json:
        a.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return int(missed > 0)


def print_large(found: dict[str, float]) -> int:
    """How many bars were missed."""
    met = found["seconds"] <= LARGE_SECONDS, found["bytes"] <= LARGE_BYTES
    print(
        f"{LARGE}: exported in {found['seconds']:.0f} s (bar {LARGE_SECONDS} s, {'met' if met[0] else 'not met'}), "
        f"peak memory {found['bytes'] / 1e9:.1f} GB (bar {LARGE_BYTES / 1e9:g} GB, {'met' if met[1] else 'not met'}), "
        f"file {found['file_bytes'] / 1e6:.0f} MB"
    )
    return 2 - sum(met)


if __name__ == "__main__":
    sys.exit(main())
