"""docs/adding-a-method.md does what it says: its examples are run as they stand there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from cdl_deploy.export.graph import ExportGraph
from cdl_deploy.training.distillation import DISTILLATIONS
from cdl_deploy.training.methods import METHODS
from cdl_deploy.training.models.learner import learner_logits
from cdl_deploy.training.step import make_optimizer, stage_losses
from tests.conftest import no_shape_checks
from tests.training.naive_methods import cosine
from tests.training.test_learner import make_pair, pixels

PAGE = Path(__file__).resolve().parents[2] / "docs/adding-a-method.md"
IMAGES, LABELS = pixels(4), torch.tensor([2, 3, 4, 2])


@pytest.fixture
def added():
    """The page's code, registry lines included, undone after the test."""
    before = [(registry, dict(registry)) for registry in (METHODS, DISTILLATIONS)]
    names: dict[str, object] = {"METHODS": METHODS, "DISTILLATIONS": DISTILLATIONS}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL):
        exec(compile(block, str(PAGE), "exec"), names)
    yield
    for registry, entries in before:
        registry.clear()
        registry.update(entries)


@pytest.mark.usefixtures("added")
def test_the_method_learns_with_any_query_and_keeps_earlier_tasks():
    for query, weight in (("full", 0.0), ("block:2", 0.5)):
        pair = make_pair(method="soft", query=query, query_regulariser=weight)
        kept = {name: value.clone() for name, value in pair.trained_state().items()}
        optimizer = make_optimizer(pair.student, 0.05)
        sum(stage_losses(pair, "student", IMAGES, LABELS).values()).backward()
        optimizer.step()
        for name, value in pair.student.method.state_dict().items():
            if not value.numel():  # no known class learns on
                continue
            assert torch.equal(value, kept[f"student/method.{name}"]) == name.endswith("frozen"), name


@pytest.mark.usefixtures("added")
@torch.no_grad()
def test_the_method_is_what_the_page_says():
    method = make_pair(method="soft").student.method
    query = torch.randn(1, 24)
    weights = torch.softmax(torch.tensor([cosine(query[0], key) for key in method.keys.all()]), 0)
    expected = weights[0] * method.prompts.all()[0] + weights[1] * method.prompts.all()[1]
    for part, rows in enumerate(method(query, "test").prompts[0].prefix):
        torch.testing.assert_close(rows[0], expected[part])


@pytest.mark.usefixtures("added")
@torch.no_grad()
def test_the_method_exports_as_it_is():
    with no_shape_checks():
        for query in ("full", "block:2"):
            pair = make_pair(method="soft", query=query)
            backbone = pair.student.backbone
            logits = ExportGraph(pair, pair.student)((IMAGES / 255 - backbone.mean) / backbone.std)[0]
            expected = learner_logits(pair.encoder, pair.student, IMAGES)
            torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)


@pytest.mark.usefixtures("added")
def test_the_distillation_is_what_the_page_says():
    pair = make_pair("logits")
    terms = stage_losses(pair, "student", IMAGES, LABELS)
    with torch.no_grad():
        teacher, student = (learner_logits(pair.encoder, learner, IMAGES) for learner in pair.learners.values())
    gap = (teacher - student)[:, 2:]  # the second task's three classes
    torch.testing.assert_close(terms["distillation"].detach(), 0.5 * (gap**2).sum() / (4 * 3), atol=1e-4, rtol=1e-4)
    sum(terms.values()).backward()
    assert all(value.grad is None for value in pair.teacher.parameters())


def test_every_name_the_page_points_to_exists():
    for target in re.findall(r"\]\(([^)]+)\)", PAGE.read_text(encoding="utf-8")):
        assert (PAGE.parent / target).exists(), target
