"""Prompts selected at export: against choices worked out image by image, and a PyTorch model that has them built in."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch.nn.functional import cosine_similarity

from cdl_deploy.cli import main
from cdl_deploy.errors import DataError, OptionError
from cdl_deploy.export import ExportOptions, export_run
from cdl_deploy.export.graph import ExportGraph
from cdl_deploy.export.selection import Select, check_select, fix_selection
from cdl_deploy.runtime.bundle import read_bundle
from cdl_deploy.training.backbones.protocol import BlockPrompt
from cdl_deploy.training.checkpoint import load_heldout, load_run
from cdl_deploy.training.methods import METHODS, PromptSelection
from cdl_deploy.training.models.learner import learner_logits, learner_output
from tests.conftest import no_shape_checks
from tests.export.test_methods import trained
from tests.tiny_models import tiny_pair
from tests.training.conftest import no_pictures_drawn, write_images
from tests.training.naive import naive_coda_weights
from tests.training.test_learner import pixels
from tests.training.test_methods import make


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(cosine_similarity(a, b, dim=0))


def chosen_slowly(method, queries: torch.Tensor, task: int | None) -> dict[int, BlockPrompt]:
    """Image by image, as the method's page says, then the mean or the majority."""
    prompts = {}
    if hasattr(method, "own_blocks"):
        for index, block in method.own_blocks().items():
            weights = [naive_coda_weights(q, block.attentions.all(), block.keys.all()) for q in queries]
            mean = [sum(column) / len(weights) for column in zip(*weights, strict=True)]
            rows = sum(w * p for w, p in zip(mean, block.prompts.all(), strict=True))
            prompts[index] = BlockPrompt(prefix=(rows[None, :4], rows[None, 4:]))
    elif hasattr(method, "own_entries"):
        prompts = method.shared_prompts()
        for index, block in method.own_entries().items():
            keys = block.keys.all()
            nearest = [int(np.argmax([cosine(q, key) for key in keys])) for q in queries]
            entry = task - 1 if task is not None else Counter(nearest).most_common(1)[0][0]
            key_prompts, value_prompts = block.prompts.all()[entry]
            prompts[index] = BlockPrompt(prefix=(key_prompts[None], value_prompts[None]))
    else:
        votes: Counter[int] = Counter()
        for q in queries:
            near = sorted(range(len(method.keys)), key=lambda i: -cosine(q, method.keys[i]))
            votes.update(near[: method.top_k])
        mean = [sum(cosine(q, key) for q in queries) for key in method.keys]
        best = [i for _, _, i in sorted((-votes[i], -mean[i], i) for i in votes)][: method.top_k]
        key_prompts, value_prompts = (torch.cat([method.prompts[i, part] for i in best])[None] for part in (0, 1))
        prompts[method.block] = BlockPrompt(prefix=(key_prompts, value_prompts))
    return prompts


@pytest.mark.parametrize("role", ["student", "teacher"])
@pytest.mark.parametrize(("method", "query"), [("coda", "full"), ("coda", "block:1"), ("dualprompt", "full"),
                                               ("l2p", "full"), ("l2p", "block:2")])  # fmt: skip
@pytest.mark.parametrize("task", [None, 2])
@torch.no_grad()
def test_the_graph_is_the_model_with_that_choice_built_in(method, query, role, task, monkeypatch):
    pair = make(method, query=query)
    learner, samples, images = pair.learners[role], pixels(7), pixels(3)
    queries = pair.encoder(samples).query
    prompts = chosen_slowly(learner.method, queries, task)
    fixed = fix_selection(learner, pair.encoder, task, list(samples.split(4)))
    logits, _, scores = ExportGraph(pair, learner, fixed=fixed)(
        (images / 255 - learner.backbone.mean) / learner.backbone.std
    )
    monkeypatch.setattr(learner.method, "forward", lambda query, phase: PromptSelection(dict(prompts)))
    torch.testing.assert_close(logits, learner_logits(pair.encoder, learner, images), atol=1e-4, rtol=0)
    torch.testing.assert_close(scores.sum(dim=1), torch.ones(3))
    if method == "dualprompt" and task:
        assert scores.tolist() == [[0, pytest.approx(1)]] * 3


def test_a_run_exported_with_one_tasks_prompts(small_run, tmp_path, capsys, monkeypatch):
    export_run(small_run, tmp_path / "out", ExportOptions(select="task:2", teacher=False))
    path = tmp_path / "out/student.onnx"
    bundle = read_bundle(path)
    assert (bundle.method.query, bundle.method.select, bundle.method.task_scores) == (None, "task:2", "selected")
    assert bundle.parity.max_abs_logit_difference <= 1e-4
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit):
        main(["inspect", str(path)])
    assert "chosen at export: those of task 2, for every image" in capsys.readouterr().out
    record, pair = load_run(small_run)
    images, labels = load_heldout(small_run, record)
    fixed = fix_selection(pair.student, pair.encoder, 2, [images[labels >= 2]])
    with torch.no_grad():
        expected = learner_logits(pair.encoder, pair.student, images, prompts=fixed.prompts).numpy()
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    logits, scores = session.run(["logits", "task_scores"], {"image": images.permute(0, 2, 3, 1).numpy()})
    np.testing.assert_allclose(logits, expected, atol=1e-4)
    assert (scores == scores[0]).all()
    blocks = sum(node.op_type == "Softmax" for node in onnx.load(path).graph.node) - 1
    assert blocks == pair.student.backbone.depth, "one pass, no query"


def test_a_run_exported_with_the_prompts_of_a_folders_images(tiny_run, tmp_path):
    write_images(tmp_path / "samples", {"any": 3})
    options = ExportOptions(select=f"images:{tmp_path / 'samples'}")
    exported = export_run(tiny_run, tmp_path / "out", options)
    assert [item.bundle.method.select for item in exported] == ["images", "images"]
    student, teacher = (item.bundle for item in exported)
    assert (student.method.query, teacher.method.query) == (None, None)
    stored = sum(int(np.prod(v.dims)) for v in onnx.load(tmp_path / "out/teacher.onnx").graph.initializer)
    assert stored <= 1.01 * teacher.parameters + 2000, "the student is not in the teacher's file"


@pytest.fixture(scope="module")
def calibrated_run(tiny_weights, tmp_path_factory):
    root, models = tmp_path_factory.mktemp("calibrated"), tiny_pair(tiny_weights, 5)
    with no_shape_checks(), no_pictures_drawn():
        trained(root, models=models, method="coda", components_per_task=2, calibration="statistics")
    return root / "run"


@pytest.mark.parametrize("select", ["in-graph", "task:2"])
def test_a_calibrated_run_is_exported_as_calibrated_whoever_selects(select, calibrated_run, tmp_path, monkeypatch):
    record, pair = load_run(calibrated_run)
    student = pair.student
    images, labels = load_heldout(calibrated_run, record)
    (exported,) = export_run(calibrated_run, tmp_path / "out", ExportOptions(select=select, latency=False))
    if select == "task:2":
        with torch.no_grad():
            prompts = chosen_slowly(student.method, pair.encoder(images[labels >= 2]).query, 2)
        monkeypatch.setattr(student.method, "forward", lambda query, phase: PromptSelection(dict(prompts)))
    with torch.no_grad():
        plain = student.uncalibrated(learner_output(pair.encoder, student, images))
    expected = torch.stack([row * student.calibration.scale + student.calibration.offset for row in plain])
    session = onnxruntime.InferenceSession(tmp_path / "out/student.onnx", providers=["CPUExecutionProvider"])
    found = session.run(["logits"], {"image": images.permute(0, 2, 3, 1).numpy()})[0]
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-4, rtol=1e-5)  # logits up to 90: seven digits
    assert float((expected - plain).abs().max()) > 1e-2, "calibration changes something here"
    backbone = sum(value.numel() for value in student.backbone.parameters())
    components = 5 * 4 * (32 + 32 + 8 * 32) if select == "in-graph" else 5 * 8 * 32
    assert exported.bundle.parameters == backbone + components + 4 * (32 + 1), "statistics are no parameters"


@pytest.mark.parametrize(("text", "message"), [
    ("in-grph", "unknown --select 'in-grph', expected in-graph, task:K or images:DIR; did you mean 'in-graph'"),
    ("task:", "unknown --select 'task:', expected in-graph, task:K or images:DIR"),
    ("task:two", "unknown --select 'task:two'"),
    ("images:", "unknown --select 'images:'"),
    ("tsk:1", "unknown --select 'tsk:1', .*; did you mean 'task'"),
])  # fmt: skip
def test_unknown_modes(text, message):
    with pytest.raises(OptionError, match=message):
        ExportOptions(select=text)


@pytest.mark.parametrize(("select", "message"), [
    ("task:3", "--select task:3: the run has tasks 1 to 2"),
    ("task:0", "--select task:0: the run has tasks 1 to 2"),
    ("images:{}/none", r"--select images:.*none is no folder: give a folder of images like those it will be shown"),
    ("images:{}", r"--select images:.* has no images: give a folder of images"),
])  # fmt: skip
def test_what_does_not_fit_leaves_nothing_behind(small_run, tmp_path, select, message):
    folder = tmp_path / "empty"
    folder.mkdir()
    with pytest.raises(OptionError, match=message):
        export_run(small_run, tmp_path / "out", ExportOptions(select=select.format(folder)))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty"]


def test_the_command_line_says_it_in_one_line(small_run, tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["export", str(small_run), "--onnx", "--out", str(tmp_path / "out"), "--select", "tsk:3"])
    assert caught.value.code == 2
    said = "unknown --select 'tsk:3', expected in-graph, task:K or images:DIR; did you mean 'task'?"
    assert capsys.readouterr().err == f"error: {said}\n"
    assert not (tmp_path / "out").exists()


def test_an_unreadable_sample_is_named(small_run, tmp_path):
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples/bad.png").write_text("no image")
    with pytest.raises(DataError, match=r"cannot read image .*bad\.png"):
        export_run(small_run, tmp_path / "out", ExportOptions(select=f"images:{tmp_path / 'samples'}"))
    assert not (tmp_path / "out").exists()


def test_a_method_that_selects_nothing_says_so():
    with pytest.raises(OptionError, match="--select task:1 has no meaning with apt, which selects nothing"):
        check_select(Select(task=1), METHODS["apt"], "apt", 2)
    check_select(Select(images=Path("anything")).parse("in-graph"), METHODS["apt"], "apt", 2)
