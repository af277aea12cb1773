"""`cdl update`: the next version of a model on a device that has the last one."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from cdl_deploy.cli.output import echo, echo_json
from cdl_deploy.errors import BundleError, UpdateError
from cdl_deploy.require_extra import require_extra

EXAMPLES = """
cdl update old.onnx student.cdlup -o new.onnx
cdl update student.onnx student.cdlup -o student.onnx
cdl update student.onnx updates/*.cdlup -o student.onnx --json
"""


def command(
    old: Annotated[Path, typer.Argument(metavar="OLD", help="The model that is here (.onnx).", show_default=False)],
    updates: Annotated[
        list[Path],
        typer.Argument(
            metavar="UPDATE...",
            help="Updates (.cdlup): one, or several that follow one another, in any order.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="NEW", help="File to write; may be OLD.", show_default=False),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print what was done as JSON.")] = False,
) -> None:
    """Make the next version of a model from the one that is here and a small update.

    cdl export RUN --onnx --update-from OLD.onnx makes updates. The result is, to the byte, the file that was exported,
    and appears when it has been checked and onnxruntime has opened it, or not at all; until then NEW stays as it was.
    An update for another model, or a damaged one, is refused. Updates that OLD has already are skipped. Where OLD has
    its description beside it as a .json file, NEW gets one.
    """
    with require_extra("cdl update"):
        from cdl_deploy.files import json_text, leftovers
        from cdl_deploy.runtime.bundle import Bundle, description, description_file, read_bundle
        from cdl_deploy.update.news import news
        from cdl_deploy.update.patch import apply_updates

    def bundle(path: Path) -> Bundle | None:
        try:
            return read_bundle(path)
        except BundleError:
            return None

    told: list[str] = []
    beside = description_file(output)
    described = description_file(old).is_file() or bool(leftovers(beside))  # of an update that was killed

    def look(path: Path) -> None:
        """Before the new file takes its place: what both say about themselves, and whether the new one works here."""
        try:
            new = read_bundle(path)
        except BundleError as error:
            hidden = re.escape(
                str(path.with_name(path.name.rpartition("-")[0]))
            )  # and the rest, which may be cut short
            why = re.sub(rf"{hidden}[^\s:)]*", lambda _: str(output), str(error))
            raise UpdateError(f"the updated model cannot be used here, nothing was changed: {why}") from error
        told.append(news(bundle(old), new))

    def describe(path: Path) -> tuple[Path, str] | None:
        """The description beside the new file, where the old one has one."""
        new = bundle(path) if described else None
        return (beside, json_text(description(new))) if new is not None else None

    done = apply_updates(old, updates, output, look, describe)
    brought = told[0] if done.updates else "up to date already"
    if as_json:
        record = {
            "path": str(output),
            "bytes": done.identity.bytes,
            "sha256": done.identity.sha256,
            "applied": [str(path) for path in done.updates],
            "news": brought,
        }
        echo_json(record)
    else:
        echo(f"{output}: {brought}")
