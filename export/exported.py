"""What an export tells of each file that it has written."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from cdl_deploy.export.updates import MadeUpdate
from cdl_deploy.runtime.bundle import Bundle
from cdl_deploy.targets.checking import NotInstalled, Proof


@dataclass(frozen=True)
class Exported:
    """One file that was written."""

    bundle: Bundle
    bytes: int
    nodes: int
    held_out: int | None = None
    """Of a smaller variant: images that its accuracy was measured on."""
    calibration: str | None = None
    """Of an int8 variant: which images its scales come from."""
    products: int | None = None
    """Of a smaller variant: products of tokens with a matrix, of which `kept_float` stayed float."""
    scores: int | None = None
    """Of a smaller variant: products of queries and keys that are quantised as well."""
    left_float: dict[str, str] = field(default_factory=dict)
    """Of a smaller variant: what is computed in fp32 all the same, and why."""
    learned_from: int | None = None
    """Of an int8 variant with sums of its own: the training images that they are over."""
    sums_drop: float | None = None
    """Of one without: points of accuracy that a head from them would lose, where that is why."""
    proof: Proof | NotInstalled | None = None
    """How it answered in the runtime it is for."""
    quantiser: NotInstalled | None = None
    """Of a float file of which the target's own tool would have made int8, were it installed."""
    latency_ms: float | None = None
    """Milliseconds of one image on this machine, roughly."""
    close: int = 0
    """With `--tokens`: held-out images that were not compared, since two merges are equally good there."""
    closed_form: bool = False
    """Whether its head is a closed-form one."""
    updates: tuple[MadeUpdate, ...] = ()
    """What makes it from older models."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        apart = ("bundle", "updates", "proof", "quantiser")
        own = {item.name: getattr(self, item.name) for item in fields(self) if item.name not in apart}
        own["updates"] = [update.to_dict() for update in self.updates]
        own["proof"] = None if self.proof is None else asdict(self.proof)
        own["quantiser"] = None if self.quantiser is None else asdict(self.quantiser)
        return {**asdict(self.bundle), "path": str(self.bundle.path), **own}

    def moved(self, folder: Path) -> Exported:
        """The same, with its files in `folder`."""
        updates = tuple(replace(update, path=folder / update.path.name) for update in self.updates)
        return replace(self, bundle=replace(self.bundle, path=folder / self.bundle.path.name), updates=updates)
