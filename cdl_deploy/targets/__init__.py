"""Other runtimes: what each takes, and how a model is run there. Every file here but those named below defines one."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

from cdl_deploy.errors import OptionError, nearest
from cdl_deploy.targets.target import Target

NO_TARGETS = ("target", "checking", "client", "process", "target_options", "scripts")


@cache
def targets() -> dict[str, Target]:
    """By name."""
    names = [it.name for it in pkgutil.iter_modules(__path__) if it.name not in NO_TARGETS]
    found = [importlib.import_module(f"{__name__}.{name}").TARGET for name in names]
    return {it.name: it for it in sorted(found, key=lambda it: it.name != "onnxruntime")}


def find_target(name: str, option: str = "--target") -> Target:
    """Raises OptionError, with the nearest name, for one that is unknown."""
    known = targets()
    if name not in known:
        wanted = [it.name for it in known.values() if it.runtime or option == "--target"]
        raise OptionError(f"unknown {option} '{name}', expected one of {', '.join(wanted)}{nearest(name, wanted)}")
    return known[name]
