"""What a target asks for, where the user asked for nothing, and what of the user's wishes it cannot hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cdl_deploy.errors import OptionError
from cdl_deploy.targets import find_target


def options_for_target(
    name: str | None,
    *,
    input: str | None = None,
    labels: str | None = None,
    opset: int | None = None,
    batch: int | None = None,
    image_size: tuple[int, int] | None = None,
    kinds: Sequence[str] = (),
    tokens: float = 1.0,
) -> dict[str, Any]:
    """Options for `ExportOptions`; None stands for what the target likes best. `kinds`: smaller variants;
    `tokens`: below 1 patch tokens merge.

    Raises OptionError for an unknown target, and for what it cannot hold.
    """
    target = find_target(name or "onnxruntime")
    found: dict[str, Any] = {
        "target": name,
        "input": input or target.input,
        "labels": labels or target.labels,
        "opset": opset if opset is not None else target.opset,
        "batch": batch if batch is not None else target.batch,
        "image_size": image_size,
    }
    if name is None:
        return found
    lowest, highest = target.opsets
    if not lowest <= found["opset"] <= highest:
        raise OptionError(f"--target {name} takes --opset {lowest} to {highest}, got {opset}: leave --opset out")
    if found["input"] not in target.inputs:
        raise OptionError(f"--target {name} takes --input {' or '.join(target.inputs)}, got {input}: leave --input out")
    if target.fixed_image and found["input"] == "image" and image_size is None:
        raise OptionError(f"--target {name} takes images of one size: add --image-size H,W, or leave --input out")
    if target.batches is not None and found["batch"] != target.batches:
        raise OptionError(f"--target {name} takes --batch {target.batches}, got {batch}: leave --batch out")
    if target.labels == "none" and found["labels"] != "none":
        raise OptionError(f"--target {name} cannot hold the output of names: leave --labels out, or give none")
    if tokens < 1 and "ArgMax" in target.lacks:
        raise OptionError(f"--target {name} cannot hold a model that {target.lacks['ArgMax']}, or take another target")
    for kind in kinds:
        if kind in target.refused:
            asked = "--fp16" if kind == "fp16" else f"--quantize {kind}"
            raise OptionError(f"--target {name} does not go with {asked}: {target.refused[kind]}")
    return found
