"""Write docs/runtimes.md: a run's student in every runtime that there is an environment for.

    make targets                              shows the tables
    python tools/runtimes_doc.py              writes the page, of a small run that is trained for it
    python tools/runtimes_doc.py --run RUN    of another run

Each target is exported as `cdl export RUN --target NAME` does, with the Python of `.runtimes/NAME`. Milliseconds are
those of one image on one thread, beside onnxruntime's for the same file in the same minute: rough, and on a machine
that others use.
"""

from __future__ import annotations

import argparse
import platform
import sys
from pathlib import Path

import numpy as np
import onnxruntime

import cdl_deploy
from cdl_deploy.counted import same_answers
from cdl_deploy.errors import ParityError
from cdl_deploy.export import Exported, ExportOptions, export_run, options_for_target
from cdl_deploy.export.fixed_shapes import logits_of_file
from cdl_deploy.folders import scratch_folder
from cdl_deploy.targets import find_target, targets
from cdl_deploy.targets.checking import Proof, prove
from cdl_deploy.targets.target import Target

PAGE = Path(__file__).parents[1] / "docs" / "runtimes.md"
HERE = ("onnxruntime", "portable")
"""Targets that are tried in onnxruntime itself."""
HEAD = """# Where an exported file runs

    cdl export RUN --target openvino
    cdl export RUN --target mnn --target-python ~/mnn/bin/python

`--target NAME` writes the file that a runtime takes, converts it where the runtime has a converter, and runs held-out
images in it, in a process of its own. Where a logit is further from the trained model's than the target allows, or an
image gets another class, nothing is written. Where the runtime is not installed, the ONNX file is written all the same,
with the one line that installs it. What is known to go wrong is refused: see "refused" below. `--quantize` and `--fp16`
are compared with onnxruntime's answers of the same file, and so is what takes images of another size than was trained.
int8 for OpenVINO is made by its own tool, NNCF, and may lose `--max-drop` points: [quantisation.md](quantisation.md).

The batch is 1 in the proof unless `--batch` says otherwise. Devices themselves were not tried: `rknn` is proved in the
simulator of its toolkit. Times are of a machine that others used meanwhile.

A target is a file of `cdl_deploy/targets/`: what it takes, and the script that runs it there. `make targets` makes an
environment for each, with the wheels that tests/runtimes/ pins, runs the tests that need them and shows the tables
below.

    cdl bench-latency tensor/student.onnx --runtime onnxruntime,openvino,mnn=~/mnn/bin/python
    cdl evaluate tensor/student.onnx --data photos/ --runtime openvino,tract

compare runtimes with the file that fits all of them, such as one of `--target portable`, or of `--target ncnn`, which
has no TopK. What to install is said where a runtime is missing. Apps: [examples/](../examples/README.md).

"""


def main() -> None:
    """Export, try, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path)
    parser.add_argument("--print", action="store_true", help="show the tables, and write nothing")
    parser.add_argument("--environments", type=Path, default=Path(".runtimes"))
    parser.add_argument(
        "--name", default="mini student of the digits", help="what the run's student is called on the page"
    )
    options = parser.parse_args()
    with scratch_folder("cdl-runtimes-run-") as folder:
        run = options.run or trained(folder / "run")
        rows = [row_of(run, target, options.environments) for target in targets().values()]
    versions = f"onnxruntime {onnxruntime.__version__}, Python {platform.python_version()}, {platform.machine()}"
    text = page(rows, options.name, versions)
    if options.print:
        print(text)
    else:
        PAGE.write_text(HEAD + text, encoding="utf-8")


def trained(run: Path) -> Path:
    """A small run: the digits in two tasks, two epochs each."""
    print("training on digits", file=sys.stderr)
    cdl_deploy.train("digits", out=run, tasks=2, epochs=2, seed=0)
    return run


def row_of(run: Path, target: Target, environments: Path) -> tuple[Target, Proof | str | None, float | None]:
    """How the student answered there, and the milliseconds that onnxruntime needs for the same file."""
    python = Path(sys.executable) if target.name in HERE else environments.absolute() / target.name / "bin" / "python"
    if not python.exists():
        return target, None, None
    print(target.name, file=sys.stderr)
    with scratch_folder("cdl-runtimes-") as folder:
        given = options_for_target(target.name)
        options = ExportOptions(teacher=False, latency=False, target_python=python, **given)
        try:
            exported: Exported = export_run(run, folder / "out", options)[0]
        except ParityError as error:  # is on the page as what it is
            return target, str(error), None
        assert isinstance(exported.proof, Proof)
        path, size = exported.bundle.path, exported.bundle.preprocessing
        if size.input == "image":
            feed = np.zeros((1, size.resize, size.resize, 3), np.uint8)
        else:
            feed = np.zeros((1, 3, size.height, size.width), np.float32)
        own = prove(find_target("onnxruntime"), path, feed, logits_of_file(path, feed, None))
        return target, exported.proof, own.ms


def page(rows: list[tuple[Target, Proof | str | None, float | None]], name: str, versions: str) -> str:
    """The tables."""
    lines = [
        f"## Tried: the {name}, {versions}",
        "",
        "| target | runtime | input, opset, names | file | MB | logits off by | same top-1 | × onnxruntime, 1 thread |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for target, proof, ms in rows:
        asked = f"{target.input}, {target.opset}, {'none' if target.labels == 'none' else 'yes'}"
        if isinstance(proof, str):
            lines.append(f"| `{target.name}` | refused: {proof} | {asked} | | | | | |")
            continue
        if proof is None or ms is None:
            lines.append(f"| `{target.name}` | not tried here: `{target.install}` | {asked} | | | | | |")
            continue
        runtime = " ".join([target.distribution, *proof.runtime.split()[1:]])
        same = same_answers(proof.top1_agreement, proof.images)
        lines.append(
            f"| `{target.name}` | {runtime} | {asked} | {proof.file} | "
            f"{proof.bytes / 1e6:.2f} | {proof.max_abs_logit_difference:.0e} | {same} | {proof.ms / ms:.1f} |"
        )
    lines += ["", "## What to know", ""]
    for target, _, _ in rows:
        lines.append(
            f"* `{target.name}`: opset {target.opsets[0]} to {target.opsets[1]}; {target.note}.".replace("; .", ".")
        )
        if target.quantiser is not None:
            files, tool = " and ".join(target.quantiser.converted), target.quantiser
            lines.append(f"    * `int8` is made by {tool.distribution} ({tool.install}): {files}.")
        lines += [f"    * Left away: a model that {why}." for why in target.lacks.values()]
        lines += [f"    * Refused with `{kind}`: {why}." for kind, why in target.refused.items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
