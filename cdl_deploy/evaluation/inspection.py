"""What an exported model knows, takes and gives: read from its file, nothing is run."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cdl_deploy.bundle import Bundle, bundle_of, description, open_session


@dataclass(frozen=True)
class Port:
    """An input or an output of the graph."""

    name: str
    type: str
    """As onnxruntime names it, such as `tensor(float)`."""
    shape: tuple[int | str | None, ...]
    """A name, or None, stands for a size that is free."""


@dataclass(frozen=True)
class Inspection:
    """One model file."""

    bundle: Bundle
    bytes: int
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]

    def to_dict(self) -> dict[str, Any]:
        """The description in the file, and what was seen of the file itself: plain values for JSON."""
        ports = {"inputs": [asdict(port) for port in self.inputs], "outputs": [asdict(port) for port in self.outputs]}
        return {"path": str(self.bundle.path), "bytes": self.bytes, **description(self.bundle), **ports}


def inspect_model(path: Path) -> Inspection:
    """Read the file at `path`. Raises BundleError for one that cdl did not export."""
    session = open_session(path, optimise=False)  # nothing is going to be run
    bundle = bundle_of(session, path)
    inputs, outputs = (
        tuple(Port(node.name, node.type, tuple(node.shape)) for node in nodes)
        for nodes in (session.get_inputs(), session.get_outputs())
    )
    return Inspection(bundle, path.stat().st_size, inputs, outputs)
