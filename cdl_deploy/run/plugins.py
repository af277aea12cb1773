"""Methods and distillations of other packages, found by their entry points.

    [project.entry-points."cdl_deploy.methods"]
    soft = "my_package.soft:SoftPrompt"

Nothing is imported before it is asked for: such a package imports PyTorch.
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import entry_points
from typing import Any

from cdl_deploy.errors import OptionError
from cdl_deploy.run.options import Declared, Options, options_of

METHODS, DISTILLATIONS = "cdl_deploy.methods", "cdl_deploy.distillations"
HEADS, BACKBONES = "cdl_deploy.heads", "cdl_deploy.backbones"
"""Groups of entry points: the name is that of `--method` or `--distill`, the value a class with a `Config`. Heads go
by the name of `--student-head`; a family of backbones by none: the first that takes a network has it."""


@cache
def registered(group: str) -> dict[str, Any]:
    """The classes of other packages, by name. Raises OptionError for one that cannot be imported."""
    found = {}
    for point in entry_points(group=group):
        try:
            found[point.name] = point.load()
        except Exception as error:
            reason = " ".join(str(error).split())
            raise OptionError(
                f"'{point.name}' of {point.value} cannot be loaded ({type(error).__name__}: {reason}): "
                "mend or uninstall the package that registers it"
            ) from error
    return found


def configs() -> dict[str, type[Options]]:
    """The classes of options of all of them, by the name of the method or distillation."""
    classes = {**registered(METHODS), **registered(DISTILLATIONS)}
    return {name: made.Config for name, made in classes.items() if hasattr(made, "Config")}


def options() -> list[Declared]:
    """The options of all of them, each once."""
    found = {declared.name: declared for config in configs().values() for declared in options_of(config)}
    return list(found.values())
