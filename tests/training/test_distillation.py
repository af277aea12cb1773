"""Every distillation: its loss against plain loops, what it trains, what it leaves alone, and whole runs with it."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from cdl_deploy.errors import RunError
from cdl_deploy.run.method_options import ReviewKDConfig
from cdl_deploy.run.record import RunRecord
from cdl_deploy.run.record_parts import TaskPlan
from cdl_deploy.training.backbones.protocol import NetworkShape, TokenLayout
from cdl_deploy.training.checkpoint import load_run
from cdl_deploy.training.distillation import DISTILLATIONS
from cdl_deploy.training.distillation.features import TokenMatch, shared_area
from cdl_deploy.training.distillation.reviewkd import ReviewKD
from cdl_deploy.training.loop import check_learns, resume, train
from cdl_deploy.training.methods import METHODS
from cdl_deploy.training.models.learner import learner_logits
from cdl_deploy.training.models.teacher_student import TeacherStudent
from cdl_deploy.training.step import learning_rate, make_optimizer, stage_losses
from tests.training.conftest import make_backbone
from tests.training.naive import naive_block, naive_coda_weights, naive_embed
from tests.training.runs import Interrupt, config, weights
from tests.training.test_learner import make_pair, naive_logits, normalised, pixels
from tests.training.test_methods import make

LABELS = torch.tensor([2, 3, 4, 2])
"""Of the second task, whose classes are 2 to 4."""
OTHERS = ("kd", "dkd", "fitnets", "reviewkd", "deit")
"""All but `none` and `kdp`, which test_learner.py has."""


def current_logits(pair: TeacherStudent, images: torch.Tensor) -> tuple[list[list[float]], list[list[float]]]:
    """The class heads' logits of the current task's classes, student's and teacher's, as plain numbers."""
    query = pair.encoder(images)
    student = pair.student(query.student_tokens, query.query, "train").class_logits
    assert pair.teacher is not None
    teacher = pair.teacher(pair.teacher.backbone.embed(images), query.query, "test").class_logits
    return student[:, 2:].tolist(), teacher[:, 2:].tolist()


def softmax(logits: list[float], temperature: float = 1.0) -> list[float]:
    exponents = [math.exp(value / temperature) for value in logits]
    return [value / sum(exponents) for value in exponents]


def divergence(p: list[float], q: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def mean(values) -> float:
    values = list(values)
    return sum(values) / len(values)


def hand_terms(distill: str, pair: TeacherStudent, images: torch.Tensor, alpha: float = 0.5) -> dict[str, float]:
    """Cross-entropy and soft terms of the student's loss on its class head, image by image."""
    logits, guides = current_logits(pair, images)
    true = [int(label) - 2 for label in LABELS]
    terms = {"cross_entropy": (1 - alpha) * mean(-math.log(softmax(z)[y]) for z, y in zip(logits, true, strict=True))}
    if distill == "dkd":
        target, nontarget = [], []
        for z, guide, y in zip(logits, guides, true, strict=True):
            p, q = softmax(guide, 4), softmax(z, 4)
            target.append(divergence([p[y], 1 - p[y]], [q[y], 1 - q[y]]))
            rest_p, rest_q = ([v / (1 - x[y]) for i, v in enumerate(x) if i != y] for x in (p, q))
            nontarget.append(divergence(rest_p, rest_q))
        terms["target_distillation"] = alpha * 16 * mean(target)
        terms["nontarget_distillation"] = alpha * 4 * 16 * mean(nontarget)
    else:
        soft = mean(divergence(softmax(g, 2), softmax(z, 2)) for z, g in zip(logits, guides, strict=True))
        terms["distillation"] = alpha * 4 * soft
    return terms


@pytest.mark.parametrize("distill", ["kd", "dkd", "fitnets", "reviewkd"])
def test_soft_terms_on_the_class_head_are_worked_out_image_by_image(distill):
    pair = make_pair(distill)
    terms = stage_losses(pair, "student", pixels(4), LABELS)
    expected = hand_terms(distill, pair, pixels(4))
    assert set(terms) - {"feature"} == set(expected)
    assert ("feature" in terms) == (distill in ("fitnets", "reviewkd"))
    for name, value in expected.items():
        assert terms[name].item() == pytest.approx(value, rel=1e-4, abs=1e-6), name


def naive_hidden(pair: TeacherStudent, role, image: torch.Tensor) -> list[torch.Tensor]:
    """Tokens [N, D] of one image after every block, prompts and all, in a loop."""
    student, learner = pair.student.backbone.vit, pair.learners[role]
    tokens = naive_embed(student, normalised(image))
    for index in range(len(student.blocks)):
        tokens = naive_block(student, index, tokens)
    query, vit = student.norm(tokens)[0], learner.backbone.vit
    tokens = learner.backbone.embed(image[None])[0]
    hidden = []
    for index in range(len(vit.blocks)):
        prompts = {}
        if index < 5:
            block = learner.method.own_blocks()[index]
            weights = naive_coda_weights(query, block.attentions.all(), block.keys.all())
            rows = sum(w * p for w, p in zip(weights, block.prompts.all(), strict=True))
            prompts["before"] = (rows[:4], rows[4:])
        tokens = naive_block(vit, index, tokens, **prompts)
        hidden.append(tokens)
    return hidden


def on_the_students_grid(tokens: torch.Tensor) -> torch.Tensor:
    """A teacher with 2 registers and 4x4 patches, for a student with 2x2: means of 2x2 patches, one by one."""
    if len(tokens) == 5:
        return tokens
    patches = tokens[3:]
    rows = [tokens[0]]
    for y in range(2):
        for x in range(2):
            four = [patches[(2 * y + i) * 4 + 2 * x + j] for i in range(2) for j in range(2)]
            rows.append((four[0] + four[1] + four[2] + four[3]) / 4)
    return torch.stack(rows)


def difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return mean((a - b) ** 2 for a, b in zip(ours.flatten().tolist(), theirs.flatten().tolist(), strict=True))


TEACHERS = [{}, {"patch_size": 4, "reg_tokens": 2}, {"depth": 5}]
"""Deeper and wider than the student; with other patches and with registers; shallower than the student."""


@pytest.mark.parametrize("teacher", TEACHERS)
@torch.no_grad()
def test_fitnets_compares_the_last_tokens(teacher):
    pair = make_pair("fitnets", teacher=teacher, fitnets_weight=0.3)
    layer = pair.student.distillation.projection
    found = stage_losses(pair, "student", pixels(1), torch.tensor([3]))["feature"].item()
    own, theirs = (naive_hidden(pair, role, pixels(1)[0])[-1] for role in ("student", "teacher"))
    projected = torch.stack([layer.weight @ token + layer.bias for token in own])
    assert found == pytest.approx(0.3 * difference(projected, on_the_students_grid(theirs)), rel=1e-4)


def naive_norm(token: torch.Tensor, norm: torch.nn.LayerNorm) -> torch.Tensor:
    centred = token - token.mean()
    return centred / math.sqrt(centred.square().mean().item() + norm.eps) * norm.weight + norm.bias


@pytest.mark.parametrize("teacher", TEACHERS)
@torch.no_grad()
def test_reviewkd_hands_tokens_down_from_the_last_block_to_the_first(teacher):
    pair = make_pair("reviewkd", teacher=teacher, reviewkd_weight=0.3)
    fusions = pair.student.distillation.fusions
    for value in fusions.parameters():  # norms start at one and zero, which would hide mistakes
        torch.nn.init.normal_(value, std=0.5)
    found = stage_losses(pair, "student", pixels(1), torch.tensor([3]))["feature"].item()
    own, theirs = (naive_hidden(pair, role, pixels(1)[0]) for role in ("student", "teacher"))
    count = min(len(own), len(theirs))
    assert len(fusions) == count == {5: 5, 7: 6}[len(theirs)]
    handed, differences = None, []
    for step in range(1, count + 1):
        fusion, predicted, mixed = fusions[count - step], [], []
        for n, token in enumerate(own[-step]):
            x = naive_norm(fusion.gate.weight @ token + fusion.gate.bias, fusion.gate_norm) * token
            if handed is not None:
                r, gate = handed[n], fusion.handed_gate
                x = x + naive_norm(gate.weight @ r + gate.bias, fusion.handed_gate_norm) * r
            mixed.append(naive_norm(x, fusion.norm))
            predicted.append(fusion.expand.weight @ mixed[-1] + fusion.expand.bias)
        handed = mixed
        differences.append(difference(torch.stack(predicted), on_the_students_grid(theirs[-step])))
    assert found == pytest.approx(0.3 * mean(differences), rel=1e-4)


@pytest.mark.parametrize(
    ("cells", "others", "expected"),
    [
        (1, 2, [[1 / 2, 1 / 2]]),
        (2, 1, [[1], [1]]),
        (2, 3, [[2 / 3, 1 / 3, 0], [0, 1 / 3, 2 / 3]]),
        (3, 2, [[1, 0], [1 / 2, 1 / 2], [0, 1]]),
    ],
)
def test_shared_area_by_hand(cells, others, expected):
    torch.testing.assert_close(shared_area(cells, others), torch.tensor(expected, dtype=torch.float32))


def test_tokens_are_matched_by_place():
    """A student with one register, 1x2 patches and something appended; a teacher with 2x2 patches."""
    match = TokenMatch(TokenLayout(1, (1, 2)), TokenLayout(0, (2, 2)))
    student = torch.tensor([[[10.0], [99.0], [1.0], [2.0], [98.0]]])
    teacher = torch.tensor([[[20.0], [1.0], [2.0], [3.0], [4.0]]])
    assert match.of_student(student).flatten().tolist() == [10, 1, 2]
    assert match.of_teacher(teacher).flatten().tolist() == [20, (1 + 3) / 2, (2 + 4) / 2]
    assert match.state_dict() == {}, "a constant is no part of a checkpoint"


def test_a_backbone_knows_its_tokens():
    backbone = make_backbone(patch_size=4, reg_tokens=2)
    assert backbone.layout == TokenLayout(registers=2, grid=(4, 4))
    assert backbone.embed(pixels(1)).shape[1] == 1 + 2 + 16


@pytest.mark.parametrize("distill", OTHERS)
@pytest.mark.parametrize("teacher", [*TEACHERS, {"width": 24, "depth": 6, "heads": 3}])
def test_only_the_student_gets_gradients_whatever_the_teacher(distill, teacher):
    """Nothing frozen has one, nor the teacher; everything the student trains does, projections included."""
    pair = make_pair(distill, teacher=teacher)
    sum(stage_losses(pair, "student", pixels(4), LABELS).values()).backward()
    for name, learner in pair.learners.items():
        for parameter, value in learner.named_parameters():
            if not value.numel():  # no class is unfrozen
                continue
            frozen = parameter.startswith("backbone.") or name == "teacher"
            assert (value.grad is None) == frozen, f"{name}: {parameter}"
            assert frozen or value.grad.abs().max() > 0, f"{name}: {parameter}"


@pytest.mark.parametrize(
    ("distill", "prefix", "count"), [("fitnets", "projection", 2), ("reviewkd", "fusions", 6 * 8 + 5 * 4)]
)
def test_projections_learn_in_every_task_and_are_carried(distill, prefix, count):
    pair = make_pair(distill, tasks=(2,))
    layers = {n: v for n, v in pair.student.named_parameters() if n.startswith(f"distillation.{prefix}")}
    assert len(layers) == count
    labels = torch.tensor([0, 1, 1, 0])
    for task in range(2):
        optimizer = make_optimizer(pair.student, 0.01)
        assert {id(v) for v in layers.values()} <= {id(v) for group in optimizer.param_groups for v in group["params"]}
        before = {name: value.detach().clone() for name, value in layers.items()}
        sum(stage_losses(pair, "student", pixels(4), labels + pair.student.first_class).values()).backward()
        optimizer.step()
        optimizer.zero_grad()
        assert all(not torch.equal(before[name], layers[name]) for name in layers), task
        after = {name: value.detach().clone() for name, value in layers.items()}
        pair.begin_task(2, seed=0)
        now = dict(pair.student.named_parameters())
        assert all(now[name] is layers[name] and torch.equal(now[name], after[name]) for name in layers), task
    assert all(f"student/{name}" in pair.trained_state() for name in layers)


@pytest.mark.parametrize("distill", ["fitnets", "reviewkd"])
def test_projections_start_by_the_seed_alone(distill):
    torch.manual_seed(1)
    first = make_pair(distill).student.distillation.state_dict()
    torch.manual_seed(2)
    second = make_pair(distill).student.distillation.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    drawn = {name: value for name, value in first.items() if "norm" not in name}
    for name, value in drawn.items():
        width = drawn[name.replace("bias", "weight")].shape[1]
        assert 0 < value.abs().max() <= width**-0.5, name
        assert len(value.unique()) == value.numel(), name


def test_tokens_are_kept_for_who_looks_at_them_alone():
    for distill in DISTILLATIONS:
        pair = make_pair(distill)
        kept: list[int] = []
        for learner in pair.learners.values():
            learner.register_forward_hook(lambda module, given, output, kept=kept: kept.append(len(output.hidden)))
        stage_losses(pair, "student", pixels(4), LABELS)
        assert kept == {"reviewkd": [6, 6], "fitnets": [1, 1], "none": [0]}.get(distill, [0, 0]), distill


def test_deit_starts_at_zero_and_has_no_prefixes():
    pair = make_pair("deit", tasks=())
    deit = pair.student.distillation
    assert torch.equal(deit.token, torch.zeros(1, 24))
    assert deit.block_prompts() == {}
    groups = make_optimizer(pair.student, 0.01).param_groups
    assert [group["lr_scale"] for group in groups] == [1.0, 0.1]
    assert [id(value) for value in groups[1]["params"]] == [id(deit.token)]


@torch.no_grad()
def test_deit_answers_as_a_slow_loop_does():
    pair = make_pair("deit", alpha=0.3)
    torch.nn.init.normal_(pair.student.distillation.token)
    ours = learner_logits(pair.encoder, pair.student, pixels(2))
    for i in range(2):
        expected = naive_logits(pair, "student", pixels(2)[i], alpha=0.3)
        torch.testing.assert_close(ours[i], expected, atol=1e-4, rtol=1e-4)


def test_deit_distils_into_its_own_head():
    pair = make_pair("deit")
    terms = stage_losses(pair, "student", pixels(4), LABELS)
    query = pair.encoder(pixels(4))
    extra = pair.student(query.student_tokens, query.query, "train").extra_logits[:, 2:].tolist()
    _, guides = current_logits(pair, pixels(4))
    soft = mean(divergence(softmax(g, 2), softmax(z, 2)) for z, g in zip(extra, guides, strict=True))
    assert list(terms) == ["cross_entropy", "distillation"]
    assert terms["distillation"].item() == pytest.approx(0.5 * 4 * soft, rel=1e-4)
    assert terms["cross_entropy"].item() == pytest.approx(hand_terms("kd", pair, pixels(4))["cross_entropy"], rel=1e-4)


@pytest.mark.parametrize("distill", DISTILLATIONS)
def test_a_task_of_one_class_can_be_learned(distill):
    """Against the rows of the classes before it; the very first class has nothing to be told from."""
    for tasks, label in (((2, 1), 2), ((1,), 0)):
        pair = make_pair(distill, tasks=tasks)
        terms = stage_losses(pair, "student", pixels(4), torch.tensor([label] * 4))
        sum(terms.values()).backward()
        assert all(value.isfinite() for value in terms.values())
        assert (terms["cross_entropy"].item() > 0.01) == (label > 0)


def test_reviewkd_has_as_many_parameters_as_the_papers():
    """ViT-S to ViT-B: 23 gates of 384² + 384, 35 norms of 2·384, 12 outputs of 384·768 + 768."""
    small, base = NetworkShape(384, 12, 384), NetworkShape(768, 12, 384)
    reviewkd = ReviewKD(small, base, ReviewKDConfig(), torch.Generator().manual_seed(0))
    assert sum(value.numel() for value in reviewkd.parameters()) == 6_975_360


def test_fusions_of_earlier_versions_are_kept_and_do_not_learn():
    """Their finished tasks can be exported and saved again, tensor for tensor; training refuses in one line."""
    pair, new = make_pair("reviewkd"), make_pair("reviewkd", tasks=())
    state = {n: v for n, v in pair.trained_state().items() if ".fusions." not in n}
    for name, shape in {"0.reduce.weight": (24, 24), "0.gate.bias": (2,), "0.expand_norm.weight": (36,)}.items():
        state[f"student/distillation.fusions.{name}"] = torch.randn(shape)
    new.load_trained_state(state, [2, 3])
    again = new.trained_state()
    assert again.keys() == state.keys()
    assert all(torch.equal(again[name], state[name]) for name in state)
    assert torch.equal(*(learner_logits(p.encoder, p.student, pixels(2)) for p in (pair, new)))
    asked = config("photos", "reviewkd")
    one_left = RunRecord(asked, None, {}, [TaskPlan(("a",), "photos"), TaskPlan(("b",), "photos")], [None])
    check_learns(one_left, pair)
    check_learns(replace(one_left, tasks=[None, None]), new)
    with pytest.raises(RunError, match="this run was begun by an earlier version, whose --distill reviewkd had other"):
        check_learns(one_left, new)


def test_learning_rates_by_hand():
    """Cosine: (1 + cos(π·e/4)) / 2 is 1, (1 + √½)/2, 1/2, (1 − √½)/2; late, the first one comes twice."""
    half = math.sqrt(0.5) / 2
    rates = [0.2, 0.2 * (0.5 + half), 0.1, 0.2 * (0.5 - half)]
    assert [learning_rate(0.2, epoch, 4) for epoch in range(4)] == pytest.approx(rates)
    assert [learning_rate(0.2, epoch, 4, "cosine-late") for epoch in range(4)] == pytest.approx([0.2, *rates[:3]])


def test_the_papers_learning_rates_are_those_of_its_log():
    """K = 35 as published; with K = 2 the second epoch is as late as the first, K = 1 has no other."""
    found = [learning_rate(1e-3, epoch, 35, "quarter-cosine-late") for epoch in range(35)]
    assert [round(rate * 1e3, 6) for rate in found[:5]] == [1, 1, 0.998954, 0.995819, 0.990601]
    assert found[34] == pytest.approx(1e-3 * math.cos(99 * math.pi * 33 / (200 * 34)))
    assert [learning_rate(1e-3, epoch, 2, "quarter-cosine-late") for epoch in range(2)] == [1e-3, 1e-3]
    assert learning_rate(1e-3, 0, 1, "quarter-cosine-late") == 1e-3


@pytest.mark.parametrize("distill", OTHERS)
def test_a_run_interrupted_in_the_students_second_task_ends_as_if_it_had_not_been(distill, photos, tmp_path):
    """Bit for bit: projections and their moments go through the checkpoint like everything else."""
    asked = config(photos, distill, batch_size=12)  # one step an epoch
    whole = train(asked, tmp_path / "whole")
    expected = weights(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(
            asked, tmp_path / "run", Interrupt(4 + 2 + 2)
        )  # a task, the teacher's next, then the student's last epoch
    assert resume(tmp_path / "run").matrices == whole.matrices
    state = weights(tmp_path / "run")
    assert expected.keys() == state.keys()
    assert all(torch.equal(expected[name], state[name]) for name in expected)
    _, pair = load_run(tmp_path / "run")
    own = dict(pair.student.distillation.named_parameters())
    assert bool(own) == (distill in ("fitnets", "reviewkd", "deit"))


@pytest.mark.parametrize("distill", DISTILLATIONS)
@pytest.mark.parametrize(
    ("method", "query"),
    [
        (method, query)
        for method in METHODS
        for query in ("full", "block:1")
        if query == "full" or METHODS[method].uses_query
    ],
)
def test_every_pair_learns_a_later_task_and_leaves_the_earlier_alone(method, query, distill):
    """Teacher and student take two steps of the second task: theirs moves, an earlier task's does not."""
    pair = make(method, distill, query)
    for role, learner in pair.learners.items():
        before = {name: value.clone() for name, value in learner.trained_state().items()}
        optimizer = make_optimizer(learner, 0.01)
        for _ in range(2):  # a head of zeros hands nothing on at the first
            optimizer.zero_grad()
            terms = stage_losses(pair, role, pixels(4), LABELS)
            assert all(value.isfinite() for value in terms.values()), terms
            sum(terms.values()).backward()
            optimizer.step()
        after, trains = learner.trained_state(), {name for name, _ in learner.named_parameters()}
        for name, value in before.items():
            if value.numel():
                assert torch.equal(value, after[name]) == (name not in trains), f"{role}: {name}"
        logits = learner_logits(pair.encoder, learner, pixels(3))
        assert logits.shape == (3, sum(learner.tasks))
