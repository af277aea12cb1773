"""Parameters of a command made from options, and a help that groups them under headings."""

from __future__ import annotations

from inspect import Parameter
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from cdl_deploy.run.options import Declared, flag


def parameters(declared: Declared) -> list[Parameter]:
    """What the command takes for an option: itself, and under its old name, hidden."""
    kind: Any = bool if declared.kind is bool else declared.kind | None
    default = False if declared.kind is bool else None
    made = [
        Parameter(
            declared.name,
            Parameter.KEYWORD_ONLY,
            default=default,
            annotation=Annotated[
                kind,
                typer.Option(
                    declared.flag,
                    metavar=declared.metavar,
                    help=declared.help,
                    rich_help_panel=declared.group,
                    show_default=False,
                ),
            ],
        )
    ]
    if declared.about.was:
        old = typer.Option(flag(declared.about.was), hidden=True)
        made.append(
            Parameter(declared.about.was, Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, old])
        )
    return made


class GroupedCommand(TyperCommand):
    """A command whose options stand under the headings they were given, in the order of their first option."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the sections of the help."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                kind = "Arguments" if parameter.param_type_name == "argument" else "Options"
                sections.setdefault(getattr(parameter, "rich_help_panel", None) or kind, []).append(record)
        sections["Options"] = sections.pop("Options", [])  # last: --help is one of them
        for heading, records in sections.items():
            if records:
                with formatter.section(heading):
                    formatter.write_dl(records)
