"""What `cdl export --tokens` costs and saves: accuracy and processor time of files with fewer patch tokens.

    python benchmarks/fewer_tokens.py --data data/cifar100 --weights weights --work /tmp/fewer
    python benchmarks/fewer_tokens.py … --only cost             the processor time again, of the files that are there

The pair of `make evidence` on Split CIFAR-100: the frozen backbone under SLDA, 20 training images a class; 2,000 test
images, 20 a class, the same for every file (`cdl evaluate`). Of the frozen student and the frozen teacher at 98 pixels,
and of the student at 140, where an image has twice as many tokens. A head is solved anew of merged tokens, or stays as
it was trained, as it does where the training images are gone.

Cost: processor time of one run of onnxruntime on one thread, batch 1 and 8, preprocessing included; the files of a
network take turns, and a ratio is the median over the rounds of (a file's time / that of the same network's file with
all tokens). What is measured is kept in --work (results.json), and the same command goes on.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

from benchmarks.evidence.budget import cut  # noqa: E402  found once the line above has run
from cdl_deploy.files import write_json  # noqa: E402

NETWORKS = {
    "student": ("vit_384x6_patch14_98", "student", 98),
    "teacher": ("vit_small_patch14_dinov2", "teacher", 98),
    "student at 140": ("vit_384x6_patch14_98", "student", 140),
}
"""Name → model, whose weights, image size."""
ROWS: list[tuple[str, float, str]] = [
    ("student", 1.0, "solved"),
    ("student", 0.5, "solved"),
    ("student", 0.5, "trained"),
    ("student", 0.9, "solved"),
    ("student", 0.75, "solved"),
    ("student", 0.75, "trained"),
    ("teacher", 1.0, "solved"),
    ("teacher", 0.5, "solved"),
    ("student at 140", 1.0, "solved"),
    ("student at 140", 0.5, "solved"),
]
"""Network, share, head; in the order in which they are measured."""
IMAGES, TESTS, HELD_OUT = 20, 20, 4
"""A class: to learn from, to test files on, and held out by the run for the comparison at export."""


def key_of(network: str, share: float, head: str) -> str:
    return f"{network}, {share:g}, {head}"


def trained(network: str, given: argparse.Namespace) -> Path:
    """The run of a frozen backbone, made once."""
    import cdl_deploy

    model, whose, size = NETWORKS[network]
    run: Path = given.work / network.replace(" ", "-")
    if not (run / "run.json").exists():
        data = cut(given.data, given.work / "images", IMAGES, HELD_OUT)
        weights = str(given.weights / f"{whose}.safetensors")
        options: dict[str, Any] = {
            "method": "none",
            "distill": "none",
            "head": "slda",
            "tasks": 2,
            "seed": 0,
            "image_size": size,
        }
        cdl_deploy.train(data, out=run, student=model, student_weights=weights, **options)
    return run


def exported(row: tuple[str, float, str], given: argparse.Namespace) -> tuple[Path, float]:
    """The file, and the processor seconds of its export."""
    import cdl_deploy
    from cdl_deploy.export import merged_export, merged_model

    network, share, head = row
    out = given.work / "files" / key_of(*row).replace(", ", "-").replace(" ", "-")
    began = time.process_time()
    if head == "trained":  # as if the training images were gone
        vars(merged_export)["training_tasks"] = lambda root, record: None
    try:
        cdl_deploy.export(trained(network, given), out, teacher=False, tokens=share)
    finally:
        vars(merged_export)["training_tasks"] = merged_model.training_tasks
    return out / "student.onnx", time.process_time() - began


def measure(row: tuple[str, float, str], given: argparse.Namespace) -> dict[str, Any]:
    """Accuracy of one file, and what it says of itself."""
    import cdl_deploy
    from cdl_deploy.runtime.bundle import read_bundle

    path, seconds = exported(row, given)
    found = cdl_deploy.evaluate(path, cut(given.data, given.work / "tests", 1, TESTS), threads=1)
    bundle = read_bundle(path)
    tokens, parity = bundle.patch_tokens, bundle.parity
    assert parity is not None
    return {
        "file": str(path),
        "accuracy": found.accuracy,
        "left": tokens.left if tokens else None,
        "patches": tokens.patches if tokens else None,
        "compared": parity.images,
        "logit_difference": parity.max_abs_logit_difference,
        "export_processor_seconds": round(seconds, 1),
    }


def costs(paths: dict[str, Path], seconds: float) -> dict[str, dict[str, float]]:
    """Milliseconds of the processor for an image, and the share of the first file's, by file, at batch 1 and 8."""
    import onnxruntime

    from cdl_deploy.runtime.bundle import read_bundle

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    sessions = {name: onnxruntime.InferenceSession(path, options) for name, path in paths.items()}
    first, found = next(iter(paths)), {name: dict[str, float]() for name in paths}
    for batch in (1, 8):
        side = read_bundle(paths[first]).preprocessing.resize
        feed = {"image": np.random.default_rng(0).integers(0, 256, (batch, side, side, 3), np.uint8)}
        times: dict[str, list[float]] = {name: [] for name in paths}
        until = time.monotonic() + seconds
        while time.monotonic() < until or len(times[first]) < 5:
            for name, session in sessions.items():
                began = time.process_time()
                for _ in range(max(1, 8 // batch)):
                    session.run(None, feed)
                times[name].append((time.process_time() - began) / max(8, batch))
        for name in paths:
            ratios = [own / unit for own, unit in zip(times[name], times[first], strict=True)]
            found[name] |= {
                f"ms_{batch}": 1e3 * statistics.median(times[name]),
                f"ratio_{batch}": statistics.median(ratios),
            }
    return found


def table(results: dict[str, dict[str, Any]]) -> list[str]:
    """Markdown."""
    lines = [
        "| network | `--tokens` | patch tokens | head | accuracy | lost | batch 1, ms | × all tokens | batch 8 | bar |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for network, share, head in ROWS:
        row, unit = (results.get(key_of(network, it, how)) for it, how in ((share, head), (1.0, "solved")))
        if row is None or unit is None or "ratio_1" not in row:
            continue
        lost, ratio = unit["accuracy"] - row["accuracy"], row["ratio_1"]
        met = "" if share == 1 else "met" if lost <= 1 and ratio <= 0.6 else "**not met**"
        left = f"{row['left']} of {row['patches']}" if row["left"] else "all"
        lines.append(
            f"| {network} | {share:g} | {left} | {head if share < 1 else ''} | {row['accuracy']:.1f} | "
            f"{f'{lost:.1f}' if share < 1 else ''} | {row['ms_1']:.2f} | {ratio:.3f} | {row['ratio_8']:.3f} | {met} |"
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="CIFAR-100 as train/CLASS/… and test/CLASS/…")
    parser.add_argument("--weights", type=Path, default=Path("weights"), help="the pair (make evidence fetches it)")
    parser.add_argument("--work", type=Path, required=True, help="runs, files and results")
    parser.add_argument("--seconds", type=float, default=20, help="of cost, for each network and batch")
    parser.add_argument("--only", choices=("accuracy", "cost"))
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    file = given.work / "results.json"
    results: dict[str, dict[str, Any]] = json.loads(file.read_text()) if file.exists() else {}
    for row in ROWS if given.only != "cost" else ():
        if key_of(*row) not in results:
            results[key_of(*row)] = measure(row, given)
            write_json(file, results)
            print(key_of(*row), results[key_of(*row)], file=sys.stderr, flush=True)
    for network in NETWORKS if given.only != "accuracy" else ():
        own = {name: Path(row["file"]) for name, row in results.items() if name.startswith(f"{network}, ")}
        for name, cost in (costs(own, given.seconds) if own else {}).items():
            results[name] |= cost
        write_json(file, results)
    print("\n".join(table(results)))
    print(f"\n{platform.machine()}, {platform.processor() or platform.system()}, Python {platform.python_version()}")


if __name__ == "__main__":
    main()
