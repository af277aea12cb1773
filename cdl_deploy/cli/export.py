"""`cdl export`: a run becomes one self-contained ONNX file for each learner, and a web page with the student in it."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cdl_deploy.cli.export_web import check_no_more_options, check_page_options, print_page, write_model_page
from cdl_deploy.cli.output import echo, echo_json, make_console
from cdl_deploy.counted import at_most, counted, same_answers, small
from cdl_deploy.errors import OptionError
from cdl_deploy.folders import scratch_folder
from cdl_deploy.printable import as_typed
from cdl_deploy.require_extra import require_extra

if TYPE_CHECKING:
    from rich.console import Console

    from cdl_deploy.export import Exported

EXAMPLES = """
cdl export runs/digits --onnx
cdl export runs/digits --onnx --out bundle --no-teacher
cdl export runs/digits --onnx --out tensors --input tensor
cdl export runs/digits --web site
cdl export bundle/student.onnx --web site
cdl export runs/digits --onnx --quantize int8 --fp16 --ort
cdl export runs/digits --onnx --out v2 --update-from v1/student.onnx
cdl export runs/digits --target openvino
cdl export runs/digits --onnx --out night-shift --select images:samples/night
"""


def command(
    run: Annotated[
        Path,
        typer.Argument(metavar="RUN", help="Run directory; with --web also an exported model.", show_default=False),
    ],
    onnx: Annotated[
        bool, typer.Option("--onnx", help="Write ONNX files; with --web as well. Default, unless --web is given.")
    ] = False,
    web: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Write a web page with the student in it, for any static host.", show_default=False
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder to write. Default: RUN/export.", show_default=False)
    ] = None,
    teacher: Annotated[bool, typer.Option("--teacher/--no-teacher", help="Export the teacher as well.")] = True,
    target: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Write for another runtime, convert where that is the way, and try the file in it: onnxruntime, "
            "openvino, tract, tinygrad, mnn, ncnn, litert, executorch, tvm, rknn, or portable for most converters. "
            "Without --out: RUN/export/NAME.",
            show_default=False,
        ),
    ] = None,
    target_python: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH", help="A Python that has the target's runtime. Default: this one.", show_default=False
        ),
    ] = None,
    graph_input: Annotated[
        str | None,
        typer.Option(
            "--input",
            metavar="image|tensor",
            help="image: uint8 pixels of any size, preprocessed in the graph; tensor: a normalised float tensor. "
            "Default: image, or what the target takes.",
            show_default=False,
        ),
    ] = None,
    select: Annotated[
        str,
        typer.Option(
            metavar="in-graph|task:K|images:DIR",
            help="Who selects prompts: each image in the graph; or once at export, by the images of task K or of DIR.",
        ),
    ] = "in-graph",
    opset: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="ONNX opset, 17 to 23. Default: 20, or what the target takes.", show_default=False
        ),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(
            metavar="graph|none",
            help="graph: an output with the best classes' names; none: their positions alone, for runtimes without "
            "strings (names stay in metadata and .json). Default: graph, or what the target takes.",
            show_default=False,
        ),
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(metavar="N", help="Fix the number of images in one run. Default: any.", show_default=False),
    ] = None,
    image_size: Annotated[
        str | None,
        typer.Option(
            metavar="H,W",
            help="Fix height and width of the images, and compute beforehand how they are resized. Default: any.",
            show_default=False,
        ),
    ] = None,
    quantize: Annotated[
        str | None,
        typer.Option(
            metavar="KIND",
            help="int8 (fixed scales: the same answer in any batch), int8-dynamic (each batch scales itself), or both "
            "with a comma: writes student.KIND.onnx as well. With --target openvino NNCF makes int8: "
            "student.int8-nncf.xml.",
            show_default=False,
        ),
    ] = None,
    fp16: Annotated[bool, typer.Option("--fp16", help="Write student.fp16.onnx as well.")] = False,
    calibrate: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Images for the scales of int8. Default: the run's training images, or what it keeps.",
            show_default=False,
        ),
    ] = None,
    max_drop: Annotated[
        float, typer.Option(metavar="POINTS", help="Accuracy that a smaller variant may lose on held-out images.")
    ] = 0.5,
    ort: Annotated[bool, typer.Option("--ort", help="Write each file in onnxruntime's .ort format as well.")] = False,
    tokens: Annotated[
        float,
        typer.Option(
            metavar="SHARE",
            help="Merge patch tokens that are alike until at most this share of them is left: half can go in a block, "
            "from the first prompted one on, and those after it compute the rest. Faster, less accurate.",
        ),
    ] = 1.0,
    update_from: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="OLD",
            help="An older exported model, or a folder of them: write NAME.cdlup as well, the update that makes the "
            "new file from it (see cdl update). May be repeated.",
            show_default=False,
        ),
    ] = None,
    statistics: Annotated[
        bool,
        typer.Option(
            "--statistics/--no-statistics",
            help="Of a closed-form head: outputs features and distance, and the sums that it was solved from beside "
            "the file. Without: a classifier, and nothing else.",
        ),
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print the export report as JSON.")] = False,
) -> None:
    """Fold prompts, selection and heads into student.onnx (and teacher.onnx).

    Each file preprocesses images of any size, names its classes and describes itself. It is compared with the trained
    model on held-out images; if a logit differs by more than 0.0001, or any image gets another class, nothing is
    written. The web page classifies photographs and what a camera sees on the visitor's device, also offline. With
    a closed-form head it can be taught new classes there.
    """
    if run.suffix == ".onnx" and web is None and not run.is_dir():
        raise OptionError(f"{run} is exported already: give the run, or add --web DIR for a page with this model")
    onnx = onnx or target is not None or web is None
    if target is not None and web is not None:
        raise OptionError("--target does not go with --web: a page runs onnxruntime's own web runtime")
    if target_python is not None and target is None:
        raise OptionError("--target-python is for --target: add it, or leave it out")
    if web is not None:
        check_page_options(
            run, web, graph_input or "image", onnx, out, labels or "graph", batch is not None or image_size is not None
        )
        if run.suffix == ".onnx":
            of_a_run = {
                "--select": select != "in-graph", "--opset": opset is not None,
                "--quantize": quantize is not None, "--fp16": fp16, "--calibrate": calibrate is not None, "--ort": ort,
                "--tokens": tokens != 1.0, "--update-from": bool(update_from),
            }  # fmt: skip
            check_no_more_options(run, of_a_run)
            write_model_page(run, web, statistics)
            print_page(web, as_json)
            return
    with require_extra("cdl export", "export"):
        from cdl_deploy.export import (
            ExportOptions,
            Shrink,
            export_run,
            left_behind,
            options_for_target,
            parse_image_size,
        )

    def on_step(text: str) -> None:
        if sys.stderr.isatty():
            echo(text, err=True)

    kinds = [kind.strip() for kind in (quantize or "").split(",") if kind.strip()] + ["fp16"] * fp16
    shrink = Shrink(tuple(dict.fromkeys(kinds)), calibrate, max_drop)
    options = ExportOptions(
        teacher=teacher and onnx,
        select=select,
        target_python=target_python,
        **options_for_target(
            target,
            input=graph_input,
            labels=labels,
            opset=opset,
            batch=batch,
            image_size=None if image_size is None else parse_image_size(image_size),
            kinds=shrink.kinds,
            tokens=tokens,
        ),
        shrink=shrink,
        ort=ort,
        statistics=statistics,
        tokens=tokens,
        update_from=tuple(update_from or ()),
    )
    with ExitStack() as scratch:
        destination = (
            (out or run / "export" / (target or ""))
            if onnx
            else scratch.enter_context(scratch_folder("cdl-page-")) / "bundle"
        )
        exported = export_run(run, destination, options, on_step)
        if web is not None:
            write_model_page(destination / "student.onnx", web)
    if web is not None and not (onnx and as_json):
        print_page(web, as_json)
    if not onnx:
        return
    for name, what in left_behind(destination, exported).items():
        again = "make it again with --quantize or --fp16, or delete it"
        if name == "teacher.onnx":
            again = "delete it, or, where the run has a teacher, export it as well"
        echo(f"note: {destination / name} is of an earlier export and {what}: {again}", err=True)
    if as_json:
        echo_json([item.to_dict() for item in exported])
    else:
        _print(exported, destination, next_command(exported, destination, target, target_python))


def next_command(exported: list[Exported], destination: Path, target: str | None, python: Path | None) -> str:
    """What measures what was written, in the runtime that it was proved in as well."""
    from cdl_deploy.targets import find_target
    from cdl_deploy.targets.checking import Proof

    student = exported[0]
    if target in (None, "onnxruntime") or not isinstance(student.proof, Proof) or not find_target(target).runtime:
        return f"cdl bench-latency {as_typed(destination)}"
    place = target if python is None else f"{target}={as_typed(python)}"
    return f"cdl bench-latency {as_typed(student.bundle.path)} --runtime onnxruntime,{place}"


def _print(exported: list[Exported], destination: Path, following: str) -> None:
    from rich.table import Table

    table = Table(title=f"Exported to {destination}")
    for column in ("file", "MB", "parameters", "nodes", "ms", "classes", "logit off by", "same top-1"):
        table.add_column(column, justify="left" if column == "file" else "right", no_wrap=column == "file")
    for item in exported:
        parity = item.bundle.parity
        assert parity is not None
        table.add_row(
            item.bundle.path.name,
            f"{item.bytes / 1e6:.2f}",
            f"{item.bundle.parameters:,}",
            str(item.nodes),
            "" if item.latency_ms is None else f"{item.latency_ms:.1f}",
            str(len(item.bundle.classes)),
            at_most(parity.max_abs_logit_difference),
            same_answers(parity.top1_agreement, parity.images),
        )
    console = make_console()
    console.print(table)
    for item in exported:
        _print_tokens(console, item)
        _print_variant(console, item)
        for update in item.updates:
            share = update.bytes / item.bytes
            console.print(
                f"{update.path.name}: {update.bytes / 1e6:.2f} MB, {share:.2%} of {item.bundle.path.name}, updates "
                f"{update.base}{' (which shares little with it: send the whole file)' if share > 0.5 else ''}",
                highlight=False,
                soft_wrap=True,
            )
    for item in exported:
        _print_proof(console, item)
    console.print(f"Next: {following}", highlight=False, soft_wrap=True)


def _print_tokens(console: Console, item: Exported) -> None:
    """What merging patch tokens did to a file's answers."""
    from cdl_deploy.cli.inspect_table import patch_tokens_words

    tokens, name = item.bundle.patch_tokens, item.bundle.path.name
    if tokens is None or item.bundle.quantization is not None:
        return
    console.print(f"{name}: patch tokens: {patch_tokens_words(tokens)}", highlight=False, soft_wrap=True)
    if item.closed_form and tokens.head == "trained":
        console.print(
            "  it cannot learn, nor say unknown: to solve its head anew, the training images of all tasks must still "
            "be there, and a ridge head must not weigh its teacher",
            highlight=False,
            soft_wrap=True,
        )
    if item.close:
        console.print(
            f"  {counted(item.close, 'held-out image')} left out of the comparison: two merges are equally good there, "
            "to within rounding",
            highlight=False,
            soft_wrap=True,
        )


def _print_proof(console: Console, item: Exported) -> None:
    """How a file answered in the runtime it is for, or how to install that."""
    from cdl_deploy.targets.checking import NotInstalled

    proof, name = item.proof, item.bundle.path.name
    if item.quantiser is not None:
        tool = item.quantiser
        console.print(
            f"int8 by {tool.target} was not made: it is not installed {tool.where}: {tool.install}, or "
            f"name a Python that has it with --target-python; {name}, of which it is made, was written",
            highlight=False,
            soft_wrap=True,
        )
    if proof is None:
        return
    said = (
        f"{name} was written and not tried: {proof.target} is not installed {proof.where}: {proof.install}"
        if isinstance(proof, NotInstalled)
        else f"{proof.file} in {proof.runtime}: logits off by {small(proof.max_abs_logit_difference)}, same top-1 for "
        f"{same_answers(proof.top1_agreement, proof.images)}, {proof.bytes / 1e6:.2f} MB, {proof.ms:.1f} ms on one "
        "thread"
    )
    console.print(said, highlight=False, soft_wrap=True)


def _print_variant(console: Console, item: Exported) -> None:
    """What being smaller did to a variant's answers, and what was not made smaller."""
    quantization = item.bundle.quantization
    if quantization is None:
        return
    before, after = quantization.accuracy_before, quantization.accuracy_after
    kept = quantization.kept_float
    console.print(
        f"{item.bundle.path.name}: {before:.1f} % right as fp32, {after:.1f} % as {quantization.kind}, in the "
        f"mean of the tasks, on {counted(item.held_out or 0, 'held-out image')}",
        highlight=False,
        soft_wrap=True,
    )
    left = f"but {', '.join(kept)}" if kept else "none left out"
    own = f" and {item.scores} of queries with keys" if item.scores else ""
    floats = "fp32" if item.bundle.path.suffix == ".onnx" else "float, as precise as the runtime chooses,"
    console.print(
        f"  {item.products} products of tokens with a matrix{own}, {left}; in {floats} are:",
        highlight=False,
        soft_wrap=True,
    )
    for part, reason in item.left_float.items():
        console.print(f"    {part}: {reason}", highlight=False)
    if item.calibration:
        console.print(f"  scales from {item.calibration}", highlight=False)
    if item.learned_from:
        console.print(
            f"  it can learn: its own sums, over {counted(item.learned_from, 'training image')}", highlight=False
        )
    elif item.bundle.features is not None and quantization.kind == "int8":
        why = "for sums of its own the training images of all tasks must still be there"
        if item.sums_drop is not None:
            why = (
                f"solved from sums of its own, its head would lose {item.sums_drop:.2g} points of accuracy, more than "
                "--max-drop allows"
            )
        console.print(f"  it cannot learn: {why}", highlight=False, soft_wrap=True)
    if not quantization.batch_invariant:
        console.print("  an image's answer depends a little on the others in its batch", highlight=False)
