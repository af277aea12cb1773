"""`cdl head`: a finished run with other heads, so that everyone can see what its own lose."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from dataclasses import replace
from inspect import Parameter, signature
from pathlib import Path
from typing import Annotated, Any

import typer

from cdl_deploy.cli.options_help import GroupedCommand, parameters
from cdl_deploy.cli.signals import stop_on_signals
from cdl_deploy.errors import OptionError
from cdl_deploy.require_extra import require_extra
from cdl_deploy.run.method_options import REHEAD_OPTIONS, HeadOptions
from cdl_deploy.run.options import Declared, options_of

EXAMPLES = """
cdl head runs/photos --head slda --out runs/photos-slda
cdl head runs/photos --head ridge --random-features 2000 --out runs/photos-ranpac
"""
CLASS = GroupedCommand


def command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The finished run.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", metavar="RUN2", help="The run to write.", show_default=False)],
    as_json: Annotated[bool, typer.Option("--json", help="Print the new run's record as JSON.")] = False,
    **options: Any,
) -> None:
    """Give a finished run closed-form heads: one pass over its images, no training.

    Prompts and what the distillation trained stay as they are. The images of every task must still be there.
    """
    with require_extra("cdl head", "train"):
        from cdl_deploy.cli.train_progress import show_training
        from cdl_deploy.training.progress import Stopped
        from cdl_deploy.training.revisions import new_heads
    given = {name: value for name, value in options.items() if value is not None and value is not False}
    if "head" not in given:
        raise OptionError("no head is given: add --head slda, ridge or ncm")
    quiet = not sys.stderr.isatty()
    with nullcontext(None) if quiet else show_training() as progress, stop_on_signals() as stop:
        try:
            record = new_heads(run, out, given, progress, stop)
        except (Stopped, KeyboardInterrupt):
            raise typer.Exit(stop.exit_code if stop() else 130) from None
    from cdl_deploy.cli.train import print_run

    print_run(record, out, as_json)


def _asked(declared: Declared) -> Declared:
    """The option as this command has it: a head in closed form must be named."""
    if declared.name not in ("head", "teacher_head"):
        return declared
    closed = tuple(name for name in declared.about.choices if name != "learned")
    about = replace(declared.about, choices=closed)
    if declared.name == "head":
        about = replace(
            about,
            help="What classifies: a Gaussian classifier, ridge regression or the nearest mean. Must be given.",
            default="",
        )
    return replace(declared, about=about)


_own = signature(command, eval_str=True)
command.__signature__ = _own.replace(  # type: ignore[attr-defined]
    parameters=[
        *(it for it in _own.parameters.values() if it.kind is not Parameter.VAR_KEYWORD),
        *(
            made
            for declared in options_of(HeadOptions)
            if declared.name in REHEAD_OPTIONS
            for made in parameters(_asked(declared))
        ),
    ]
)
