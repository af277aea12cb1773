"""What calibration images are looked at for, before anything becomes an integer.

1. Channels behind norms are brought to one size (`equalise.py`), and hidden units that are far larger than all others
   get companions (`outlier_units.py`): one scale then does for a whole value.
2. The least and the greatest of every value are its range (`quantise.calibrate`).
3. The sums of products by which weights are rounded (`rounding.py`).

Each looks at what the one before has made, so the images pass through the graph three times.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace

import onnx
from onnxruntime.quantization.calibrate import TensorsData

from cdl_deploy.export.activations import observe
from cdl_deploy.export.equalise import Equaliser
from cdl_deploy.export.layers import Graph, drop_unused
from cdl_deploy.export.outlier_units import OutlierUnits
from cdl_deploy.export.quantise import Feeds, PreparedModel, calibrate
from cdl_deploy.export.rounding import Rounding


def calibrated(prepared: PreparedModel, batches: Iterable[Feeds]) -> tuple[PreparedModel, TensorsData, Rounding]:
    """`prepared` made ready for integers, and how `quantise_static` is to scale and round. `batches`: read three times.

    What is returned computes in float what `prepared` does, once values are clipped as it says.
    """
    ready = evened(prepared, batches)
    ranges = calibrate(ready, batches)
    rounding = Rounding(*_fed(ready))
    observe(ready.model, rounding.values, batches, rounding.see)
    return ready, ranges, rounding


def evened(prepared: PreparedModel, batches: Iterable[Feeds], hidden: bool = True) -> PreparedModel:
    """A copy with channels behind norms of one size, and (`hidden`) without hidden units far larger than all others."""
    model = onnx.ModelProto()
    model.CopyFrom(prepared.model)
    layers = tuple(replace(layer, nodes=list(layer.nodes)) for layer in prepared.layers)
    graph = Graph(model)
    channels, units = Equaliser(graph, layers), OutlierUnits(graph, layers if hidden else ())
    seers = {**dict.fromkeys(channels.values, channels.see), **dict.fromkeys(units.values, units.see)}
    observe(model, list(seers), batches, lambda name, rows: seers[name](name, rows))
    channels.apply()
    clipped = units.apply()
    del model.graph.value_info[:]  # some are wider now
    drop_unused(model)
    return replace(prepared, model=onnx.shape_inference.infer_shapes(model), layers=layers, clipped=clipped)


def _fed(prepared: PreparedModel) -> tuple[dict[str, set[str]], dict[str, tuple[float, float]]]:
    """Which matrices each value is multiplied by, and how it is clipped before. Queries, keys and values are made of
    one value: it is looked at once."""
    graph = Graph(prepared.model)
    nodes = {node.name: node for node in prepared.model.graph.node}
    matrices: dict[str, set[str]] = defaultdict(set)
    clipped = {}
    for layer in prepared.layers:
        for name in layer.nodes:
            given = value = nodes[name].input[0]
            while (above := graph.producer.get(value)) is not None and above.op_type == "Reshape":
                if graph.shapes.get(above.input[0], [0])[-1] != layer.shape[0]:
                    break
                value = above.input[0]
            matrices[value].add(layer.weight)
            if given in prepared.clipped:
                clipped[value] = prepared.clipped[given]
    return dict(matrices), clipped
