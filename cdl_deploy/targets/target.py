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
    fixed_image: bool = False
    """Whether images must be of one size (`--image-size`)."""
    labels: str = "graph"
    """`--labels`, where it is not asked for; `"none"` for a runtime that cannot hold strings."""
    batch: int | None = None
    """The images of one run, where `--batch` is not given; None: any number."""
    batches: int | None = None
    """The only number of images in one run that it takes; None: what is asked for."""
    no_best: bool = False
    """Whether the best classes (`topk_index`, `topk_probability`) are left away, because it has no TopK."""
    no_distance: bool = False
    """Whether `distance` is left away, because it has no ReduceMin: it then cannot say `unknown`."""
    no_list_gather: bool = False
    """Whether a Gather of several positions is written as slices of one."""
    lacks: Mapping[str, str] = field(default_factory=dict)
    """Operators that it does not have, and what to do about a graph with one."""
    refused: Mapping[str, str] = field(default_factory=dict)
    """Kinds of `--quantize` (and `fp16`) that it cannot hold, and why."""
    tolerance: float = 1e-4
    """How far a logit may be from the trained model's, as a share of the largest logit or of 1."""
    agreement: float = 1.0
    """Share of the images that must get the class that the trained model gives them."""
    script: str = "run_onnxruntime.py"
    """In scripts/: converts where that is the way, and runs images."""
    packages: tuple[str, ...] = ("onnxruntime",)
    """Modules without which the script cannot run."""
    distribution: str = "onnxruntime"
    """What the runtime is called where it is installed from."""
    oldest: tuple[int, ...] = ()
    """The oldest version that is run; older ones are refused."""
    install: str = ""
    """The one line that installs it."""
    converted: tuple[str, ...] = ()
    """Suffixes of what its converter makes, if it has one: `.mnn`."""
    threads: bool = True
    """Whether it uses as many threads as it is told."""
    runtime: bool = True
    """Whether it is one, and not a form of files for several."""
    note: str = ""
    """What to know, in one line."""
    quantiser: Target | None = None
    """Its vendor's tool, which makes int8 of the float file: what that needs, its script, and what it makes."""
