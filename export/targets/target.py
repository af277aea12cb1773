"""What a runtime asks of a file, and how an answer of its own is got: `Target`. One file of this folder defines one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Target:
    """A runtime that `cdl export --target` knows."""

    name: str
    """As `--target` calls it."""
    opset: int = 20
    """The opset of its file, where none is asked for."""
    opsets: tuple[int, int] = (17, 23)
    """The lowest and the highest that it takes."""
    input: str = "image"
    """`--input`, where none is asked for."""
    inputs: tuple[str, ...] = ("image", "tensor")
    """What it takes."""
    labels: str = "graph"
    """`--labels`, where it is not asked for; `"none"` for a runtime that cannot hold strings."""
    batch: int | None = None
    """The images of one run, where `--batch` is not given; None: any number."""
    refused: Mapping[str, str] = field(default_factory=dict)
    """Kinds of `--quantize` (and `fp16`) that it cannot hold, and why."""
    tolerance: float = 1e-4
    """How far a logit may be from the trained model's, as a share of the largest logit or of 1."""
    script: str = "run_onnxruntime.py"
    """In scripts/: converts where that is the way, and runs held-out images."""
    package: str = "onnxruntime"
    """The module without which the script cannot run."""
    install: str = ""
    """The one line that installs it."""
    converted: str = ""
    """Suffix of what its converter makes, if it has one: `.mnn`."""
    note: str = ""
    """What to know, in one line."""
