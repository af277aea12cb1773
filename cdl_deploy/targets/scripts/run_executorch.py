"""A model in ExecuTorch: to PyTorch by onnx2torch, lowered to XNNPACK, then run. Its outputs are logits and
probabilities.
"""

import onnx
import onnx2torch
import torch
from common import main
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir import to_edge_transform_and_lower
from executorch.runtime import Runtime
from torch.fx.experimental.proxy_tensor import make_fx

ATEN = torch.ops.aten


class Answers(torch.nn.Module):
    """The first two outputs of a network."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, image):
        """See the class."""
        logits, probabilities = self.network(image)[:2]
        return logits, probabilities


def convert(model, folder, first):
    """See `main`. onnx2torch reads shapes from tensors, which only tracing with real ones, and folding, makes plain."""
    example = torch.from_numpy(first)
    with torch.no_grad():
        traced = torch.jit.trace(Answers(onnx2torch.convert(onnx.load(model))).eval(), example, check_trace=False)
        folded = torch.jit.freeze(traced)
        graph = make_fx(lambda image: folded(image))(example)
    for node in graph.graph.nodes:
        if node.target is ATEN._convolution.default:
            node.target, node.args = ATEN.convolution.default, node.args[:9]
    graph.recompile()
    program = torch.export.export(graph, (example,))
    made = folder / f"{model.stem}.pte"
    lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()]).to_executorch()
    made.write_bytes(lowered.buffer)
    return [made]


def load(model, first, threads):
    """See `main`."""
    program = Runtime.get().load_program(str(model))
    method = program.load_method("forward")
    kept = [program, method]
    return lambda batch: kept[1].execute([torch.from_numpy(batch)])[0].numpy().copy()


main("executorch", load, convert)
