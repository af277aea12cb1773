"""The embedded digits over seeds: KDP, the student alone, and what two of our differences from the paper are worth.

    python benchmarks/digits.py --seeds 0,1,2 --jobs 2

Runs `cdl train` in processes of one thread each, keeps the records' figures in docs/digits.json and writes the tables
of docs/digits.md. About 40 minutes on 2 cores.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from statistics import mean, stdev
from typing import Any

PROJECT = Path(__file__).resolve().parent.parent

COMMON = ["--data", "digits", "--tasks", "5", "--method", "coda", "--device", "cpu"]
RUNS = {
    "kdp": ["--distill", "kdp", "--epochs", "5"],
    "none": ["--distill", "none", "--epochs", "5"],
    "kdp, 10 epochs": ["--distill", "kdp", "--epochs", "10"],
    "none, 10 epochs": ["--distill", "none", "--epochs", "10"],
    "paper's heads": ["--distill", "kdp", "--epochs", "5", "--head-start", "linear"],
    "paper's KD prompts": ["--distill", "kdp", "--epochs", "5", "--kd-token-start", "uniform", "--kd-lr-scale", "1"],
}


def train(name: str, seed: int, folder: Path) -> dict[str, Any]:
    """One run; the figures of its record."""
    out = folder / f"{name.replace(' ', '-')}-{seed}"
    command = [sys.executable, "-m", "cdl_deploy.cli", "train", *COMMON, *RUNS[name]]
    command += ["--seed", str(seed)]
    began = time.perf_counter()
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, "--out", str(out), "--json"], env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{name}, seed {seed}: {done.stderr}")
    record = json.loads(done.stdout)
    figures = {"run": name, "seed": seed, "seconds": round(time.perf_counter() - began, 1)}
    for role in ("student", "teacher"):
        if record[role]:
            figures[role] = {key: round(record[role][key], 3) for key in ("final_average_accuracy", "forgetting")}
    print(f"{name}, seed {seed}: {figures}", file=sys.stderr, flush=True)
    return figures


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: a line a run, a column a seed, then mean ± standard deviation."""
    seeds = sorted({row["seed"] for row in rows})
    lines = [
        "| run | learner | " + " | ".join(f"seed {seed}" for seed in seeds) + " | mean ± std | forgetting |",
        "|---|---|" + "---|" * (len(seeds) + 2),
    ]
    for name in RUNS:
        for role in ("student", "teacher"):
            found = {row["seed"]: row[role] for row in rows if row["run"] == name and role in row}
            if not found or (role == "teacher" and not name.startswith("kdp")):
                continue
            values = [found[seed]["final_average_accuracy"] for seed in seeds]
            forgotten = mean(found[seed]["forgetting"] for seed in seeds)
            spread = f" ± {stdev(values):.1f}" if len(values) > 1 else ""
            cells = " | ".join(f"{value:.1f}" for value in values)
            lines.append(f"| {name} | {role} | {cells} | {mean(values):.1f}{spread} | {forgotten:.1f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", type=Path, default=PROJECT / "docs")
    arguments = parser.parse_args()
    seeds = [int(seed) for seed in arguments.seeds.split(",")]
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(arguments.jobs) as pool:
        work = [(name, seed, Path(folder)) for name in RUNS for seed in seeds]
        rows = list(pool.map(lambda item: train(*item), work))
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=PROJECT, capture_output=True, text=True)
    about: dict[str, Any] = {
        "command": f"python benchmarks/digits.py --seeds {arguments.seeds} --jobs {arguments.jobs}",
        "train": f"cdl train {' '.join(COMMON)}",
        "commit": commit.stdout.strip(),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, {platform.system()}, shared",
        "versions": {name: version(name) for name in ("torch", "torchvision", "timm", "scikit-learn")},
    }
    (arguments.out / "digits.json").write_text(json.dumps({**about, "rows": rows}, indent=2) + "\n")
    versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    text = f"""# The embedded digits over seeds

Written by `{about["command"]}` at commit {about["commit"]} on {about["machine"]}; {versions}.
Every run: `{about["train"]}`. Final average accuracy in percent over all ten classes, tasks not told apart; 364
held-out images. Forgetting is the paper's, a mean over seeds.

{table(rows)}

* `kdp` is CODA with KDP and learned heads, 5 epochs a task; `none` the same student without distillation.
* `paper's heads`: rows of new classes drawn as `torch.nn.Linear` does (`--head-start linear`).
* `paper's KD prompts`: the KD token uniform in [0, 1), KD prompts at the whole learning rate.

What this means is in [findings.md](findings.md).
"""
    (arguments.out / "digits.md").write_text(text)
    print(table(rows))


if __name__ == "__main__":
    main()
