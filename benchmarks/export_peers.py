"""Our `block:4` graphs in onnxruntime beside OpenVINO with the same file, and with NNCF's int8 of it.

    python3 -m venv /tmp/peers && /tmp/peers/bin/pip install openvino==2026.4.1 nncf==3.4.0
    python benchmarks/export_peers.py --work /tmp/graphs --python /tmp/peers/bin/python --seconds 240
    python benchmarks/export_peers.py --work /tmp/graphs --python /tmp/peers/bin/python --batch 1 --peers openvino-nncf

Graphs and unit are those of `export_graphs.py`, and so is how they are measured: each in a process of its own, taking
turns in short bursts in random order; a ratio is the median over the rounds of (its time / the time of a plain timm
ViT-S in onnxruntime). Every peer gets the same random images [batch, 224, 224, 3].

    openvino-f32            block4.onnx, f32 asked for
    openvino                block4.onnx, its own choice: bf16 where the processor has it
    openvino-int8           block4-int8.onnx (our QDQ), its own choice for the rest
    openvino-nncf           block4.onnx quantised by NNCF (ModelType.TRANSFORMER), its own choice for the rest
    openvino-cdl            as `cdl export --target openvino --quantize int8` has NNCF quantise it: products of tokens
                            with a matrix, and nothing else

It says nothing of accuracy: the weights are random.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

from benchmarks.export_graphs import UNIT, about, print_rows, ratio_of  # noqa: E402
from cdl_deploy.bench import BenchOptions, ModelSpec, bench_latency  # noqa: E402
from cdl_deploy.targets import find_target  # noqa: E402
from cdl_deploy.targets.process import Place, is_installed  # noqa: E402

OURS = ("block4", "block4-int8")
SCRIPTS = PROJECT / "benchmarks" / "peers"
PEERS = {
    "openvino-f32": ("block4", None, ()),
    "openvino": ("block4", SCRIPTS / "run_openvino_default.py", ()),
    "openvino-int8": ("block4-int8", SCRIPTS / "run_openvino_default.py", ()),
    "openvino-nncf": ("block4", SCRIPTS / "run_openvino_nncf_alone.py", ("nncf",)),
    "openvino-cdl": ("block4-named", SCRIPTS / "run_openvino_cdl.py", ("nncf",)),
}
"""Name → graph, script that runs it (None: the runtime's own), and modules that it takes beside OpenVINO's."""


def peer(name: str, folder: Path, python: Path) -> ModelSpec:
    """What is measured under this name. Raises SystemExit where the interpreter lacks something."""
    graph, script, more = PEERS[name]
    target = find_target("openvino")
    target = replace(target, packages=(*target.packages, *more), script=str(script) if script else target.script)
    if not is_installed(target, python, "--python"):
        raise SystemExit(f"{python} lacks one of {', '.join(target.packages)}: {python} -m pip install openvino nncf")
    return ModelSpec(folder / f"{graph}.onnx", name, "runtime", place=Place(target, python))


def write_named(model: Path, named: Path) -> None:
    """The same file, whose metadata name the products that are quantised where the product has NNCF do that."""
    import onnx

    from cdl_deploy.export.vendor_int8 import products_of

    found = onnx.load(model)
    entry = found.metadata_props.add()
    entry.key, entry.value = "products", json.dumps(products_of(found))
    onnx.save(found, named)


def main() -> int:
    """Exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder that keeps the graphs; they are built there")
    parser.add_argument("--python", type=Path, required=True, help="an interpreter that has openvino and nncf")
    parser.add_argument("--peers", default=",".join(PEERS), help="comma-separated; default: all")
    parser.add_argument("--batch", default="1,8")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=240, help="at most so long, NNCF's conversion included")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    a = parser.parse_args()
    wanted = [name.strip() for name in a.peers.split(",")]
    for name in wanted:
        if name not in PEERS:
            parser.error(f"unknown peer '{name}', expected some of {', '.join(PEERS)}")
    peers = [peer(name, a.work, a.python) for name in wanted]
    from benchmarks.random_exports import build

    own = [ModelSpec(build(name, a.work, a.seed), name) for name in (*OURS, UNIT)]
    write_named(a.work / "block4.onnx", a.work / "block4-named.onnx")
    facts, batches = about(a.seed, a.threads), tuple(int(text) for text in a.batch.split(","))
    print(", ".join(f"{key} {value}" for key, value in facts.items()), flush=True)
    options = BenchOptions(batches, (a.threads,), time_limit=a.seconds, precision=0.5, seed=a.seed)
    report = bench_latency([*own[:-1], *peers, own[-1]], options)
    runtimes = {it.name: it.runtime for it in report.models}
    rows = [
        {"what": "latency", "graph": it.model, "batch": batch, "value": it.p50_ms, "unit": "ms", "rounds": it.rounds,
         "against": UNIT, "ratio": ratio_of(report, it.model, UNIT, batch), "bar": None, "runtime": runtimes[it.model]}
        for batch in batches
        for it in report.measurements
        if it.batch == batch
    ]  # fmt: skip
    print_rows(rows)
    print("\n" + "\n".join(f"note: {note}" for note in report.notes))
    if a.json:
        found = {"about": facts, "rows": rows, "notes": list(report.notes)}
        a.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
