"""Sums → what changes in the file: head, distance, labels and task table, and the sizes that are declared of values.

Constants are named as export names them (`ExportGraph`, `FoldedHeads`, `NearestClass`, `label_graph`).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cdl_deploy.closed_form.head_rule import HeadRule, solve_head
from cdl_deploy.closed_form.mahalanobis import mahalanobis
from cdl_deploy.closed_form.model_world import ModelWorld
from cdl_deploy.closed_form.statistics import Statistics
from cdl_deploy.errors import BundleError
from cdl_deploy.learn.errors import LearnError
from cdl_deploy.learn.onnx_edit import Edits, OnnxFile, node
from cdl_deploy.runtime.bundle import LOGITS_NAME, TASK_SCORES_NAME, TOPK_LABEL_NAME, Bundle

WEIGHT, BIAS = "head.weight", "head.bias"
SELECTED = f"{TASK_SCORES_NAME}/selected"
"""What the scores of a model whose prompts belong to tasks are called, once a task has come that brings no prompts."""
SCORES, ONE, BATCH, SIZE = "learn/scores", "learn/one", "learn/batch", "learn/size"


def edits_for(
    onnx: OnnxFile, old: Bundle, new: Bundle, total: Statistics, rule: HeadRule, world: ModelWorld | None = None
) -> Edits:
    """Everything of the graph that the sums change, or that follows from the classes and tasks of `new`.

    `world`: `world_of` these sums.

    Raises `BundleError` for a graph that is not as export writes it, `LearnError` for sums that give no head.
    """
    edits = Edits()
    D = total.dimension
    constants = _head(onnx, total, rule, world) | _distance(total, rule)
    sizes = {WEIGHT: D * len(old.classes), BIAS: len(old.classes), "distance.factor": D * D}
    sizes |= {"distance.centre": D, "distance.means": D * len(old.classes), "distance.squares": len(old.classes)}
    for name, value in constants.items():
        found = onnx.constants.get(name)
        if found is None or math.prod(found.shape) != sizes[name]:
            got = "is missing" if found is None else f"has shape {list(found.shape)}"
            raise BundleError(f"its constant '{name}' {got}, expected {sizes[name]:,} numbers; export the model again")
        if not np.isfinite(value).all():
            raise LearnError("the head that these images give is no number: are they all alike, or damaged?")
        edits.constants[name] = value
    _labels(onnx, old, new, edits)
    _task_table(onnx, old, new, edits)
    for name, made in edits.constants.items():
        edits.shapes[name] = made.shape if isinstance(made, np.ndarray) else (len(made),)
    return edits


def _head(onnx: OnnxFile, total: Statistics, rule: HeadRule, world: ModelWorld | None) -> dict[str, NDArray[Any]]:
    """W and b in float32, rounded where training rounds them."""
    solved = solve_head(total, rule, world=world)
    layer = solved.calibrated.scaled(1 / solved.factor)
    weight, bias = (value.astype(np.float32) / np.float32(solved.factor) for value in (layer.weight, layer.bias))
    readers = onnx.consumers(WEIGHT)
    if len(readers) != 1:
        raise BundleError(
            f"its constant '{WEIGHT}' is read {len(readers)} times, expected once; export the model again"
        )
    by_class = readers[0].operator == "Transpose" or bool(readers[0].flags.get("transB"))
    found = {WEIGHT: weight if by_class else np.ascontiguousarray(weight.T), BIAS: bias}
    if BIAS not in onnx.constants and not bias.any():  # of a head that has none, PyTorch's exporter writes none
        del found[BIAS]
    return found


def _distance(total: Statistics, rule: HeadRule) -> dict[str, NDArray[Any]]:
    found = mahalanobis(total, rule.shrinkage, rounded=True).constants()
    return {f"distance.{name}": value for name, value in found.items()}


def _labels(onnx: OnnxFile, old: Bundle, new: Bundle, edits: Edits) -> None:
    """Names, how many of the best are told, and the columns of everything that has one a class."""
    named = [it for it in onnx.nodes if TOPK_LABEL_NAME in it.outputs]
    best = [it for it in onnx.consumers(LOGITS_NAME) if it.operator == "TopK"]
    if any(it.inputs[0] not in onnx.constants for it in named) or len(best) != 1:
        raise BundleError("its labels are not where export puts them; export the model again")
    for it in named:  # none in a file without names (--labels none)
        edits.constants[it.inputs[0]] = new.classes
    if new.top_k != old.top_k:
        edits.constants[best[0].inputs[1]] = np.array([new.top_k], np.int64)
    ranked = onnx.behind(best[0].outputs)
    by_class = onnx.behind([WEIGHT, BIAS, "distance.means", "distance.squares"]) - ranked
    changes = ((by_class, len(old.classes), len(new.classes)), (ranked, old.top_k, new.top_k))
    for name, shape in onnx.declared().items():
        for values, before, after in changes:
            if name in values and before != after and before in shape:
                edits.shapes[name] = tuple(after if size == before else None for size in shape)


def _task_table(onnx: OnnxFile, old: Bundle, new: Bundle, edits: Edits) -> None:
    """Scores 1/T of every task. Where they say whose prompts an image selects, a task without prompts ends that, as it
    does in training; they are kept under another name, for the day when that task is undone."""
    T = len(new.tasks)
    if len(old.tasks) == T and new.method.task_scores == old.method.task_scores:
        return
    edits.shapes[TASK_SCORES_NAME] = (None, T)
    scores = np.full((1, T), 1 / T, np.float32)
    made = onnx.producer(TASK_SCORES_NAME)
    if new.method.task_scores is not None and SCORES in onnx.constants:
        edits.removed = {SCORES, ONE, BATCH, SIZE, TASK_SCORES_NAME}
        edits.renamed = {SELECTED: TASK_SCORES_NAME}
        return
    name = made.inputs[0] if made.operator == "Expand" else ""
    if old.method.task_scores is None and name in onnx.constants and len(onnx.consumers(name)) == 1:
        edits.constants[name] = scores
        return
    edits.renamed = {TASK_SCORES_NAME: SELECTED}
    edits.added = {SCORES: scores, ONE: np.ones(1, np.int64)}
    edits.nodes = [
        node("Shape", [LOGITS_NAME], BATCH, start=0, end=1),
        node("Concat", [BATCH, ONE], SIZE, axis=0),
        node("Expand", [SCORES, SIZE], TASK_SCORES_NAME),
    ]
