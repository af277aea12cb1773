"""`cdl train --dry-run`: what a real run has, without a trace; an estimate that is speed times what is to do."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from cdl_deploy.cli import main
from cdl_deploy.run.config import DataConfig
from cdl_deploy.training import dry_run
from cdl_deploy.training.checkpoint import load_run
from cdl_deploy.training.dry_run import Measurement, plan_run
from cdl_deploy.training.loop import train
from tests.training.conftest import write_images
from tests.training.runs import config

MODELS = ["--teacher", "mini_student", "--student", "mini_student", "--device", "cpu"]


def cdl(capsys, *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        main(["train", *map(str, arguments)])
    printed = capsys.readouterr()
    return int(end.value.code or 0), printed.out, printed.err


def test_the_plan_is_what_the_run_then_does_and_nothing_is_written(photos, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    before = sorted(path for path in tmp_path.rglob("*"))
    plan = plan_run(config(photos), tmp_path / "run").to_dict()
    assert sorted(path for path in tmp_path.rglob("*")) == before
    record = train(config(photos), tmp_path / "run")
    for planned, done in zip(plan["tasks"], record.tasks, strict=True):
        for name in ("number", "classes", "train_images", "test_images"):
            assert planned[name] == getattr(done, name)
        assert planned["batch_size"] == done.optim.batch_size
        assert planned["steps"] == -(-done.train_images // done.optim.batch_size)
    for name in ("config", "preprocessing", "backbones"):
        assert plan[name] == record.to_dict()[name]


def test_the_steps_are_real_and_forgotten(whole_run, photos, tmp_path):
    """A run after a dry run is the run without it."""
    plan_run(config(photos))
    train(config(photos), tmp_path / "b")
    a, b = load_run(whole_run), load_run(tmp_path / "b")
    assert a[0].matrices == b[0].matrices


def test_a_frozen_backbone_has_no_epochs_and_nothing_to_train(photos, capsys):
    status, printed, _ = cdl(capsys, "--data", photos, "--tasks", 2, "--dry-run", "--json")
    plan = json.loads(printed)
    assert status == 0
    assert sum(plan["parameters"]["student"].values()) == plan["parameters"]["student"]["backbone"]
    assert plan["estimate"]["steps"] == {}
    assert sorted(plan["estimate"]["seconds_by_part"]) == ["checking", "heads", "tests"]
    _, printed, _ = cdl(capsys, "--data", photos, "--tasks", 2, "--dry-run")
    assert "nothing trains" in printed
    assert "steps" not in printed


@pytest.mark.parametrize("distill", ["kdp", "none", "fitnets"])
def test_parameters_are_those_that_train(photos, tmp_path, distill):
    plan = plan_run(config(photos, distill))
    train(config(photos, distill, epochs=1), tmp_path / "run")
    _, pair = load_run(tmp_path / "run")
    assert plan.parameters.keys() == pair.learners.keys()
    for role, learner in pair.learners.items():
        counts = dict(plan.parameters[role])
        assert counts.pop("backbone") == sum(v.numel() for v in learner.backbone.parameters())
        assert sum(counts.values()) == sum(v.numel() for v in learner.parameters() if v.requires_grad)
    width, components, rows = 64, 2, 8
    assert plan.parameters["student"]["prompts"] == 5 * components * (2 * width + rows * width)
    assert plan.parameters["student"]["class head"] == 2 * (width + 1)


def test_the_estimate_is_speed_times_what_is_to_do(tmp_path, monkeypatch):
    """Three tasks of 2, 2 and 1 classes with 6, 4, 8, 2 and 5 images, 3 to test in each; speeds of our own."""
    counts = {"ant": 6, "bee": 4, "cat": 8, "dog": 2, "eel": 5}
    write_images(tmp_path / "photos/train", counts)
    write_images(tmp_path / "photos/test", dict.fromkeys(counts, 3), seed=1)
    measured = []

    def learning(self, role, images):
        measured.append((role, len(images.items), sorted(set(images.labels))))
        return 2, {"teacher": 10.0, "student": 20.0}[role]

    monkeypatch.setattr(Measurement, "learning", learning)
    monkeypatch.setattr(Measurement, "testing", lambda self, images: (6, 40.0))
    monkeypatch.setattr(dry_run.time, "perf_counter", iter([100.0, 101.5]).__next__)
    data = DataConfig(str(tmp_path / "photos"), classes_per_task=2, class_order="natural")
    plan = plan_run(replace(config(tmp_path / "photos", epochs=7), data=data))
    assert measured == [("teacher", 10, [0, 1]), ("student", 10, [0, 1])]
    assert [(t.train_images, t.test_images) for t in plan.tasks] == [(10, 6), (10, 6), (5, 3)]
    estimate = plan.estimate
    assert estimate.seconds_by_part == pytest.approx(
        {"checking": 1.5, "teacher": 7 * 25 / 10, "student": 7 * 25 / 20, "tests": (6 + 12 + 15) / 40}
    )
    assert estimate.seconds == pytest.approx(sum(estimate.seconds_by_part.values()))
    assert (estimate.task, estimate.steps, estimate.tested) == (1, {"teacher": 2, "student": 2}, 6)


def test_what_was_measured_is_what_the_machine_did(photos):
    estimate = plan_run(config(photos)).estimate
    assert estimate.steps == {"teacher": 3, "student": 3}
    assert estimate.tested == 6
    assert all(0 < speed < 1e6 for speed in estimate.images_per_second.values())
    assert 50e6 < estimate.memory_bytes < 50e9
    assert estimate.gpu_memory_bytes is None


def test_table_and_json(photos, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    options = ["--data", photos, "--tasks", 2, "--components-per-task", 2, *MODELS, "--dry-run"]
    code, out, err = cdl(capsys, *options)
    assert (code, err) == (0, "")
    assert max(map(len, out.splitlines())) <= 100
    assert "dry run: nothing is written" in out
    assert "to train" in out
    assert "time:   about" in out
    assert "steps timed: 3 of the teacher and 3 of the student, after one each to warm up" in out
    code, out, _ = cdl(capsys, *options, "--out", tmp_path / "run", "--json")
    plan = json.loads(out)
    assert plan["dry_run"] is True
    assert [len(task["classes"]) for task in plan["tasks"]] == [2, 2]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--resume"], "--dry-run plans a new run: leave out --resume and --add"),
        (["--add", "photos"], "--dry-run plans a new run: leave out --resume and --add"),
        (["--tasks", "9"], "--tasks 9 is more than the 4 classes there are"),
        (["--method", "codda"], "--method 'codda' is unknown"),
        (["--out", "{occupied}"], "exists and is not empty: choose another --out"),
    ],
)
def test_what_cannot_be_is_found(photos, tmp_path, capsys, options, message):
    (tmp_path / "occupied").mkdir()
    (tmp_path / "occupied/notes.txt").write_text("")
    options = [option.format(occupied=tmp_path / "occupied") for option in options]
    code, out, err = cdl(capsys, "--data", photos, *MODELS, "--dry-run", *options)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
