"""What is asked of an export, and what of it cannot be done."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from cdl_deploy.data.preprocessing import INPUTS
from cdl_deploy.errors import OptionError, nearest
from cdl_deploy.export.fixed_shapes import check_fixed
from cdl_deploy.export.merging import check_share
from cdl_deploy.export.onnx_file import OPSET, check_opset, weights_file
from cdl_deploy.export.selection import Select
from cdl_deploy.export.variants import Shrink
from cdl_deploy.targets import find_target
from cdl_deploy.targets.process import is_installed
from cdl_deploy.targets.target import Target

LABELS = ("graph", "none")
"""What `--labels` can be."""


@dataclass(frozen=True)
class ExportOptions:
    """What the files are to be like."""

    teacher: bool = True
    """Export the teacher as well, where there is one."""
    input: str = "image"
    """`"image"`: the graph resizes, crops and normalises. `"tensor"`: the caller does."""
    select: str = "in-graph"
    """Who selects prompts: each image, or at export `"task:K"` or `"images:DIR"`, once for all."""
    selection: Select = field(init=False)
    """What `select` says."""
    opset: int = OPSET
    """ONNX opset of the files."""
    shrink: Shrink = field(default_factory=Shrink)
    """Smaller variants to write beside the student."""
    labels: str = "graph"
    """`"graph"`: names of the best classes leave the graph, as strings. `"none"`: their positions alone."""
    target: str | None = None
    """The runtime that the files are for, in which they are tried: a name of `cdl_deploy/targets`."""
    target_python: Path | None = None
    """A Python that has this runtime; by default this one."""
    batch: int | None = None
    """Images in one run; any number by default."""
    image_size: tuple[int, int] | None = None
    """Height and width of the images; any by default."""
    ort: bool = False
    """Write every file in onnxruntime's own format as well."""
    latency: bool = True
    """Measure, roughly, how long each file takes, for the report."""
    statistics: bool = True
    """Of a closed-form head: outputs `features` and `distance`, the threshold of the distance, and the sums beside
    the file. Without: a classifier, and nothing else."""
    tokens: float = 1.0
    """The share of patch tokens that are left after the last merging; 1: none merges."""
    update_from: tuple[Path, ...] = ()
    """Older models, or folders of them: beside each file, the update that makes it from the older one."""

    def __post_init__(self) -> None:
        if self.input not in INPUTS:
            raise OptionError(
                f"unknown --input '{self.input}', expected {' or '.join(INPUTS)}{nearest(self.input, INPUTS)}"
            )
        if self.labels not in LABELS:
            raise OptionError(
                f"unknown --labels '{self.labels}', expected {' or '.join(LABELS)}{nearest(self.labels, LABELS)}"
            )
        if self.target is not None:
            find_target(self.target)
        check_opset(self.opset)
        check_share(self.tokens)
        check_fixed(self.batch, self.image_size, self.input)
        object.__setattr__(self, "selection", Select.parse(self.select))


def check_tools(options: ExportOptions) -> None:
    """Raise OptionError for a target's interpreter that is none, and for versions that are too old, before any work."""
    if tool := int8_tool(options):
        is_installed(tool, options.target_python)
    if options.target is not None:
        is_installed(find_target(options.target), options.target_python)


def int8_tool(options: ExportOptions) -> Target | None:
    """The target's own, where it is to make int8."""
    if options.target is None or "int8" not in options.shrink.kinds:
        return None
    return find_target(options.target).quantiser


def own_shrink(options: ExportOptions) -> Shrink:
    """The smaller variants that are made here: all, but for int8 where the target's own tool makes that."""
    if int8_tool(options) is None:
        return options.shrink
    kinds = tuple(kind for kind in options.shrink.kinds if kind != "int8")
    return replace(options.shrink, kinds=kinds, calibrate=None)


def check_large(path: Path, options: ExportOptions) -> None:
    """Raise OptionError for what cannot be made of a model whose weights stand in a file of their own."""
    fixed = options.batch is not None or options.image_size is not None
    asked = {"--quantize or --fp16": options.shrink.kinds, "--ort": options.ort, "--update-from": options.update_from}
    asked["--batch or --image-size"] = fixed
    for name, wanted in asked.items():
        if wanted:
            raise OptionError(
                f"{path.name} has more than 2 GB of weights, which ONNX keeps in a file of their own "
                f"({weights_file(path).name}): {name} cannot be done with it, leave that out"
            )
