"""`--update-from`: beside an exported model, the update that makes it from an older one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cdl_deploy.errors import OptionError
from cdl_deploy.runtime.bundle import ROLES, read_bundle
from cdl_deploy.update.file import SUFFIX
from cdl_deploy.update.patch import make_update


@dataclass(frozen=True)
class MadeUpdate:
    """One update that was written."""

    path: Path
    """The `.cdlup` file."""
    base: Path
    """The older model it is for."""
    bytes: int
    """Its size."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**asdict(self), "path": str(self.path), "base": str(self.base)}


def older_models(sources: Sequence[Path], roles: Sequence[str]) -> Mapping[str, list[Path]]:
    """The models to update from, by role. A folder stands for those in it whose role is exported.

    Raises OptionError where there is none, or one of a role that is not exported, and BundleError for a file that is
    no exported model: all before the minutes that an export takes.
    """
    found: dict[str, list[Path]] = defaultdict(list)
    for source in sources:
        if source.is_dir():
            inside = {role: source / f"{role}.onnx" for role in ROLES if (source / f"{role}.onnx").is_file()}
            if not inside.keys() & set(roles):
                expected = " or ".join(f"{role}.onnx" for role in roles)
                raise OptionError(f"--update-from {source} is a folder without {expected}: give the older model itself")
            paths = [path for role, path in inside.items() if role in roles]
        else:
            paths = [source]
        for path in paths:
            role = read_bundle(path).role
            if role not in roles:
                raise OptionError(
                    f"--update-from {path} is a {role}, and this export writes only the {' and '.join(roles)}: "
                    f"give an older one of these"
                )
            if all(path.resolve() != other.resolve() for other in found[role]):
                found[role].append(path)
    return found


def make_updates(model: Path, older: Sequence[Path]) -> tuple[MadeUpdate, ...]:
    """Write `NAME.cdlup` beside `model`; of several older models, each gets one named after the model's hash."""
    made = []
    for base in older:
        update = make_update(base, model, model.with_suffix(SUFFIX))
        path = update.path
        if len(older) > 1:
            path = model.with_name(f"{model.stem}.from-{update.header.base.sha256[:8]}{SUFFIX}")
            update.path.replace(path)
        made.append(MadeUpdate(path, base, path.stat().st_size))
    return tuple(made)
