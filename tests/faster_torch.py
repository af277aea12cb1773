"""What torch.onnx does again and again for nothing, once or not at all: half of the time, and the same graph.

tests/export/test_updates.py compares files that were written with and without.
"""

from __future__ import annotations

import typing
import weakref
from functools import cache
from typing import Any, ClassVar

import sympy  # type: ignore[import-untyped]
import torch
from onnxscript.rewriter._basics import MatchResult
from onnxscript.rewriter._matcher import SimplePatternMatcher
from torch._export.utils import _collect_all_valid_cia_ops
from torch.export import decomp_utils, exported_program
from torch.fx._lazy_graph_module import _use_lazy_graph_module
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.onnx._internal.exporter._registration import ONNXRegistry
from torch.onnx._internal.fx.passes import type_promotion


def prepare_torch() -> None:
    """To be called once in a process."""
    torch.set_num_threads(1)  # the networks are small: a second thread costs more than it gives
    # It reads the source of all its operators anew for every graph, a quarter of a tiny one's time.
    ONNXRegistry.from_torchlib = staticmethod(cache(ONNXRegistry.from_torchlib))  # type: ignore[method-assign]
    # It asks of each of a thousand operators whether it is made of others, twice a graph.
    composite = cache(_collect_all_valid_cia_ops)
    for module in (exported_program, decomp_utils):
        module._collect_all_valid_cia_ops = composite  # type: ignore[attr-defined]
    # It writes a graph as Python code after every change; now, when that is called.
    torch.onnx.export = _use_lazy_graph_module(True)(torch.onnx.export)
    # Of every operator that it overrides for a while, it writes a generic type that nobody reads; this one is cached.
    torch._ops.Callable = typing.Callable  # type: ignore[attr-defined]
    _match_the_operator_first()
    _believe_known_values()
    _remember_shapes()


def _match_the_operator_first() -> None:
    """A rule for several outputs lists the whole graph for each node, whichever operator it is."""
    match = SimplePatternMatcher.match

    def of_its_operator(self: SimplePatternMatcher, model: Any, graph: Any, node: Any, **options: Any) -> MatchResult:
        wanted = self.pattern.output_nodes[0].op_identifier()
        if wanted is not None and wanted != node.op_identifier():
            return MatchResult().fail("another operator")
        return match(self, model, graph, node, **options)

    SimplePatternMatcher.match = of_its_operator  # type: ignore[method-assign, assignment]


def _believe_known_values() -> None:
    """To promote types, it runs every node again; what a node gives is noted at it, also after a promotion."""
    run = torch.fx.Interpreter.run_node

    def run_node(self: Any, n: torch.fx.Node) -> Any:
        with self._set_current_node(n):
            if rule := type_promotion.get_type_promotion_rule(n, self.type_promotion_table):
                self._maybe_promote_node(n, rule)
        return n.meta["val"] if "val" in n.meta else run(self, n)

    type_promotion._TypePromotionInterpreter.run_node = run_node  # type: ignore[method-assign]


class RememberedShapes(dict[Any, Any]):
    """What operators give for shapes with a free batch, from one exported graph to the next.

    Most graphs assert that there is more than one image, as the example has two, at some product of matrices; one whose
    shapes were looked up does not. So all of them do, from the beginning: whatever comes before, the same graph has the
    same bytes. Where torch alone asserts nothing, numbers in the names of values are others than its own.
    """

    known: ClassVar[dict[Any, Any]] = {}

    def __init__(self, shape_env: ShapeEnv) -> None:
        super().__init__()
        self.shape_env = weakref.ref(shape_env)
        self.asserted = False

    def of_an_export(self) -> bool:
        shape_env = self.shape_env()
        assert shape_env is not None
        if not shape_env.prefer_deferred_runtime_asserts_over_guards or shape_env.guards:
            return False
        if not self.asserted:
            self.asserted = True
            for batch in list(shape_env.backed_var_to_val):
                shape_env.guard_or_defer_runtime_assert(sympy.Ne(batch, 1), "more than one image")
        return True

    def get(self, key: Any, default: Any = None) -> Any:
        if key not in self and self.of_an_export() and key in self.known:
            super().__setitem__(key, self.known[key])
        return super().get(key, default)

    def __setitem__(self, key: Any, entry: Any) -> None:
        super().__setitem__(key, entry)
        if self.of_an_export():
            self.known[key] = entry


def _remember_shapes() -> None:
    """It works out anew for every graph what its operators give: all of them have the same two images, of one name."""
    start = ShapeEnv.__init__

    def init(self: ShapeEnv, *arguments: Any, **options: Any) -> None:
        start(self, *arguments, **options)
        self.fake_tensor_cache = RememberedShapes(self)

    ShapeEnv.__init__ = init  # type: ignore[method-assign]
