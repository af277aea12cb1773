"""`cdl export`: a run becomes one self-contained ONNX file for each learner."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cdl_deploy.cli.missing import needs
from cdl_deploy.errors import OptionError

if TYPE_CHECKING:
    from cdl_deploy.export import Exported

EXAMPLES = """
cdl export runs/digits --onnx
cdl export runs/digits --onnx --out bundle --no-teacher
cdl export runs/digits --onnx --out tensors --input tensor
cdl export runs/digits --onnx --out v2 --update-from v1/student.onnx
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
    update_from: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="OLD",
            help="An older exported model, or a folder of them: write NAME.cdlup as well, the update that makes the "
            "new file from it (see cdl update). May be repeated.",
            show_default=False,
        ),
    ] = None,
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
        from cdl_deploy.export import ExportOptions, export_run
    destination = out if out is not None else run / "export"

    def on_step(text: str) -> None:
        if sys.stderr.isatty():
            typer.echo(text, err=True)

    options = ExportOptions(teacher=teacher, input=graph_input, opset=opset, update_from=tuple(update_from or ()))
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
    for item in exported:
        for update in item.updates:
            share = update.bytes / item.bytes
            console.print(
                f"{update.path.name}: {update.bytes / 1e6:.2f} MB, {share:.2%} of {item.bundle.path.name}, updates "
                f"{update.base}{' (which shares little with it: send the whole file)' if share > 0.5 else ''}",
                highlight=False,
                soft_wrap=True,
            )
    console.print(f"Next: cdl bench-latency {destination}", highlight=False)
