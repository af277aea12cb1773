"""What values inside a graph are while it runs over calibration images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper

from cdl_deploy.export.session import cpu_session

Rows = npt.NDArray[np.float32]
"""A value of one run, [rows, channels]: all its axes but the last in one."""


def observe(
    model: onnx.ModelProto,
    values: Sequence[str],
    batches: Iterable[Mapping[str, npt.NDArray[Any]]],
    see: Callable[[str, Rows], None],
) -> None:
    """Run `model` over `batches` on the CPU, and hand every one of `values` of every run to `see`, with its name."""
    if not values:
        return
    wider = onnx.ModelProto()
    wider.CopyFrom(model)
    there = {value.name for value in model.graph.output}
    wider.graph.output.extend(helper.make_empty_tensor_value_info(it) for it in values if it not in there)
    session = cpu_session(wider)
    for batch in batches:
        for name, value in zip(values, session.run(list(values), dict(batch)), strict=True):
            see(name, value.reshape(-1, value.shape[-1]))
