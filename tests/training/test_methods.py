"""L2P, DualPrompt and APT against loops over images and rows, hand-worked numbers, and their promises about tasks."""

from __future__ import annotations

import pytest
import torch

from cdl_deploy.errors import OptionError
from cdl_deploy.run.config import MethodConfig
from cdl_deploy.run.method_options import APTConfig
from cdl_deploy.training.backbones.protocol import NetworkShape
from cdl_deploy.training.heads.cosine import CosineHead
from cdl_deploy.training.methods import METHODS, build_head, build_method
from cdl_deploy.training.methods.apt import AdditivePrompts
from cdl_deploy.training.methods.dualprompt import DualPrompt
from cdl_deploy.training.methods.l2p import L2P
from cdl_deploy.training.models.learner import learner_logits
from cdl_deploy.training.step import make_optimizer, stage_losses
from tests.training.naive_methods import naive_head, naive_logits
from tests.training.test_learner import make_pair, normalised, pixels

SHAPE = NetworkShape(width=24, depth=6, query_width=16)
NEW = ["l2p", "dualprompt", "apt"]


def random(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make(method: str, distill: str = "kdp", query: str = "full", **config):
    """A pair after two tasks, with prompts large enough to be seen in the logits."""
    pair = make_pair(distill, method=method, query=query, **config)
    with torch.no_grad():
        for learner in pair.learners.values():
            if isinstance(learner.method, AdditivePrompts):
                torch.nn.init.normal_(learner.method.working, std=0.5)
                learner.end_task()
                torch.nn.init.normal_(learner.method.working, std=0.5)
            if isinstance(learner.method, DualPrompt):  # uniform keys are all alike: every image would choose one
                for entries in learner.method.own_entries().values():
                    entries.keys.frozen.normal_()
                    torch.nn.init.normal_(entries.keys.trainable)
    return pair


@pytest.mark.parametrize(("distill", "role"), [("kdp", "student"), ("kdp", "teacher"), ("none", "student")])
@pytest.mark.parametrize("method", NEW)
@torch.no_grad()
def test_logits_equal_a_slow_loop(method, distill, role):
    pair = make(method, distill)
    images = pixels(2)
    ours = learner_logits(pair.encoder, pair.learners[role], images)
    assert ours.shape == (2, 5)
    for i in range(2):
        torch.testing.assert_close(ours[i], naive_logits(pair, role, normalised(images[i])), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("method", NEW)
def test_a_method_runs_in_any_plain_vit(method):
    """Teacher narrower and shallower than the student as well: keys keep the student's width."""
    shape = NetworkShape(width=8, depth=5, query_width=40)
    built = build_method(shape, MethodConfig(method=method), random())
    built.begin_task(random(1))
    prompts = built(torch.randn(3, 40), "train").prompts
    assert max(prompts) < 5
    for prompt in prompts.values():
        assert all(rows.shape[-1] == 8 for rows in prompt.prefix or prompt.cls_bias)


# L2P


def test_l2p_by_hand():
    """Two of three, the nearer one first; the pull is Σ over the chosen (1 − cos), mean over the batch."""
    method = L2P(NetworkShape(4, 1, 2), random(), pool_size=3, top_k=2, prompt_length=1, key_loss_weight=2.0)
    with torch.no_grad():
        method.keys.copy_(torch.tensor([[0.0, 3.0], [2.0, 0.0], [-1.0, 0.0]]))
        method.prompts.copy_(torch.arange(24.0).view(3, 2, 1, 4))
    selection = method(torch.tensor([[5.0, 0.0], [-1.0, 2.0]]), "train")
    keys, values = selection.prompts[0].prefix
    first, second = torch.arange(24.0).view(3, 2, 4)[[1, 0]], torch.arange(24.0).view(3, 2, 4)[[0, 2]]
    assert torch.equal(keys, torch.stack([first[:, 0], second[:, 0]]))
    assert torch.equal(values, torch.stack([first[:, 1], second[:, 1]]))
    pull = ((1 - 1) + (1 - 0) + (1 - 2 / 5**0.5) + (1 - 1 / 5**0.5)) / 2
    torch.testing.assert_close(selection.losses["key_loss"], torch.tensor(2.0 * pull))
    assert method(torch.randn(1, 2), "test").losses == {}
    selection.losses["key_loss"].backward()
    assert method.prompts.grad is None


def test_only_what_is_chosen_learns():
    method = L2P(SHAPE, random(), pool_size=6, top_k=2)
    query = torch.randn(1, 16, generator=random(1))
    selection = method(query, "train")
    (sum(rows.sum() for rows in selection.prompts[0].prefix) + selection.losses["key_loss"]).backward()
    chosen = set(torch.cosine_similarity(query, method.keys).topk(2).indices.tolist())
    for gradient in (method.keys.grad, method.prompts.grad):
        assert {i for i in range(6) if gradient[i].any()} == chosen


def test_prompts_start_uniform():
    l2p, dual = L2P(SHAPE, random()), DualPrompt(SHAPE, random())
    dual.begin_task(random(1))
    assert l2p.prompts.shape == (30, 2, 10, 24)
    assert l2p.keys.shape == (30, 16)
    assert dual.shared.shape == (2, 2, 3, 24)
    entries = dual.own_entries()
    assert list(entries) == [2, 3, 4]
    assert entries[2].prompts.all().shape == (1, 2, 10, 24)
    for values in (l2p.prompts, l2p.keys, dual.shared, entries[3].prompts.all()):
        assert 0 <= values.min() < 0.1 < 0.9 < values.max() < 1


# DualPrompt


def test_dualprompt_trains_the_entry_of_the_current_task_and_pulls_its_keys():
    method = DualPrompt(SHAPE, random(), key_loss_weight=3.0)
    for task in range(3):
        method.begin_task(random(task))
    query = torch.randn(4, 16)
    selection = method(query, "train")
    expected = 0.0
    for index, entries in method.own_entries().items():
        for part, rows in enumerate(selection.prompts[index].prefix):
            assert torch.equal(rows, entries.prompts.all()[2:3, part])
        key = entries.keys.all()[2]
        expected += sum(1 - torch.dot(q, key) / (q.norm() * key.norm()) for q in query) / 4
    torch.testing.assert_close(selection.losses["key_loss"], 3.0 * expected)
    assert method(query, "distil").losses == {}


def test_dualprompt_chooses_block_by_block_among_the_tasks_that_have_come():
    method = DualPrompt(SHAPE, random())
    method.begin_task(random(0))
    query = torch.eye(16)[:2]
    only = method(query, "test").prompts
    for index, entries in method.own_entries().items():
        assert torch.equal(only[index].prefix[0], entries.prompts.all()[[0, 0], 0])
    method.begin_task(random(1))
    for index, nearest in {2: [0, 1], 3: [1, 0], 4: [1, 1]}.items():
        entries = method.own_entries()[index]
        with torch.no_grad():
            keys = torch.full((2, 16), -1.0)
            for image, task in enumerate(nearest):
                keys[task, image] = 9.0
            entries.keys.frozen.copy_(keys[:1])
            entries.keys.trainable.copy_(keys[1:])
        for phase in ("test", "distil"):
            chosen = method(query, phase).prompts[index].prefix
            assert torch.equal(chosen[0], entries.prompts.all()[nearest, 0])
            assert torch.equal(chosen[1], entries.prompts.all()[nearest, 1])


def test_dualprompt_may_choose_keys_of_tasks_to_come():
    """As the paper's: four tasks planned, two learned, and an image that is nearest to the third's key gets it."""
    method = DualPrompt(SHAPE, random(), entries=4)
    shared = DualPrompt(SHAPE, random()).shared
    assert torch.equal(method.shared, shared), "what comes first is drawn as without"
    drawn = {index: entries.all_keys().clone() for index, entries in method.own_entries().items()}
    for task in range(2):
        method.begin_task(random(task))
    query = torch.randn(6, 16, generator=random(7))
    chosen = {}
    for index, entries in method.own_entries().items():
        assert torch.equal(entries.all_keys(), drawn[index]), "nothing was trained yet"
        torch.nn.init.normal_(entries.keys.trainable)
        keys = [*entries.keys.all(), *entries.later.keys]
        prompts = [*entries.prompts.all(), *entries.later.prompts]
        assert torch.equal(torch.stack(keys[2:]), drawn[index][2:])
        assert len(keys) == len(prompts) == 4
        near = [[torch.cosine_similarity(q, key, dim=0).item() for key in keys] for q in query]
        chosen[index] = [row.index(max(row)) for row in near]
        for phase in ("test", "distil"):
            for part, rows in enumerate(method(query, phase).prompts[index].prefix):
                assert torch.equal(rows, torch.stack([prompts[i][part] for i in chosen[index]]))
    assert any(i >= 2 for indices in chosen.values() for i in indices)
    assert any(i < 2 for indices in chosen.values() for i in indices)
    training = method(query, "train")
    expected = 0.0
    for index, entries in method.own_entries().items():
        assert torch.equal(training.prompts[index].prefix[0], entries.prompts.trainable[:, 0])
        expected += (1 - torch.cosine_similarity(query, entries.keys.trainable)).mean()
    torch.testing.assert_close(training.losses["key_loss"], expected)
    for task in range(2, 5):  # one more than there are entries
        method.begin_task(random(task))
    for index, entries in method.own_entries().items():
        assert (len(entries.keys), len(entries.all_keys()), len(entries.later.keys)) == (5, 5, 0)
        assert torch.equal(entries.keys.frozen[2:4], drawn[index][2:]), "a task begins with what could be chosen before"


def test_growing_equals_preallocating_through_training():
    """A pool with room for all tasks, in which task t trains row t: the same numbers, to the bit."""
    tasks, steps = 3, 4
    grown = DualPrompt(SHAPE, random(), prompt_length=2)
    pool = DualPrompt(SHAPE, random(), prompt_length=2)
    whole: dict[int, tuple[torch.nn.Parameter, torch.nn.Parameter]] = {}
    for task in range(tasks):
        pool.begin_task(random(task))
    for index, entries in pool.own_entries().items():
        whole[index] = (torch.nn.Parameter(entries.keys.all()), torch.nn.Parameter(entries.prompts.all()))

    def loss(prompts, key_of):
        query = torch.randn(4, 16, generator=random(9))
        total = torch.zeros(())
        for index, rows in prompts.items():
            total = total + (rows - 0.3).square().sum()
            if index in whole:
                total = total + (1 - torch.cosine_similarity(query, key_of(index))).mean()
        return total

    for task in range(tasks):
        grown.begin_task(random(task))
        ours = torch.optim.Adam([value for value in grown.parameters() if value.requires_grad], lr=0.05)
        theirs = torch.optim.Adam([pool.shared, *(value for pair in whole.values() for value in pair)], lr=0.05)
        for _ in range(steps):
            selection = grown(torch.randn(1, 16), "train").prompts
            rows = {index: torch.cat(prompt.prefix) for index, prompt in selection.items()}
            ours.zero_grad()
            loss(rows, lambda index: grown.own_entries()[index].keys.trainable).backward()
            ours.step()
            fixed = {0: pool.shared[0], 1: pool.shared[1]} | {i: prompts[task] for i, (_, prompts) in whole.items()}
            theirs.zero_grad()
            loss(fixed, lambda index, task=task: whole[index][0][task : task + 1]).backward()
            theirs.step()
        assert torch.equal(grown.shared, pool.shared)
        for index, entries in grown.own_entries().items():
            assert torch.equal(entries.keys.all(), whole[index][0][: task + 1])
            assert torch.equal(entries.prompts.all(), whole[index][1][: task + 1])


# APT


def test_merged_prompts_by_hand():
    method = AdditivePrompts(SHAPE, random(), merge_share=0.7)
    assert 0.015 < method.working.std() < 0.025
    assert method.working.abs().max() > 0
    for value, merged in ((1.0, 1.0), (2.0, 1.3), (5.0, 2.41)):
        torch.nn.init.constant_(method.working, value)
        method.end_task()
        torch.testing.assert_close(method.merged, torch.full((6, 2, 24), merged))
        assert torch.equal(method.working, torch.full((6, 2, 24), value)), "P goes on from task to task"
    for phase, expected in (("train", 5.0), ("distil", 5.0), ("test", 2.41)):
        prompts = method(None, phase).prompts
        assert sorted(prompts) == list(range(6))
        for prompt in prompts.values():
            for vector in prompt.cls_bias:
                torch.testing.assert_close(vector, torch.full((24,), expected))


def test_the_teacher_distils_with_the_prompts_it_has_just_trained():
    pair = make("apt")

    def distillation() -> float:
        return stage_losses(pair, "student", pixels(4), torch.tensor([2, 3, 4, 2]))["distillation"].item()

    before = distillation()
    pair.teacher.method.merged.normal_()
    assert distillation() == before
    torch.nn.init.normal_(pair.teacher.method.working)
    assert distillation() != before


def test_a_teacher_may_distil_with_what_was_merged_before_the_task():
    """As the paper's: zeros in the first task, G of the task before in every later one."""
    method = AdditivePrompts(SHAPE, random(), merge_share=0.7, distils_merged=True)
    for value, before in ((1.0, 0.0), (2.0, 1.0), (5.0, 1.3)):
        torch.nn.init.constant_(method.working, value)
        method.end_task()
        for vector in method(None, "distil").prompts[3].cls_bias:
            torch.testing.assert_close(vector, torch.full((24,), before))
    assert torch.equal(method(None, "train").prompts[0].cls_bias[0], method.working[0, 0])
    assert torch.equal(method(None, "test").prompts[0].cls_bias[0], method.merged[0, 0])
    build = METHODS["apt"].build
    names = [
        set(build(SHAPE, MethodConfig(method="apt", apt_teacher=name).part(APTConfig), random()).state_dict())
        for name in ("trained", "merged")
    ]
    assert names[1] - names[0] == {"before"}, "runs without the option have what they had"


def test_apt_runs_no_query_pass():
    pair = make("apt")
    calls = []
    pair.student.backbone.vit.blocks[0].norm1.register_forward_hook(lambda *_: calls.append(1))
    stage_losses(pair, "teacher", pixels(2), torch.tensor([2, 3]))
    assert calls == []
    stage_losses(pair, "student", pixels(2), torch.tensor([2, 3]))
    assert len(calls) == 1


@torch.no_grad()
def test_normalised_heads():
    features = torch.randn(3, 24) * 4 + 2
    head = build_head(24, MethodConfig(method="apt", head_start="linear"))
    head.begin_task(2, random())
    head.begin_task(3, random(1))
    logits = head(features)
    for i in range(3):
        torch.testing.assert_close(logits[i], naive_head(head, features[i]), atol=1e-5, rtol=1e-5)
    head.weight.frozen.mul_(7)
    torch.testing.assert_close(head(features), logits, msg="only the direction of a row counts")
    zeros = build_head(24, MethodConfig(method="apt"))
    zeros.begin_task(2, random())
    assert isinstance(zeros, CosineHead)
    torch.testing.assert_close(zeros(features), torch.zeros(3, 2), atol=1e-5, rtol=0)


def test_both_heads_of_an_apt_student_are_normalised():
    pair = make("apt")
    for head in (pair.teacher.class_head, pair.student.class_head, pair.student.distillation.head):
        assert isinstance(head, CosineHead)


# all of them


EVERY = [*((method, "full") for method in METHODS), ("l2p", "block:2"), ("coda", "block:1")]


@pytest.mark.parametrize(("method", "query"), EVERY)
def test_a_later_task_moves_nothing_of_earlier_ones_and_nothing_frozen(method, query):
    """With every loss on: pull, distillation, the query's regulariser. What all tasks share goes on learning."""
    weight = 0.5 if query != "full" else 0.0
    pair = make(method, query=query, query_regulariser=weight)
    kept = {name: value.clone() for name, value in pair.trained_state().items()}
    pair.begin_task(2, seed=0)
    compared = []
    for role, learner in pair.learners.items():
        frozen = {name: value.clone() for name, value in learner.backbone.state_dict().items()}
        optimizer = make_optimizer(learner, 0.05)
        for _ in range(2):
            optimizer.zero_grad()
            terms = stage_losses(pair, role, pixels(4), torch.tensor([5, 6, 5, 6]))
            assert ("query_regulariser" in terms) == (weight > 0)
            assert ("key_loss" in terms) == (method in ("l2p", "dualprompt"))
            sum(terms.values()).backward()
            for other in pair.learners.values():
                assert all(value.grad is None for value in other.backbone.parameters())
                if other is not learner and role == "teacher":
                    assert all(value.grad is None for value in other.parameters())
            for name, value in learner.named_parameters():
                unused = name.startswith("backbone.") or not value.numel()
                assert (value.grad is None) == unused, name
            optimizer.step()
        learner.end_task()
        assert all(torch.equal(value, frozen[name]) for name, value in learner.backbone.state_dict().items())
    state = pair.trained_state()
    for name in state:
        if name.endswith(".frozen"):
            before = torch.cat([kept[name], kept[name.removesuffix("frozen") + "trainable"]])
            assert torch.equal(state[name], before), name
            compared.append(name)
    rows = {"none": 0, "l2p": 0, "dualprompt": 3 * 2, "coda": 5 * 3, "apt": 0}[method]
    assert len(compared) == 2 * (rows + 2) + 2
    shared = {"l2p": ("keys", "prompts"), "dualprompt": ("shared",), "apt": ("working", "merged")}.get(method, ())
    for role in ("teacher", "student"):
        for name in shared:
            assert not torch.equal(state[f"{role}/method.{name}"], kept[f"{role}/method.{name}"])


@pytest.mark.parametrize("method", METHODS)
@torch.no_grad()
def test_state_goes_into_a_pair_that_has_seen_nothing(method):
    pair, fresh = make(method), make_pair(tasks=(), method=method)
    fresh.load_trained_state(pair.trained_state(), [2, 3])
    for role in ("teacher", "student"):
        expected = learner_logits(pair.encoder, pair.learners[role], pixels())
        assert torch.equal(learner_logits(fresh.encoder, fresh.learners[role], pixels()), expected)


@pytest.mark.parametrize("method", NEW)
def test_initial_values_follow_the_seed_and_the_role(method):
    a, b = make_pair(method=method), make_pair(method=method)
    for name, value in a.trained_state().items():
        assert torch.equal(value, b.trained_state()[name])
    other = build_method(SHAPE, MethodConfig(method=method), random(1))
    same = build_method(SHAPE, MethodConfig(method=method), random(2))
    name = {"l2p": "keys", "dualprompt": "shared", "apt": "working"}[method]
    assert not torch.equal(getattr(other, name), getattr(same, name))


@pytest.mark.parametrize(
    ("method", "where"),
    [("coda", "CODA-Prompt prompts blocks 0 to 4"), ("dualprompt", "DualPrompt prompts blocks 0 to 4")],
)
def test_a_model_with_too_few_blocks_is_refused(method, where):
    said = rf"{where} \(counted from 0\), but the model has 4 blocks: choose a deeper model, or more --student-blocks"
    with pytest.raises(OptionError, match=f"{said} where that is given$"):
        build_method(NetworkShape(24, 4, 16), MethodConfig(method=method), random())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"key_loss_weight": -1.0}, "--key-loss-weight is -1, expected at least 0"),
        ({"pool_size": 0}, "--pool-size is 0, expected at least 1"),
        ({"pool_size": 4}, "--top-k 5 is more than the --pool-size of 4: ask for fewer"),
        ({"prompt_length": 0}, "--prompt-length is 0, expected at least 1"),
        ({"shared_prompt_length": 0}, "--shared-prompt-length is 0, expected at least 1"),
        ({"merge_share": 1.5}, "--merge-share is 1.5, expected from 0 to 1"),
        ({"orthogonality": -1.0}, "--orthogonality is -1, expected at least 0"),
    ],
)
def test_impossible_values_are_named_by_option(values, message):
    with pytest.raises(OptionError, match=message):
        MethodConfig(**values)


def test_options_reach_the_method():
    def built(**values):
        return build_method(SHAPE, MethodConfig(**values), random())

    l2p = built(method="l2p", pool_size=7, top_k=2, prompt_length=3, key_loss_weight=2.0)
    assert (l2p.prompts.shape, l2p.top_k, l2p.key_loss_weight) == ((7, 2, 3, 24), 2, 2.0)
    dual = built(method="dualprompt", shared_prompt_length=2, prompt_length=4, key_loss_weight=0.5)
    assert (dual.shared.shape, dual.key_loss_weight) == ((2, 2, 2, 24), 0.5)
    assert dual.own_entries()[2].prompts.shape == (2, 4, 24)
    assert built(method="apt", merge_share=0.9).merge_share == 0.9
    coda = built(method="coda", prompt_length=6, orthogonality=0.1)
    assert (coda.prompt_length, coda.orthogonality, built().prompt_length) == (6, 0.1, 4)
