"""Whether `cdl bench-latency` can be believed: against a bare loop, on a slowed model, and on a copy.

    python benchmarks/bench_agreement.py agreement --pairs 20
    python benchmarks/bench_agreement.py trials --trials 20 --slower 10

`agreement`: the median of `cdl bench-latency` against that of a bare loop of 15 lines in a fresh process, taking turns
in random order; exits 1 if the median of the ratios of the pairs is off by more than 3 %. A machine with other users
has phases that last for seconds, so the pairs are short and many, and the undisturbed runs (the fastest tenth) are
compared as well. onnxruntime's own `onnxruntime_perf_test` runs where it is on the path; no package on PyPI brings it.

`trials`: each trial benchmarks a model, a copy of its file, and the same model with a few percent more work inside,
for a few seconds. Exits 1 if the slowed one is not called slower in every trial, or the copy ever is.

Without --model, the model is a plain timm ViT with random weights, exported here (64×64, 6 blocks of width 192).
"""

from __future__ import annotations

import argparse
import json
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from statistics import median

import numpy as np
import onnx
from onnx import helper, numpy_helper

from cdl_deploy.bench import BenchOptions, ModelSpec, bench_latency, describe_machine

TOLERANCE = 0.03
LOOP = """
import sys, time
import numpy, onnxruntime
path, threads, batch, seconds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = threads
session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
image = session.get_inputs()[0]
shape = [batch, *[side if isinstance(side, int) else 224 for side in image.shape[1:]]]
feed = {image.name: numpy.random.default_rng(0).standard_normal(shape).astype(numpy.float32)}
times, begin = [], time.perf_counter()
while time.perf_counter() < begin + 1.2 * seconds:
    start = time.perf_counter()
    session.run(None, feed)
    times += [time.perf_counter() - start] if start > begin + 0.2 * seconds else []
print(1000 * numpy.median(times), 1000 * numpy.quantile(times, 0.1))
"""


def make_model(folder: Path) -> Path:
    """A plain ViT with random weights and a free batch."""
    import timm
    import torch

    torch.manual_seed(0)
    network = timm.models.vision_transformer.VisionTransformer(
        img_size=64, patch_size=8, embed_dim=192, depth=6, num_heads=3, num_classes=10
    )
    path = folder / "model.onnx"
    torch.onnx.export(
        network.eval(),
        (torch.zeros(2, 3, 64, 64),),
        str(path),
        dynamo=True,
        input_names=["image"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        external_data=False,
        verbose=False,
    )
    return path


def slow_down(path: Path, out: Path, products: int, width: int = 256) -> None:
    """The same model with some matrix products between its input and its first output: they add zero to it."""
    model = onnx.load(path)
    graph = model.graph
    rng = np.random.default_rng(0)
    weight = (rng.standard_normal((width, width)) / width**0.5).astype(np.float32)
    graph.initializer.append(numpy_helper.from_array(weight, "more_weight"))
    graph.initializer.append(numpy_helper.from_array(np.zeros((1, 1), np.float32), "more_zero"))
    graph.initializer.append(numpy_helper.from_array(np.array([-1, width], np.int64), "more_shape"))
    first, last = graph.input[0].name, graph.output[0].name
    nodes = [helper.make_node("Reshape", [first, "more_shape"], ["more_0"])]
    nodes += [helper.make_node("MatMul", [f"more_{i}", "more_weight"], [f"more_{i + 1}"]) for i in range(products)]
    nodes += [
        helper.make_node("ReduceMean", [f"more_{products}"], ["more_mean"], keepdims=1),
        helper.make_node("Mul", ["more_mean", "more_zero"], ["more_nothing"]),
        helper.make_node("Add", ["more_before", "more_nothing"], [last]),
    ]
    for node in graph.node:
        node.output[:] = ["more_before" if name == last else name for name in node.output]
        node.input[:] = ["more_before" if name == last else name for name in node.input]
    graph.node.extend(nodes)
    onnx.save(model, out)


def bare_loop(path: Path, threads: int, batch: int, seconds: float) -> tuple[float, float]:
    """Median and fastest tenth, in milliseconds, of a loop over `session.run` in a fresh process."""
    command = [sys.executable, "-c", LOOP, str(path), str(threads), str(batch), str(seconds)]
    median_ms, fast_ms = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return float(median_ms), float(fast_ms)


def perf_test(path: Path, threads: int, seconds: float) -> tuple[float, float] | None:
    """Median milliseconds, twice, of onnxruntime_perf_test at batch 1; None where there is no such program."""
    program = shutil.which("onnxruntime_perf_test")
    if program is None:
        return None
    command = [program, "-I", "-t", str(max(1, round(seconds))), "-x", str(threads), "-f", "batch:1", str(path)]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = re.search(r"P50 Latency: ([0-9.e+-]+) s", text)
    return (float(found.group(1)) * 1000,) * 2 if found else None


def benchmark(path: Path, threads: int, batch: int, seconds: float, seed: int) -> tuple[float, float]:
    """The median of `cdl bench-latency`, and its fastest tenth."""
    command = [sys.executable, "-m", "cdl_deploy.cli", "bench-latency", str(path), "--json"]
    command += [
        "--batch",
        str(batch),
        "--threads",
        str(threads),
        "--time-limit",
        str(seconds + 1.5),
        "--seed",
        str(seed),
    ]
    command += ["--precision", "0.01"]  # use the whole time
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    measurement = json.loads(done.stdout)["measurements"][0]
    return measurement["p50_ms"], measurement["quantiles_ms"][10]


def agreement(path: Path, threads: int, batch: int, pairs: int, seconds: float, seed: int) -> bool:
    order = random.Random(seed)
    found: dict[str, list[tuple[float, float]]] = {"loop": [], "cdl": [], "perf_test": []}
    for number in range(pairs):
        for name in order.sample(["loop", "cdl", "perf_test"], 3):
            if name == "loop":
                found["loop"].append(bare_loop(path, threads, batch, seconds))
            elif name == "cdl":
                found["cdl"].append(benchmark(path, threads, batch, 1.5 * seconds, seed + number))
            elif batch == 1 and (value := perf_test(path, threads, seconds)) is not None:
                found["perf_test"].append(value)
    for name, values in found.items():
        if values:
            print(f"  {name:9} p50 of each: {' '.join(f'{p50:.3g}' for p50, _ in values)} ms")
        else:
            print(f"  {name:9} not on this machine")
    other = "perf_test" if found["perf_test"] else "loop"
    pairs_of = list(zip(found["cdl"], found[other], strict=True))
    paired = median(own[0] / reference[0] for own, reference in pairs_of)
    fastest = min(own[1] for own, _ in pairs_of) / min(reference[1] for _, reference in pairs_of)
    good = abs(paired - 1) <= TOLERANCE
    print(f"  cdl bench-latency / {other}, p50: {paired:.3f} (median of {pairs} pairs), ", end="")
    print(f"{'within' if good else 'NOT within'} {TOLERANCE:.0%}; undisturbed: {fastest:.3f}")
    return good


def products_for(path: Path, percent: float, folder: Path, threads: int) -> tuple[int, float]:
    """How many products slow the model down by about `percent`, and what a bare loop says they do, in percent."""
    trial = folder / "trial.onnx"
    slow_down(path, trial, 64)
    pairs = [(bare_loop(path, threads, 1, 0.7)[1], bare_loop(trial, threads, 1, 0.7)[1]) for _ in range(4)]
    each = (min(slow for _, slow in pairs) / min(plain for plain, _ in pairs) - 1) / 64
    number = max(1, round(percent / 100 / each))
    return number, number * each * 100


def trials(path: Path, folder: Path, count: int, percent: float, threads: int, seconds: float, seed: int) -> bool:
    products, expected = products_for(path, percent, folder, threads)
    copy, slowed = folder / "copy.onnx", folder / "slowed.onnx"
    shutil.copy(path, copy)
    slow_down(path, slowed, products)
    print(f"  slowed by {products} matrix products, {expected:.0f} % by a bare loop; at most {seconds:g} s a trial")
    verdicts: dict[str, Counter[str]] = {"copy": Counter(), "slowed": Counter()}
    ratios: dict[str, list[float]] = {"copy": [], "slowed": []}
    models = [ModelSpec(copy, "copy"), ModelSpec(slowed, "slowed"), ModelSpec(path, "model")]
    for number in range(count):
        # Precision does not matter here: a trial ends when every model is told from the other, or known to be like it.
        options = BenchOptions((1,), (threads,), time_limit=seconds, precision=25, seed=seed + number)
        report = bench_latency(models, options)
        for comparison in report.comparisons:
            verdicts[comparison.model][comparison.verdict] += 1
            ratios[comparison.model].append(1 / comparison.speedup)
        print(
            f"  trial {number + 1:2}: {report.measurements[0].rounds:3} rounds, {report.seconds:4.1f} s, "
            + ", ".join(f"{c.model} {1 / c.speedup:.3f} {c.verdict}" for c in report.comparisons)
            + f"; others used {report.watch.others_share or 0:.0%}",
            flush=True,
        )
    for name, counted in verdicts.items():
        low, high = min(ratios[name]), max(ratios[name])
        print(f"  {name:6} of {count}: {dict(counted)}; time against the model {low:.3f} to {high:.3f}")
    good = verdicts["slowed"]["slower"] == count and not verdicts["copy"]["slower"]
    print(f"  slowed found {verdicts['slowed']['slower']} of {count}, copy called slower {verdicts['copy']['slower']}")
    return good


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["agreement", "trials"])
    parser.add_argument("--model", type=Path, help="an .onnx file with one float32 input")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--slower", type=float, default=10, help="percent")
    parser.add_argument("--seconds", type=float, default=0, help="of a loop, or of a trial")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    machine = describe_machine()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    with tempfile.TemporaryDirectory(prefix="cdl-agreement-") as name:
        folder = Path(name)
        path = arguments.model or make_model(folder)
        print(
            f"{path.name}, batch {arguments.batch}, {arguments.threads} threads, seed {arguments.seed}; {machine.cpu},"
        )
        print(f"{machine.usable_cores} cores, onnxruntime {version('onnxruntime')}, commit {commit}")
        if arguments.what == "agreement":
            good = agreement(
                path, arguments.threads, arguments.batch, arguments.pairs, arguments.seconds or 1, arguments.seed
            )
        else:
            good = trials(
                path,
                folder,
                arguments.trials,
                arguments.slower,
                arguments.threads,
                arguments.seconds or 30,
                arguments.seed,
            )
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
