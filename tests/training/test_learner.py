"""A whole student, KD token, KD prompts, two heads and all, against the method written as a loop over images."""

from __future__ import annotations

import pytest
import torch

from cdl_deploy.run.config import MethodConfig
from cdl_deploy.training.backbones.protocol import Backbone
from cdl_deploy.training.distillation.extra_token import ExtraToken
from cdl_deploy.training.methods.coda import CodaPrompt
from cdl_deploy.training.models.learner import Role, learner_logits
from cdl_deploy.training.models.teacher_student import TeacherStudent, build_teacher_student
from cdl_deploy.training.step import make_optimizer, stage_losses
from tests.training.conftest import make_backbone
from tests.training.naive import naive_block, naive_coda_weights, naive_embed


def make_pair(
    distill: str = "kdp", tasks: tuple[int, ...] = (2, 3), depth: int = 6, teacher: dict | None = None, **config
) -> TeacherStudent:
    """Teacher and student of different width, depth and heads, with random values everywhere."""
    backbones: dict[Role, Backbone] = {"student": make_backbone(width=24, depth=depth, heads=3)}
    if distill != "none":
        shape = {"width": 32, "depth": depth + 1, "heads": 4, "seed": 1, **(teacher or {})}
        backbones["teacher"] = make_backbone(**shape)
    pair = build_teacher_student(backbones, MethodConfig(distill=distill, components_per_task=3, **config), seed=0)
    for classes in tasks:
        pair.begin_task(classes, seed=0)
    torch.manual_seed(5)
    for learner in pair.learners.values():  # zero heads would hide what feeds them
        for name, value in learner.named_parameters():
            if "head" in name:
                torch.nn.init.normal_(value)
        for name, buffer in learner.named_buffers():
            if "head" in name:
                buffer.normal_()
    return pair


def pixels(count: int = 2) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))


def normalised(image: torch.Tensor) -> torch.Tensor:
    mean, std = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.3, 0.4])
    return (image / 255 - mean[:, None, None]) / std[:, None, None]


def naive_logits(pair: TeacherStudent, role: Role, image: torch.Tensor, alpha: float = 0.5) -> torch.Tensor:
    """What a learner answers for one image, step by step as the method's page says."""
    student, learner = pair.student.backbone.vit, pair.learners[role]
    vit = learner.backbone.vit
    tokens = naive_embed(student, normalised(image))
    for index in range(len(student.blocks)):
        tokens = naive_block(student, index, tokens)
    query = student.norm(tokens)[0]

    tokens = naive_embed(vit, normalised(image))
    kdp = learner.distillation if isinstance(learner.distillation, ExtraToken) else None
    assert (kdp is not None) == (role == "student" and pair.teacher is not None)
    if kdp is not None:
        assert kdp.token is not None
        tokens = torch.cat([tokens, kdp.token])
    assert isinstance(learner.method, CodaPrompt)
    blocks = learner.method.own_blocks()
    for index in range(len(vit.blocks)):
        prompts = {}
        if index < 5:
            block = blocks[index]
            weights = naive_coda_weights(query, block.attentions.all(), block.keys.all())
            rows = sum(w * p for w, p in zip(weights, block.prompts.all(), strict=True))
            prompts["before"] = (rows[:4], rows[4:])
        if hasattr(kdp, "prompts") and index >= 1:
            prompts["after"] = (kdp.prompts[index - 1, 0], kdp.prompts[index - 1, 1])
        tokens = naive_block(vit, index, tokens, **prompts)
    tokens = vit.norm(tokens)
    logits = learner.class_head.weight.all() @ tokens[0] + learner.class_head.bias.all()
    if kdp is None:
        return logits
    return (1 - alpha) * logits + alpha * (kdp.head.weight.all() @ tokens[-1] + kdp.head.bias.all())


@pytest.mark.parametrize(("distill", "role"), [("kdp", "student"), ("kdp", "teacher"), ("none", "student")])
@torch.no_grad()
def test_logits_equal_a_slow_loop(distill, role):
    pair = make_pair(distill)
    images = pixels()
    ours = learner_logits(pair.encoder, pair.learners[role], images)
    assert ours.shape == (2, 5)
    for i in range(2):
        torch.testing.assert_close(ours[i], naive_logits(pair, role, images[i]), atol=1e-4, rtol=1e-4)


def test_kd_prompts_start_as_documented():
    default, paper = make_pair(tasks=()), make_pair(tasks=(), kd_token_start="uniform", kd_lr_scale=1.0)
    vit = default.student.backbone.vit
    torch.testing.assert_close(default.student.distillation.token[0], vit.cls_token[0, 0] + vit.pos_embed[0, 0])
    for pair, scale in ((default, 0.1), (paper, 1.0)):
        distillation = pair.student.distillation
        assert distillation.prompts.shape == (5, 2, 3, 24)
        assert 0 <= distillation.prompts.min() < 0.1 < 0.9 < distillation.prompts.max() < 1
        groups = make_optimizer(pair.student, 0.01).param_groups
        assert [group["lr_scale"] for group in groups] == [1.0, scale]
        assert {id(value) for value in groups[1]["params"]} == {id(distillation.token), id(distillation.prompts)}
    assert 0 <= paper.student.distillation.token.min() < paper.student.distillation.token.max() < 1


@pytest.mark.parametrize(("start", "spread"), [("zeros", 0.0), ("linear", 24**-0.5)])
def test_heads_start_as_documented(start, spread):
    pair = make_pair(tasks=(), head_start=start)
    pair.begin_task(2, seed=0)
    for rows in (pair.student.class_head.weight.all(), pair.student.distillation.head.weight.all()):
        assert rows.abs().max() <= spread
        assert (rows != 0).any() == (start == "linear")


@torch.no_grad()
def test_alpha_weighs_the_two_heads():
    pair = make_pair(alpha=0.2)
    ours = learner_logits(pair.encoder, pair.student, pixels(1))[0]
    torch.testing.assert_close(ours, naive_logits(pair, "student", pixels(1)[0], alpha=0.2), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_a_batch_of_one_is_a_batch_of_eight():
    pair = make_pair()
    together = learner_logits(pair.encoder, pair.student, pixels(8))
    alone = torch.cat([learner_logits(pair.encoder, pair.student, image[None]) for image in pixels(8)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def test_the_loss_terms_are_the_methods():
    pair = make_pair()
    images, labels = pixels(4), torch.tensor([2, 3, 4, 2])
    terms = stage_losses(pair, "student", images, labels)
    assert list(terms) == ["cross_entropy", "distillation"]
    with torch.no_grad():
        query = pair.encoder(images)
        student = pair.student(query.student_tokens, query.query, "train")
        teacher = pair.teacher(pair.teacher.backbone.embed(images), query.query, "test")
    cross = torch.nn.CrossEntropyLoss()(student.class_logits[:, 2:], labels - 2)
    p = torch.softmax(teacher.class_logits[:, 2:] / 2, 1)
    q = torch.softmax(student.extra_logits[:, 2:] / 2, 1)
    divergence = (p * (p / q).log()).sum(1).mean()
    torch.testing.assert_close(terms["cross_entropy"], 0.5 * cross)
    torch.testing.assert_close(terms["distillation"], 0.5 * 4 * divergence)


def test_without_distillation_the_cross_entropy_counts_whole():
    pair = make_pair("none")
    images, labels = pixels(4), torch.tensor([2, 3, 4, 2])
    terms = stage_losses(pair, "student", images, labels)
    query = pair.encoder(images)
    logits = pair.student(query.student_tokens, query.query, "train").class_logits
    assert list(terms) == ["cross_entropy"]
    torch.testing.assert_close(terms["cross_entropy"], torch.nn.CrossEntropyLoss()(logits[:, 2:], labels - 2))


@pytest.mark.parametrize("distill", ["none", "kd", "kdp"])
def test_one_class_is_learned_against_all_others(distill):
    """Over its own logit alone the cross-entropy is constant, and its row would stay random."""
    pair = make_pair(distill)
    seen = sum(pair.student.tasks)
    pair.begin_task(1, 0)
    images, labels = pixels(4), torch.full((4,), seen)
    terms = stage_losses(pair, "student", images, labels)
    output = pair.student(*pair.encoder(images)[1::-1], "train")
    cross = torch.nn.CrossEntropyLoss()(output.class_logits, labels)
    torch.testing.assert_close(terms["cross_entropy"], cross if distill == "none" else cross * 0.5)
    sum(terms.values()).backward()
    head = pair.student.class_head.weight
    assert head.trainable.grad.abs().sum() > 0
    assert head.frozen.grad is None
    if distill != "none":
        assert terms["distillation"] > 0


def test_one_known_class_is_trained_on_against_all_others():
    pair = make_pair("none")
    pair.begin_task(0, 0, [1])
    images, labels = pixels(4), torch.full((4,), 1)
    terms = stage_losses(pair, "student", images, labels)
    logits = pair.student(*pair.encoder(images)[1::-1], "train").class_logits
    torch.testing.assert_close(terms["cross_entropy"], torch.nn.CrossEntropyLoss()(logits, labels))


@pytest.mark.parametrize("role", ["teacher", "student"])
def test_only_the_learner_at_hand_gets_gradients(role):
    """Nothing frozen ever has one, and everything the learner trains does."""
    pair = make_pair()
    sum(stage_losses(pair, role, pixels(4), torch.tensor([2, 3, 4, 2])).values()).backward()
    for name, learner in pair.learners.items():
        for parameter, value in learner.named_parameters():
            unused = parameter.startswith("backbone.") or parameter.endswith(".unfrozen")  # no known class learns on
            frozen = unused or name != role
            assert (value.grad is None) == frozen, f"{name}: {parameter}"


def test_the_query_pass_runs_once_for_both():
    pair = make_pair()
    calls = []
    block = pair.student.backbone.vit.blocks[0]
    block.register_forward_hook(lambda *_: calls.append(1))  # the prompted pass calls the block's parts instead
    stage_losses(pair, "student", pixels(2), torch.tensor([2, 3]))
    assert len(calls) == 1


def test_what_belongs_to_earlier_tasks_is_bit_identical_after_a_later_one():
    pair = make_pair(tasks=(2, 2))
    kept = {name: value.clone() for name, value in pair.trained_state().items()}
    pair.begin_task(3, seed=0)
    for role in ("teacher", "student"):
        optimizer = make_optimizer(pair.learners[role], 0.05)
        for _ in range(3):
            optimizer.zero_grad()
            sum(stage_losses(pair, role, pixels(4), torch.tensor([4, 5, 6, 4])).values()).backward()
            optimizer.step()
    state = pair.trained_state()
    compared = 0
    for name in state:
        if name.endswith(".frozen"):
            before = torch.cat([kept[name], kept[name.removesuffix("frozen") + "trainable"]])
            assert torch.equal(state[name], before), name
            compared += 1
    assert compared == 2 * (5 * 3 + 2) + 2  # CODA's three parts in five blocks and two heads each; the KD head
    moved = [
        n for n in ("student/distillation.token", "student/distillation.prompts") if not torch.equal(state[n], kept[n])
    ]
    assert len(moved) == 2, "KD prompts are carried through all tasks and go on learning"


def test_state_goes_into_a_pair_that_has_seen_nothing():
    pair, fresh = make_pair(tasks=(2, 3)), make_pair(tasks=())
    fresh.load_trained_state(pair.trained_state(), [2, 3])
    expected = learner_logits(pair.encoder, pair.student, pixels())
    assert torch.equal(learner_logits(fresh.encoder, fresh.student, pixels()), expected)
    assert fresh.student.first_class == 2
