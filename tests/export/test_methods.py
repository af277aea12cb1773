"""Every method and both queries in the exported graph, against the training learner."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from cdl_deploy.export import ExportOptions, export_run
from cdl_deploy.export.attention import fold_attentions
from cdl_deploy.export.describe import describe
from cdl_deploy.export.graph import ExportGraph
from cdl_deploy.export.onnx_file import OPSET, export_core
from cdl_deploy.run.config import DataConfig, MethodConfig, ModelConfig, OptimConfig, RunConfig
from cdl_deploy.runtime.bundle import read_bundle
from cdl_deploy.training.checkpoint import load_run
from cdl_deploy.training.distillation import DISTILLATIONS
from cdl_deploy.training.loop import train
from cdl_deploy.training.methods import METHODS, coda, dualprompt
from cdl_deploy.training.methods.folded import MethodItself
from cdl_deploy.training.models.learner import learner_logits
from tests.tiny_models import tiny_pair
from tests.training.conftest import COLOURS, write_images
from tests.training.test_learner import pixels
from tests.training.test_methods import make

PAIRS = [("l2p", "full"), ("l2p", "block:2"), ("dualprompt", "full"), ("dualprompt", "block:1"), ("coda", "full"),
         ("coda", "block:1"), ("apt", "full")]  # fmt: skip
FILES = [  # method, query, distillation, blocks: no more than `few_prompted` needs, since tracing them takes the time
    ("l2p", "full", "kdp", 2),
    ("l2p", "full", "deit", 2),
    ("l2p", "block:2", "none", 3),
    ("dualprompt", "full", "kdp", 3),
    ("coda", "full", "none", 2),
    ("coda", "block:1", "kdp", 3),
    ("apt", "full", "kdp", 2),
]
"""Every method, both kinds of query, every number of tokens beside the patches. What else there is has the same nodes;
its logits are compared before tracing, above, and in files by test_closed_form_export.py."""


def inputs(learner, images: torch.Tensor) -> torch.Tensor:
    return (images / 255 - learner.backbone.mean) / learner.backbone.std


@pytest.mark.parametrize(
    ("distill", "role"),
    [("kdp", "student"), ("kdp", "teacher"), *((d, "student") for d in DISTILLATIONS if d != "kdp")],
)
@pytest.mark.parametrize(("method", "query"), PAIRS)
@torch.no_grad()
def test_the_folded_graph_gives_the_learners_logits(method, query, distill, role):
    pair = make(method, distill, query)
    learner = pair.learners[role]
    if distill == "deit":
        learner.distillation.token.normal_()  # it starts at zero, which would hide mistakes
    images = pixels(5)
    logits, *_ = ExportGraph(pair, learner)(inputs(learner, images))
    torch.testing.assert_close(logits, learner_logits(pair.encoder, learner, images), atol=1e-4, rtol=0)


@torch.no_grad()
def test_keys_of_tasks_to_come_are_in_the_graph():
    """Two of six entries are of tasks that have come: what the others choose belongs to no task."""
    pair = make("dualprompt", "none", unseen_keys="chosen", entries=6)
    learner, images = pair.student, pixels(5)
    logits, _, scores, *_ = ExportGraph(pair, learner)(inputs(learner, images))
    torch.testing.assert_close(logits, learner_logits(pair.encoder, learner, images), atol=1e-4, rtol=0)
    torch.testing.assert_close(scores, torch.full((5, 2), 0.5))
    fixed = learner.method.fix_selection(torch.randn(7, 24), None, 2)
    assert fixed.task_scores is None
    assert sorted(fixed.prompts) == [0, 1, 2, 3, 4]


@pytest.fixture
def few_prompted(monkeypatch):
    """CODA-Prompt in two blocks, DualPrompt in one and two; test_closed_form_export.py writes files of all five."""
    monkeypatch.setattr(coda, "BLOCKS", 2)
    monkeypatch.setattr(dualprompt, "SHARED_BLOCKS", 1)
    monkeypatch.setattr(dualprompt, "TASK_BLOCKS", 2)


@pytest.mark.usefixtures("few_prompted")
@pytest.mark.parametrize(("method", "query", "distill", "depth"), FILES)
@torch.no_grad()
def test_the_file_gives_the_learners_logits_at_any_batch(method, query, distill, depth):
    pair = make(method, distill, query, depth=depth)
    student = pair.student
    if distill == "deit":
        student.distillation.token.normal_()  # it starts at zero, which would hide mistakes
    model = export_core(ExportGraph(pair, student), torch.zeros(2, 3, 16, 16), "image")
    assert [(o.domain, o.version) for o in model.opset_import if o.domain == ""] == [("", OPSET)]
    assert {node.domain for node in model.graph.node} == {""}
    onnx.checker.check_model(model, full_check=True)
    data = model.SerializeToString()
    assert str(Path(__file__).parents[2]).encode() not in data, "it names no path"
    assert b".py" not in data
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    for batch in (1, 2, 5):
        images = pixels(batch)
        logits, probabilities = session.run(["logits", "probabilities"], {"image": inputs(student, images).numpy()})
        expected = learner_logits(pair.encoder, student, images).numpy()
        np.testing.assert_allclose(logits, expected, atol=1e-4, rtol=0)
        np.testing.assert_allclose(probabilities, torch.from_numpy(expected).softmax(1).numpy(), atol=1e-5)
        assert (logits.argmax(1) == expected.argmax(1)).all()
    blocks_run = sum(node.op_type == "Softmax" for node in model.graph.node) - 1  # and the probabilities' own
    assert blocks_run == (2 * depth if query == "full" and method != "apt" else depth), "once, unless the query is full"


@pytest.mark.parametrize("method", METHODS)
@torch.no_grad()
def test_a_method_without_a_folded_form_runs_as_it_is(method):
    pair = make(method)
    learner = pair.student.method
    attentions = fold_attentions(pair.student.backbone)
    folded, own = learner.fold(attentions, 2), MethodItself(learner, attentions, 2)
    if not learner.uses_query:
        assert folded.constants.keys() == learner(None, "test").prompts.keys()
        return
    assert type(folded) is not MethodItself
    query = torch.randn(4, 24)
    rows = own(query).prompts
    for index, pair_of_rows in folded(query).prompts.items():
        for ours, theirs in zip(pair_of_rows, rows[index], strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def trained(root, data=None, models=None, **method):
    write_images(root / "photos/train", dict.fromkeys(COLOURS, 4))
    write_images(root / "photos/test", dict.fromkeys(COLOURS, 2), seed=1)
    config = RunConfig(
        DataConfig(str(root / "photos"), tasks=2, class_order="natural", **(data or {})),
        models or ModelConfig(student="mini_student"),
        MethodConfig(distill="none", **method),
        OptimConfig(epochs=1, batch_size=8, device="cpu"),
    )
    train(config, root / "run")
    return load_run(root / "run")


def test_a_bundle_says_where_its_query_comes_from(tmp_path):
    record, pair = trained(tmp_path, method="l2p", query="block:3")
    bundle = describe(record, pair.student, tmp_path / "student.onnx", ExportOptions(), ExportGraph(pair, pair.student))
    assert (bundle.method.continual, bundle.method.query, bundle.method.select) == ("l2p", "block:3", "in-graph")


def test_a_bundle_without_a_query_says_so_and_counts_what_it_holds(tiny_weights, tmp_path):
    data = {"resize": 18, "interpolation": "bilinear"}
    _, pair = trained(tmp_path, data, tiny_pair(tiny_weights, 2), method="apt")
    export_run(tmp_path / "run", tmp_path / "out")
    bundle = read_bundle(tmp_path / "out/student.onnx")
    assert (bundle.method.continual, bundle.method.query, bundle.method.select) == ("apt", None, None)
    backbone = sum(value.numel() for value in pair.student.backbone.parameters())
    assert bundle.parameters == backbone + 2 * 2 * 32 + 4 * (32 + 1)
    assert bundle.parity.max_abs_logit_difference <= 1e-4
    assert bundle.parity.top1_agreement == 1.0
    seen = bundle.preprocessing
    assert (seen.height, seen.resize, seen.interpolation) == (16, 18, "bilinear"), "as the run was asked to see it"
