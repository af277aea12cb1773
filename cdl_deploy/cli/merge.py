"""`cdl merge`: models that learned different things on different devices become one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cdl_deploy.cli.output import echo, echo_json
from cdl_deploy.counted import counted
from cdl_deploy.errors import OptionError
from cdl_deploy.require_extra import require_extra

EXAMPLES = """
cdl merge kitchen.onnx workshop.onnx -o both.onnx
"""


def command(
    models: Annotated[
        list[Path],
        typer.Argument(metavar="MODEL...", help="Models that learned from one exported file.", show_default=False),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", metavar="NEW", help="File to write; may be the first MODEL.", show_default=False
        ),
    ],
    as_new: Annotated[
        bool, typer.Option("--as-new", help="Names that differ in spelling alone are different classes.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was done as JSON.")] = False,
) -> None:
    """Make one model of several that learned different things from the same one, as if it had seen all images.

    No image is needed: sums are added, what the models had in common is counted once. Statistics must lie beside each.
    """
    if len(models) < 2:
        raise OptionError("one model is given, expected at least two that learned from the same one")
    with require_extra("cdl merge"):
        from cdl_deploy.learn.learner import Learner
    learners = [Learner(path) for path in models]
    first = learners[0].merge(*learners[1:], as_new=as_new)
    first.save(output)
    if as_json:
        echo_json({"path": str(output), "classes": list(first.classes), "images": first.images})
    else:
        now = f"{counted(len(first.classes), 'class')}, {counted(len(first.additions), 'addition')}"
        echo(f"{output}: {len(models)} models merged; now {now}")
    for learner in learners:
        learner.close()
