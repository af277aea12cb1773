"""What torch.onnx does again and again for nothing, once or not at all: a quarter of the time, and the same bytes.

tests/export/test_updates.py compares files that were written with and without.
"""

from __future__ import annotations

import logging
import typing
from functools import cache
from typing import Any

import torch
from onnxscript.rewriter._matcher import SimplePatternMatcher
from onnxscript.rewriter._rewrite_rule import RewriteRule
from torch._export.utils import _collect_all_valid_cia_ops
from torch.export import decomp_utils, exported_program
from torch.fx._lazy_graph_module import _use_lazy_graph_module
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
    # pytest (9.1 and later) listens to every logger that does not propagate, and this one is then told of all that
    # torch traces: thousands of lines in the report of a test that fails.
    trace = logging.getLogger("torch.__trace")
    trace.propagate = True
    trace.handlers.clear()  # torch's own finds out at the first line that nobody asked for a trace; it would be printed
    _match_the_operator_first()
    _believe_known_values()


def _match_the_operator_first() -> None:
    """Forty rules are tried on each node, whichever operator it is; one of several outputs lists the whole graph."""
    rewrite = RewriteRule.try_rewrite

    def of_its_operator(self: RewriteRule, model: Any, graph: Any, node: Any, **options: Any) -> object:
        wanted = operator_of(self)
        if wanted is not None and wanted != node.op_identifier():
            return None
        return rewrite(self, model, graph, node, **options)

    @cache
    def operator_of(rule: RewriteRule) -> object:
        if not isinstance(rule._matcher, SimplePatternMatcher):
            return None
        return rule._matcher.pattern.output_nodes[0].op_identifier()

    RewriteRule.try_rewrite = of_its_operator  # type: ignore[method-assign, assignment]


def _believe_known_values() -> None:
    """To promote types, it runs every node again; what a node gives is noted at it, also after a promotion."""
    run = torch.fx.Interpreter.run_node

    def run_node(self: Any, n: torch.fx.Node) -> Any:
        with self._set_current_node(n):
            if rule := type_promotion.get_type_promotion_rule(n, self.type_promotion_table):
                self._maybe_promote_node(n, rule)
        return n.meta["val"] if "val" in n.meta else run(self, n)

    type_promotion._TypePromotionInterpreter.run_node = run_node  # type: ignore[method-assign]
