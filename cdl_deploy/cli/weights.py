"""`cdl weights`: what a file of weights is, and which model it fits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cdl_deploy.cli.output import echo, echo_json, make_console
from cdl_deploy.errors import OptionError
from cdl_deploy.require_extra import require_extra

if TYPE_CHECKING:
    from cdl_deploy.training.backbones.weights_files.inspection import Report

EXAMPLES = """
cdl weights model.safetensors
cdl weights dinov2-small/ --out vit_small_dinov2.safetensors
cdl weights hf_hub:facebook/dinov2-small --json
"""
NAMED = 4


def command(
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE|FOLDER|NAME",
            help="A file of weights, the folder of a hub's snapshot, or a name: timm/…, hf_hub:OWNER/…",
            show_default=False,
        ),
    ],
    model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL", help="Of several timm models that fit, take this one.", show_default="the likeliest"
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="NEW", help="Write them as timm's safetensors to this file.", show_default=False),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Say what a file of weights is, which timm model it fits, at which image size, and what would be left out.

    It may be timm's, DINO's, DINOv2's or DINOv3's, of Hugging Face transformers (ViT, DeiT, DINOv2, DINOv3, SigLIP,
    CLIP), OpenCLIP, torchvision or big_vision (.npz), a trainer's checkpoint, or an ONNX file of a ViT. No code of a
    file is run. cdl train takes the same for --student-weights and --teacher-weights.
    """
    if out is not None and out.suffix != ".safetensors":
        raise OptionError(f"--out {out} has the suffix '{out.suffix}', expected .safetensors")
    with require_extra("cdl weights", "train"):
        from cdl_deploy.training.backbones.weights_files.inspection import inspect_weights, write_timm
    report = inspect_weights(file, model)
    written = write_timm(report, out) if out is not None else None
    if as_json:
        echo_json(report.to_dict() | ({} if out is None else {"written": str(out)}))
        return
    make_console().print(_table(report))
    if written is not None:
        echo(f"{out}: {written} tensors, float32, for timm's {report.model}")


def _table(report: Report) -> object:
    from rich.table import Table
    from rich.text import Text

    weights, found = report.weights, report.fits.found
    rows = {
        "file": str(weights.file),
        "names": weights.layout + (f", under '{weights.place}'" if weights.place else ""),
        "not taken": ", ".join(weights.others),
        "network": (report.measured.words() if report.measured else "not known")
        + (f", {weights.heads} heads" if weights.heads else ""),
        "checked": weights.checked or "",
        "fits": f"{report.model} at {report.image_size}x{report.image_size}"
        if report.model
        else "no model of timm's" + (f"; nearest is {report.fits.nearest}" if report.fits.nearest else ""),
        "differs": (report.fits.why or "") if report.model is None else "",
        "fits too": _first([fit.model for fit in found if fit.model != report.model]),
        "pixels": _pixels(report),
        "left out": _first(report.left_out) or "nothing",
        "cdl train": _use(report),
    }
    facts = Table(show_header=False)
    facts.add_column(no_wrap=True)
    facts.add_column(overflow="fold")
    for name, text in rows.items():
        if text:
            facts.add_row(name, Text(text))
    return facts


def _first(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def _pixels(report: Report) -> str:
    pixels = report.weights.pixels
    if not {"mean", "std"} <= pixels.keys():
        return "mean and deviation are not said"
    mean, std = (", ".join(f"{value:g}" for value in pixels[name]) for name in ("mean", "std"))
    return f"mean {mean}; std {std} ({', '.join(report.weights.description.sources)})"


def _use(report: Report) -> str:
    if report.model is None:
        return "cannot use it"
    if report.refused is not None:
        return f"refuses it: {report.refused}"
    return f"--student {report.model} --student-weights {report.weights.file}"
