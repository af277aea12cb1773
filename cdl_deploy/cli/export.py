"""`cdl export`: a run becomes one self-contained ONNX file for each learner."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cdl_deploy.cli.missing import needs
from cdl_deploy.errors import OptionError

if TYPE_CHECKING:
    from rich.console import Console

    from cdl_deploy.export import Exported

EXAMPLES = """
cdl export runs/digits --onnx
cdl export runs/digits --onnx --out bundle --no-teacher
cdl export runs/digits --onnx --out tensors --input tensor
cdl export runs/digits --onnx --quantize int8 --fp16 --ort
"""


def command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run directory.", show_default=False)],
    onnx: Annotated[bool, typer.Option("--onnx", help="Write ONNX files (the one format there is).")] = False,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder to write. Default: RUN/export.", show_default=False)
    ] = None,
    teacher: Annotated[bool, typer.Option("--teacher/--no-teacher", help="Export the teacher as well.")] = True,
    graph_input: Annotated[
        str,
        typer.Option(
            "--input",
            metavar="image|tensor",
            help="image: uint8 pixels of any size, preprocessed in the graph; tensor: a normalised float tensor.",
        ),
    ] = "image",
    opset: Annotated[int, typer.Option(metavar="N", help="ONNX opset, 18 to 23.")] = 20,
    quantize: Annotated[
        str | None,
        typer.Option(
            metavar="KIND",
            help="int8 (fixed scales: the same answer in any batch), int8-dynamic (each batch scales itself), or both "
            "with a comma: writes student.KIND.onnx as well.",
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
    as_json: Annotated[bool, typer.Option("--json", help="Print the export report as JSON.")] = False,
) -> None:
    """Fold prompts, selection and heads into student.onnx (and teacher.onnx).

    Each file preprocesses images of any size, names its classes and describes itself. It is compared with the trained
    model on held-out images; if a logit differs by more than 0.0001, or any image gets another class, nothing is
    written.
    """
    if not onnx:
        raise OptionError("cdl export needs a format: add --onnx")
    with needs("cdl export", "export"):
        from cdl_deploy.export import ExportOptions, Shrink, export_run
    destination = out if out is not None else run / "export"

    def on_step(text: str) -> None:
        if sys.stderr.isatty():
            typer.echo(text, err=True)

    kinds = [kind.strip() for kind in (quantize or "").split(",") if kind.strip()] + ["fp16"] * fp16
    shrink = Shrink(tuple(dict.fromkeys(kinds)), calibrate, max_drop)
    options = ExportOptions(teacher=teacher, input=graph_input, opset=opset, shrink=shrink, ort=ort)
    exported = export_run(run, destination, options, on_step)
    if as_json:
        import json

        typer.echo(json.dumps([item.to_dict() for item in exported], indent=2))
    else:
        _print(exported, destination)


def _print(exported: list[Exported], destination: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"Exported to {destination}")
    for column in ("file", "MB", "parameters", "nodes", "classes", "logit off by", "same top-1"):
        table.add_column(column, justify="left" if column == "file" else "right", no_wrap=column == "file")
    for item in exported:
        parity = item.bundle.parity
        assert parity is not None
        table.add_row(
            item.bundle.path.name,
            f"{item.bytes / 1e6:.2f}",
            f"{item.bundle.parameters:,}",
            str(item.nodes),
            str(len(item.bundle.classes)),
            f"{parity.max_abs_logit_difference:.1e}",
            f"{parity.top1_agreement:.0%} of {parity.images}",
        )
    console = Console()
    console.print(table)
    for item in exported:
        _print_variant(console, item)
    console.print(f"Next: cdl bench-latency {destination}", highlight=False)


def _print_variant(console: Console, item: Exported) -> None:
    """What being smaller did to a variant's answers, and what was not made smaller."""
    quantization = item.bundle.quantization
    if quantization is None:
        return
    before, after = quantization.accuracy_before, quantization.accuracy_after
    kept = quantization.kept_float
    console.print(
        f"{item.bundle.path.name}: {before:.1f} % right as fp32, {after:.1f} % as {quantization.kind}, on "
        f"{item.held_out} held-out images",
        highlight=False,
    )
    left = f"but {', '.join(kept)}" if kept else "none left out"
    console.print(
        f"  {item.products} products of tokens with a matrix, {left}; selection, heads, attention and norms stay fp32",
        highlight=False,
    )
    if item.calibration:
        console.print(f"  scales from {item.calibration}", highlight=False)
    if not quantization.batch_invariant:
        console.print("  an image's answer depends a little on the others in its batch", highlight=False)
