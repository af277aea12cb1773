"""`cdl export`: a run becomes one self-contained ONNX file for each learner, and a web page with the student in it."""

from __future__ import annotations

import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cdl_deploy.cli.export_web import check_page_options, print_page, write_model_page
from cdl_deploy.cli.missing import needs
from cdl_deploy.errors import OptionError

if TYPE_CHECKING:
    from cdl_deploy.export import Exported

EXAMPLES = """
cdl export runs/digits --onnx
cdl export runs/digits --onnx --out bundle --no-teacher
cdl export runs/digits --onnx --out tensors --input tensor
cdl export runs/digits --web site
cdl export bundle/student.onnx --web site
"""


def command(
    run: Annotated[
        Path,
        typer.Argument(metavar="RUN", help="Run directory; with --web also an exported model.", show_default=False),
    ],
    onnx: Annotated[bool, typer.Option("--onnx", help="Write ONNX files.")] = False,
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
    graph_input: Annotated[
        str,
        typer.Option(
            "--input",
            metavar="image|tensor",
            help="image: uint8 pixels of any size, preprocessed in the graph; tensor: a normalised float tensor.",
        ),
    ] = "image",
    opset: Annotated[int, typer.Option(metavar="N", help="ONNX opset, 18 to 23.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="Print the export report as JSON.")] = False,
) -> None:
    """Fold prompts, selection and heads into student.onnx (and teacher.onnx).

    Each file preprocesses images of any size, names its classes and describes itself. It is compared with the trained
    model on held-out images; if a logit differs by more than 0.0001, or any image gets another class, nothing is
    written. The web page classifies photographs and what a camera sees on the visitor's device, also offline.
    """
    if not onnx and web is None:
        raise OptionError("cdl export needs a format: add --onnx or --web DIR")
    if web is not None:
        check_page_options(run, web, graph_input, onnx, out)
        if run.suffix == ".onnx":
            write_model_page(run, web)
            print_page(web, as_json)
            return
    with needs("cdl export", "export"):
        from cdl_deploy.export import ExportOptions, export_run

    def on_step(text: str) -> None:
        if sys.stderr.isatty():
            typer.echo(text, err=True)

    options = ExportOptions(teacher=teacher and onnx, input=graph_input, opset=opset)
    with ExitStack() as scratch:
        destination = (out or run / "export") if onnx else Path(scratch.enter_context(tempfile.TemporaryDirectory()))
        exported = export_run(run, destination, options, on_step)
        if web is not None:
            write_model_page(destination / "student.onnx", web)
    if web is not None and not (onnx and as_json):
        print_page(web, as_json)
    if not onnx:
        return
    if as_json:
        import json

        typer.echo(json.dumps([item.to_dict() for item in exported], indent=2))
    else:
        _print(exported, destination)


def _print(exported: list[Exported], destination: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"Exported to {destination}")
    for column in ("file", "MB", "parameters", "nodes", "classes", "largest logit difference", "same top-1"):
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
    console.print(f"Next: cdl bench-latency {destination}", highlight=False)
