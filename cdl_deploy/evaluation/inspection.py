"""What a model knows, takes and gives: read from its file, nothing is run."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cdl_deploy.runtime.bundle import Bundle, description
from cdl_deploy.runtime.interface import Interface, interface_of
from cdl_deploy.runtime.session import open_session


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

    path: Path
    interface: Interface
    bytes: int
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]

    @property
    def bundle(self) -> Bundle | None:
        """What an exported model says about itself; None for a model from elsewhere."""
        return self.interface.bundle

    def to_dict(self) -> dict[str, Any]:
        """The description in the file, and what was seen of the file itself: plain values for JSON."""
        ports = {"inputs": [asdict(port) for port in self.inputs], "outputs": [asdict(port) for port in self.outputs]}
        if self.bundle is not None:
            known = description(self.bundle)
        else:
            preprocessing = {**asdict(self.interface.preprocessing), "assumed": self.interface.assumed}
            if self.interface.squash is not None:
                preprocessing["squash"] = list(self.interface.squash)
            known = {"classes": list(self.interface.classes), "preprocessing": preprocessing}
        return {"path": str(self.path), "bytes": self.bytes, **known, **ports}


def inspect_model(path: Path) -> Inspection:
    """Read the file at `path`. Raises BundleError for no model, or one from elsewhere without labels."""
    session = open_session(path, optimise=False)  # nothing is going to be run
    interface = interface_of(session, path)
    inputs, outputs = (
        tuple(Port(node.name, node.type, tuple(node.shape)) for node in nodes)
        for nodes in (session.get_inputs(), session.get_outputs())
    )
    return Inspection(path, interface, path.stat().st_size, inputs, outputs)
