"""Options that depart from the paper, off by default: what they change, against plain loops, and what they leave."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from scipy.optimize import minimize

from cdl_deploy.export.heads import fold_heads
from cdl_deploy.run.config import MethodConfig
from cdl_deploy.training.checkpoint import load_run
from cdl_deploy.training.data.task_data import TaskImages, hold_out
from cdl_deploy.training.loop import resume, train
from cdl_deploy.training.models.calibration import TaskCalibration
from cdl_deploy.training.models.learner import learner_logits, learner_output
from cdl_deploy.training.step import make_optimizer, stage_losses
from tests.training.runs import Interrupt, config, weights
from tests.training.test_distillation import divergence, mean, softmax
from tests.training.test_learner import make_pair, pixels

LABELS = torch.tensor([2, 3, 4, 2])


@pytest.mark.parametrize("distill", ["kd", "kdp", "deit"])
def test_all_seen_classes_are_distilled_image_by_image(distill):
    pair = make_pair(distill, kd_classes="seen")
    query = pair.encoder(pixels(4))
    output = pair.student(query.student_tokens, query.query, "train")
    logits = (output.class_logits if distill == "kd" else output.extra_logits).tolist()
    guides = learner_logits(pair.encoder, pair.teacher, pixels(4)).tolist()
    expected = 0.5 * 4 * mean(divergence(softmax(g, 2), softmax(z, 2)) for z, g in zip(logits, guides, strict=True))
    terms, paper = (
        {name: term.item() for name, term in stage_losses(p, "student", pixels(4), LABELS).items()}
        for p in (pair, make_pair(distill))
    )
    assert terms["distillation"] == pytest.approx(expected, rel=1e-5)
    assert terms["cross_entropy"] == pytest.approx(paper["cross_entropy"], rel=1e-6)
    assert paper["distillation"] != pytest.approx(expected, rel=1e-3)


def test_rows_of_earlier_tasks_stand_still_when_all_seen_classes_are_distilled():
    pair = make_pair(kd_classes="seen")
    optimizer = make_optimizer(pair.student, 0.1)
    head = pair.student.distillation.head.weight
    earlier, current = head.frozen.clone(), head.trainable.detach().clone()
    torch.stack(list(stage_losses(pair, "student", pixels(4), LABELS).values())).sum().backward()
    optimizer.step()
    assert torch.equal(head.frozen, earlier)
    assert not torch.equal(head.trainable, current)


@torch.no_grad()
def test_without_a_token_the_kd_head_reads_the_class_token():
    pair = make_pair(kd_token_start="none", kd_prompt_length=0)
    student = pair.student
    output = learner_output(pair.encoder, student, pixels(2))
    features = output.features[:, 0]
    head = student.distillation.head
    torch.testing.assert_close(output.extra_logits, features @ head.weight.all().T + head.bias.all())
    plain = make_pair("none")
    plain.student.load_state_dict(student.state_dict(), strict=False)
    torch.testing.assert_close(  # neither token nor prompts: what the class head reads is the student's alone
        output.class_logits, learner_logits(plain.encoder, plain.student, pixels(2)), atol=1e-5, rtol=1e-5
    )


def test_kd_prompts_start_as_asked():
    rows = make_pair(tasks=(), kd_prompt_start="orthogonal", kd_prompt_scale=0.5, kd_prompt_blocks=2)
    rows = rows.student.distillation.prompts
    assert rows.shape == (2, 2, 3, 24)
    for block in rows.detach().flatten(1, 2):
        torch.testing.assert_close(block @ block.T, 0.25 * torch.eye(6), atol=1e-5, rtol=0)
    plain, scaled = make_pair(tasks=()), make_pair(tasks=(), kd_prompt_scale=0.1)
    torch.testing.assert_close(scaled.student.distillation.prompts, 0.1 * plain.student.distillation.prompts)
    assert sorted(plain.student.distillation.block_prompts()) == [1, 2, 3, 4, 5]
    pair = make_pair(tasks=(), kd_prompt_blocks=2)
    assert sorted(pair.student.distillation.block_prompts()) == [1, 2]


@torch.no_grad()
def test_a_cosine_head_is_the_students_alone():
    pair = make_pair(student_head="cosine")
    assert type(pair.teacher.class_head) is not type(pair.student.class_head)
    output = learner_output(pair.encoder, pair.student, pixels(2))
    for token, head, logits in (
        (0, pair.student.class_head, output.class_logits),
        (-1, pair.student.distillation.head, output.extra_logits),
    ):
        for image in range(2):
            x = output.features[image, token]
            x = (x - x.mean()) / (x.var(unbiased=False) + 1e-5).sqrt()
            for row, bias, logit in zip(head.weight.all(), head.bias.all(), logits[image], strict=True):
                assert float(x @ row / row.norm() + bias) == pytest.approx(float(logit), abs=1e-4)


def test_images_are_held_out_by_class():
    images = TaskImages([Path(f"{i:02}.png") for i in range(25)], [4] * 10 + [5] * 12 + [6] * 3)
    kept, held = hold_out(images, 0.25, torch.Generator().manual_seed(0))
    assert [held.labels.count(label) for label in (4, 5, 6)] == [2, 3, 0]
    assert sorted([*kept.items, *held.items]) == images.items
    known = dict(zip(images.items, images.labels, strict=True))
    assert all(known[item] == label for item, label in zip(held.items, held.labels, strict=True))
    assert hold_out(images, 0)[0] == images


@torch.no_grad()
def test_alpha_is_chosen_for_the_tasks_classes_alone():
    pair = make_pair(alpha_holdout=0.1)
    distillation = pair.student.distillation
    logits, extra = torch.randn(64, 5), torch.randn(64, 5)
    labels = torch.randint(2, 5, (64,))
    logits[torch.arange(64), labels] += 2
    distillation.choose_alpha(logits, extra, labels, first_class=2)

    def loss(share: float) -> float:
        mixed = ((1 - share) * logits + share * extra)[:, 2:].tolist()
        return mean(-math.log(softmax(z)[int(y) - 2]) for z, y in zip(mixed, labels, strict=True))

    best = min((step / 10 for step in range(11)), key=loss)
    assert best < 0.5
    assert distillation.chosen.alpha.tolist() == pytest.approx([0.5, 0.5, best, best, best])
    alpha = distillation.chosen.alpha
    torch.testing.assert_close(distillation.predict(logits, extra), (1 - alpha) * logits + alpha * extra)


def test_calibration_finds_what_another_optimiser_finds():
    torch.manual_seed(0)
    head, centres = torch.randn(5, 8), torch.randn(5, 8)
    labels = torch.arange(5).repeat_interleave(200)
    features = (centres[labels] + 0.3 * torch.randn(1000, 8))[:, None]
    calibration = TaskCalibration()
    for classes in (2, 3):
        calibration.begin_task(classes)
        now = len(calibration.scale)
        own = (labels >= now - classes) & (labels < now)
        calibration.remember(features[own], labels[own])
    means = torch.stack([features[labels == c, 0].mean(0) for c in range(5)])
    torch.testing.assert_close(calibration.mean[:, 0], means)
    answers = []

    def answer(drawn):
        answers.append(drawn[:, 0] @ head.T)
        return answers[-1]

    calibration.fit(answer, [2, 3], seed=0)
    (logits,) = answers
    drawn = torch.arange(5).repeat_interleave(100)

    def loss(values) -> float:
        scale, offset = (torch.tensor([a, a, b, b, b]) for a, b in (values[:2], values[2:]))
        return float(torch.nn.functional.cross_entropy(logits.double() * scale.exp() + offset, drawn))

    found = loss([*calibration.scale[[0, 2]].log().tolist(), *calibration.offset[[0, 2]].tolist()])
    assert found == pytest.approx(minimize(loss, [0.0] * 4, method="Nelder-Mead").fun, abs=1e-4)
    assert found < loss([0.0] * 4) - 0.01
    torch.testing.assert_close(calibration(torch.ones(1, 5))[0], calibration.scale + calibration.offset)


@torch.no_grad()
@pytest.mark.parametrize(
    "changes",
    [{"calibration": "statistics"}, {"alpha_holdout": 0.1}, {"kd_token_start": "none"}, {"student_head": "cosine"}],
)
def test_folded_heads_say_the_same(changes):
    student = make_pair(**changes).student
    if student.calibration is not None:
        student.calibration.scale.uniform_(0.5, 2)
        student.calibration.offset.normal_()
    if student.distillation.chosen is not None:
        student.distillation.chosen.alpha.uniform_()
    folded = fold_heads(student)
    tokens = torch.randn(3, 6, 24)
    torch.testing.assert_close(
        folded(tokens[:, list(folded.output_tokens)]),
        student.predict(student.apply_heads(tokens)),
        atol=1e-5,
        rtol=1e-5,
    )


def test_a_run_that_settles_its_answers_resumes_and_reloads(photos, tmp_path):
    plan = config(photos)
    settled = MethodConfig(components_per_task=2, calibration="statistics", alpha_holdout=0.3)
    whole = train(replace(plan, method=settled), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(replace(plan, method=settled), tmp_path / "parts", Interrupt(after=13))
    assert resume(tmp_path / "parts").matrices == whole.matrices
    first, second = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert {name for name in first if "calibration" in name}
    assert all(torch.equal(first[name], second[name]) for name in first)
    student = load_run(tmp_path / "whole")[1].student
    assert len(set(student.calibration.offset.tolist())) == 2, "one value a task"
    early = load_run(tmp_path / "whole", after=1)[1].student
    assert len(early.calibration.scale) == len(early.distillation.chosen.alpha) == 2
    plain = train(plan, tmp_path / "plain")
    other = train(replace(plan, method=replace(settled, alpha_holdout=0.0)), tmp_path / "other")
    assert other.matrices["teacher"] == plain.matrices["teacher"]
    before, after = weights(tmp_path / "plain"), weights(tmp_path / "other")
    assert all(torch.equal(before[name], after[name]) for name in before), "calibration changes no training"
