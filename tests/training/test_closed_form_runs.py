"""Runs with closed-form heads: one pass a task, the same whatever the order, taken back exactly, forgotten for good.

The oracle is scikit-learn on all images at once, on features that a learner without any head gives.
"""

from __future__ import annotations

import itertools
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import Ridge

from cdl_deploy.cli import main
from cdl_deploy.errors import CdlError, OptionError, RunError
from cdl_deploy.run.config import DataConfig, MethodConfig, ModelConfig, OptimConfig, RunConfig
from cdl_deploy.training import evaluation
from cdl_deploy.training.checkpoint import load_run
from cdl_deploy.training.context import KeptFeatures
from cdl_deploy.training.loop import add_task, train
from cdl_deploy.training.models.learner import learner_logits
from cdl_deploy.training.preparation import Addition
from cdl_deploy.training.revisions import forget_class, new_heads, undo_task
from tests.tiny_models import tiny_pair, write_tiny_weights
from tests.training.conftest import COLOURS, pixels_of, write_images

NAMES = sorted(COLOURS)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    root = tmp_path_factory.mktemp("photos")
    write_images(root / "train", dict.fromkeys(COLOURS, 12))
    write_images(root / "test", dict.fromkeys(COLOURS, 4), seed=1)
    return root


def frozen(photos, tasks=None, seed=0, **method):
    """A configuration of the frozen backbone; `tasks` are lists of classes."""
    plan = MethodConfig(**{"method": "none", "distill": "none", "head": "slda", **method})
    data = DataConfig(str(photos), tasks=len(NAMES) // 2 if tasks is None else tasks, class_order="natural")
    return RunConfig(data, ModelConfig(), plan, OptimConfig(epochs=1, batch_size=8, device="cpu", seed=seed))


def joined_features(root, photos, split):
    """Class token and mean patch token of the frozen student, by timm's own forward, and labels by name."""
    record, pair = load_run(root)
    files = [path for name in record.classes for path in sorted((photos / split / name).iterdir())]
    pixels = pixels_of(record, files)
    backbone = pair.student.backbone
    with torch.no_grad():
        tokens = backbone.vit.forward_features((pixels.float() / 255 - backbone.mean) / backbone.std)
    first = backbone.vit.num_prefix_tokens
    return torch.cat([tokens[:, 0], tokens[:, first:].mean(dim=1)], dim=1).numpy(), [path.parent.name for path in files]


def logits_of(root, photos):
    record, pair = load_run(root)
    files = [path for name in record.classes for path in sorted((photos / "test" / name).iterdir())]
    with torch.no_grad():
        return learner_logits(pair.encoder, pair.student, pixels_of(record, files))


def test_a_teacher_is_trained_to_compare_with_and_changes_nothing(photos, tmp_path):
    """`--train-teacher`: the student is the same bit for bit, and the teacher has results of its own."""
    alone = frozen(photos, tasks=2)
    both = replace(alone, models=replace(alone.models, train_teacher=True))
    records = [train(config, tmp_path / name) for name, config in (("alone", alone), ("both", both))]
    assert [sorted(record.matrices) for record in records] == [["student"], ["student", "teacher"]]
    assert torch.equal(logits_of(tmp_path / "alone", photos), logits_of(tmp_path / "both", photos))
    assert records[1].backbones["teacher"].model.startswith("mini_teacher")


def test_slda_equals_scikit_learn_on_all_images_at_once(photos, tmp_path):
    record = train(frozen(photos), tmp_path / "run")
    head = record.tasks[-1].heads["student"]
    features, labels = joined_features(tmp_path / "run", photos, "train")
    known = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=head.chosen, priors=[1 / len(NAMES)] * len(NAMES))
    known.fit(features.astype(np.float64), labels)
    tests, answers = joined_features(tmp_path / "run", photos, "test")
    expected = known.decision_function(tests.astype(np.float64)) / head.temperature
    order = [list(known.classes_).index(name) for name in record.classes]
    found = logits_of(tmp_path / "run", photos).numpy()
    difference = (found - found[:, :1]) - (expected[:, order] - expected[:, order][:, :1])
    assert np.abs(difference).max() < 2e-3 * np.abs(expected).max()
    right = [record.classes[i] == name for i, name in zip(found.argmax(1), answers, strict=True)]
    by_task = [[ok for ok, name in zip(right, answers, strict=True) if name in task.classes] for task in record.tasks]
    assert record.matrices["student"][-1] == pytest.approx([100 * np.mean(own) for own in by_task])
    assert np.mean(right) > 0.6


def test_ridge_equals_scikit_learn(photos, tmp_path):
    record = train(frozen(photos, head="ridge", ridge_penalty=0.3), tmp_path / "run")
    features, labels = joined_features(tmp_path / "run", photos, "train")
    targets = np.array([[float(name == label) for name in record.classes] for label in labels])
    known = Ridge(alpha=0.3).fit(features.astype(np.float64), targets)
    expected = known.predict(joined_features(tmp_path / "run", photos, "test")[0].astype(np.float64))
    expected = (expected - expected.mean(axis=1, keepdims=True)) / record.tasks[-1].heads["student"].temperature
    found = logits_of(tmp_path / "run", photos).double().numpy()
    found -= found.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(found, expected, atol=2e-3 * np.abs(expected).max())


def test_additions_one_by_one_equal_one_run_in_any_order(photos, tmp_path):
    train(frozen(photos), tmp_path / "whole")
    whole = load_run(tmp_path / "whole")
    by_name = dict(zip(whole[0].classes, whole[1].student.closed_form.weight, strict=True))
    order = [NAMES[i] for i in np.random.default_rng(0).permutation(len(NAMES))]
    plan = tmp_path / "tasks.json"
    plan.write_text(json.dumps([order[:2]]))
    first = frozen(photos)
    first = RunConfig(DataConfig(str(photos), task_file=str(plan)), first.models, first.method, first.optim)
    train(first, tmp_path / "parts")
    for name in order[2:]:
        record = add_task(tmp_path / "parts", Addition(str(photos), classes=(name,)))
    assert record.classes == order
    assert [len(task.classes) for task in record.tasks][1:] == [1] * (len(NAMES) - 2)
    head = load_run(tmp_path / "parts")[1].student.closed_form
    sums, wanted = head.statistics, whole[1].student.closed_form.statistics
    np.testing.assert_allclose(sums.scatter, wanted.scatter, rtol=0, atol=1e-9 * np.abs(wanted.scatter).max())
    for name, row in zip(order, head.weight, strict=True):
        torch.testing.assert_close(row, by_name[name], atol=1e-5 * float(row.abs().max()), rtol=1e-5)


def test_an_addition_is_taken_back_bit_for_bit(photos, tmp_path):
    plan = tmp_path / "tasks.json"
    plan.write_text(json.dumps([NAMES[:2]]))
    base = frozen(photos)
    train(RunConfig(DataConfig(str(photos), task_file=str(plan)), base.models, base.method, base.optim), tmp_path / "r")
    with pytest.raises(RunError, match="has no addition to undo"):
        undo_task(tmp_path / "r")
    before = {f.name: f.read_bytes() for f in (tmp_path / "r/checkpoints").iterdir() if f.name.startswith("task")}
    record = json.loads((tmp_path / "r/run.json").read_text())
    shutil.copytree(photos / "train" / NAMES[2], tmp_path / "new" / NAMES[2])
    (tmp_path / "new" / NAMES[2] / "torn.png").write_bytes(b"no image")
    (tmp_path / "new" / NAMES[2] / "notes.txt").write_text("no image")
    longer = add_task(tmp_path / "r", Addition(str(tmp_path / "new"), holdout=0.2, skip_bad=True))
    assert longer.skipped_images == [str(tmp_path / "new" / NAMES[2] / "torn.png")]
    assert longer.left_out == {NAMES[2]: {".txt": 1}}
    undo_task(tmp_path / "r")
    after = {f.name: f.read_bytes() for f in (tmp_path / "r/checkpoints").iterdir() if f.name.startswith("task")}
    assert after == before
    assert json.loads((tmp_path / "r/run.json").read_text()) == record


def test_a_forgotten_class_leaves_no_sum_and_is_never_said(photos, tmp_path):
    train(frozen(photos), tmp_path / "run")
    gone = NAMES[1]
    record = forget_class(tmp_path / "run", gone)
    assert record.known_classes == [name for name in NAMES if name != gone]
    for number in range(1, len(record.tasks) + 1):
        head = load_run(tmp_path / "run", after=number)[1].student.closed_form
        assert "1" not in head.statistics.classes
    assert not (logits_of(tmp_path / "run", photos).argmax(dim=1) == 1).any()
    with pytest.raises(OptionError, match=f"knows no class '{gone}'"):
        forget_class(tmp_path / "run", gone)
    before = json.loads((tmp_path / "run/run.json").read_text())
    record = add_task(tmp_path / "run", Addition(str(photos), classes=(gone,)))
    assert gone in record.known_classes
    assert (logits_of(tmp_path / "run", photos).argmax(dim=1) == 1).any()
    assert undo_task(tmp_path / "run").forgotten == [gone]
    assert json.loads((tmp_path / "run/run.json").read_text()) == before


@pytest.mark.parametrize(
    ("method", "distill"), [("coda", "kdp"), ("dualprompt", "none"), ("l2p", "kd"), ("apt", "deit")]
)
def test_prompts_train_in_the_first_task_alone(photos, tmp_path, method, distill):
    record = train(frozen(photos, method=method, distill=distill), tmp_path / "run")
    assert [task.optim.epochs for task in record.tasks] == [1] + [0] * (len(record.tasks) - 1)
    first, last = (load_run(tmp_path / "run", after=number)[1] for number in (1, len(record.tasks)))
    for role, learner in last.learners.items():
        then = first.learners[role].method.state_dict()
        assert all(torch.equal(value, then[name]) for name, value in learner.method.state_dict().items())
        assert learner.closed_form.statistics.images == 12 * len(NAMES)
    assert set(record.tasks[-1].heads) == set(last.learners)


def looked_at(monkeypatch):
    """How often a test image passes through a backbone from here on: a list that grows."""
    seen, batches = [], evaluation.evaluation_batches

    def counting(test, *rest):
        seen.extend(str(item) for item in test.items)
        return batches(test, *rest)

    monkeypatch.setattr(evaluation, "evaluation_batches", counting)
    return seen


@pytest.mark.parametrize(("method", "adapt", "times"), [("none", "none", 1), ("l2p", "first", 1), ("l2p", "all", 3)])
def test_where_no_feature_changes_a_test_image_is_looked_at_once(photos, tmp_path, monkeypatch, method, adapt, times):
    """And the accuracies are those of looking again after every task."""
    write_tiny_weights(tmp_path / "weights")
    models = replace(tiny_pair(tmp_path / "weights", 2), train_teacher=method == "none")
    config = replace(frozen(photos, tasks=3, method=method, adapt=adapt), models=models)
    seen = looked_at(monkeypatch)
    record = train(config, tmp_path / "once")
    first = [file for file in seen if Path(file).parent.name in record.tasks[0].classes]
    assert len(first) == len(set(first)) * times * len(record.matrices)
    monkeypatch.setattr(KeptFeatures, "LARGEST", 0)
    again = train(config, tmp_path / "again")
    assert len(seen) >= 2 * len(first)
    assert (record.matrices, record.tasks[-1].heads) == (again.matrices, again.tasks[-1].heads)


def test_cdl_head_solves_what_a_run_of_that_head_solves(photos, tmp_path):
    """Where prompts train in every task, the sums of each are taken with the prompts as they were then."""
    learned = frozen(photos, method="coda", distill="none", head="learned", components_per_task=2)
    train(learned, tmp_path / "learned")
    record = new_heads(tmp_path / "learned", tmp_path / "slda", {"head": "slda"})
    direct = train(
        frozen(photos, method="coda", distill="none", adapt="all", components_per_task=2), tmp_path / "direct"
    )
    assert record.matrices == direct.matrices
    ours, theirs = (load_run(tmp_path / name)[1].student for name in ("slda", "direct"))
    assert torch.equal(ours.closed_form.weight, theirs.closed_form.weight)
    with pytest.raises(OptionError, match="a learned head needs training"):
        new_heads(tmp_path / "learned", tmp_path / "none", {"head": "learned"})
    assert not (tmp_path / "none").exists()


def test_known_classes_with_new_images_are_simply_added(photos, tmp_path):
    train(frozen(photos), tmp_path / "run")
    write_images(tmp_path / "more/train", {NAMES[0]: 5}, seed=7)
    write_images(tmp_path / "more/test", {NAMES[0]: 2}, seed=8)
    add_task(tmp_path / "run", Addition(str(tmp_path / "more"), allow_known=True))
    assert load_run(tmp_path / "run")[1].student.closed_form.statistics.counts.tolist() == [17] + [12] * (
        len(NAMES) - 1
    )


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ({"head": "learned", "adapt": "first"}, "--adapt first leaves tasks untrained"),
        ({"method": "coda", "adapt": "none"}, "--adapt none would leave the prompts"),
        ({"adapt": "first"}, "there is nothing to train"),
        ({"features": "class+eyes"}, "expected some of class, patches, kd"),
        ({"head": "learned", "shrinkage": 0.1}, "--shrinkage is of closed-form heads"),
        ({"ridge_teacher_weight": 0.5}, "--ridge-teacher-weight is of --head ridge"),
        ({"head": "sdla"}, "did you mean 'slda'"),
    ],
)
def test_what_does_not_fit_is_one_line(photos, method, message):
    with pytest.raises(CdlError) as caught:
        frozen(photos, **method)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_command_line_does_all_of_it(photos, tmp_path, capsys):
    def cdl(*words):
        with pytest.raises(SystemExit) as stopped:
            main([str(word) for word in words])
        return stopped.value.code, capsys.readouterr()

    run = tmp_path / "run"
    given = ("--method", "none", "--distill", "none", "--data", photos, "--tasks", 2, "--seed", 0)
    code, said = cdl("train", *given, "--out", run)
    assert code == 0
    assert "; slda on class+patches" in said.out
    assert "calibration error" in said.out
    for words, message in (
        (("train", run, "--undo"), "has no addition to undo: what it knows it learned when it was made, 2 tasks\n"),
        (("train", run, "--forget", "nothing"), "knows no class 'nothing'"),
        (
            ("train", run, "--undo", "--epochs", 3),
            "--undo changes a finished run and learns nothing, so --epochs cannot",
        ),
        (
            ("train", run, "--undo", "--forget", "x", "--preset", "kdp"),
            "so --forget, --preset cannot be given: leave them",
        ),
        (
            ("train", run, "--forget", NAMES[0], "--resume"),
            "--forget changes a finished run and learns nothing, so --resume",
        ),
        (("head", run, "--out", tmp_path / "x"), "no head is given"),
    ):
        code, said = cdl(*words)
        assert code == 2
        assert message in said.err
        assert said.err.count("\n") == 1
    forgetful = tmp_path / "forgetful"
    shutil.copytree(run, forgetful)
    code, said = cdl("train", forgetful, "--forget", NAMES[0])
    assert code == 0
    assert f"forgotten: {NAMES[0]}; the accuracies were measured before, with them" in said.out
    assert said.out.count(NAMES[0]) == 1
    code, said = cdl("train", forgetful, "--undo")
    assert f"2 tasks; that '{NAMES[0]}' was forgotten cannot be undone\n" in said.err
    code, said = cdl("head", run, "--head", "ncm", "--out", tmp_path / "ncm")
    assert code == 0
    assert "; ncm on" in said.out
    assert list(itertools.chain(*(t["classes"] for t in json.loads((run / "run.json").read_text())["tasks"])))
