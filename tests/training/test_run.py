"""Whole runs on small images: what they leave, and that nothing is lost when they are interrupted."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import replace

import pytest
import safetensors
import torch
from PIL import Image

from cdl_deploy.errors import CdlError, DataError, OptionError, RunError
from cdl_deploy.run.config import MethodConfig, ModelConfig, OptimConfig
from cdl_deploy.training.checkpoint import load_heldout, load_run
from cdl_deploy.training.evaluation import accuracy_row
from cdl_deploy.training.growing import GrowingRows, carried_over, frozen_names
from cdl_deploy.training.loop import resume, train
from cdl_deploy.training.models.learner import learner_logits
from cdl_deploy.training.progress import Progress
from cdl_deploy.training.run_directory import RunDirectory
from tests.training.conftest import write_images
from tests.training.runs import Interrupt, config, weights


@pytest.mark.pictures
def test_a_run_directory_describes_itself(photos, tmp_path):
    record = train(config(photos), tmp_path / "run")
    stored = json.loads((tmp_path / "run/run.json").read_text())
    assert stored == json.loads(json.dumps(record.to_dict()))
    assert stored["format_version"] == 2
    assert stored["status"] == "finished"
    assert stored["config"]["optim"] == {
        "epochs": 2, "batch_size": 4, "lr": 1e-3, "schedule": "cosine", "last_batch": "keep", "cache_views": 0,
        "seed": 0, "device": "cpu", "precision": "fp32", "compile": False, "resident": False, "workers": 0,
        "log": "none",
    }  # fmt: skip
    assert [task["classes"] for task in stored["tasks"]] == [["ant", "bee"], ["cat", "dog"]]
    assert [(task["train_images"], task["test_images"]) for task in stored["tasks"]] == [(12, 6), (12, 6)]
    for role in ("student", "teacher"):
        matrix = stored[role]["accuracy_matrix"]
        assert [len(row) for row in matrix] == [1, 2]
        assert stored[role]["final_average_accuracy"] == pytest.approx(sum(matrix[1]) / 2)
        assert stored[role]["forgetting"] == pytest.approx((matrix[0][0] - matrix[1][0]) / 2)
        rows = list(csv.reader((tmp_path / f"run/accuracy_{role}.csv").read_text().splitlines()))
        assert rows[0] == ["after_task", "task_1", "task_2"]
        assert rows[1][1:] == [f"{matrix[0][0]:.4f}", ""]
    for name in ("accuracy_matrix", "accuracy_over_tasks", "forgetting"):
        with Image.open(tmp_path / f"run/{name}.png") as picture:
            assert picture.width > 600
    kinds = ("checkpoints/task-01", "checkpoints/task-02", "heldout/task-01", "heldout/task-02")
    for file in ("backbones/student", "backbones/teacher", *kinds):
        with safetensors.safe_open(tmp_path / f"run/{file}.safetensors", framework="pt") as opened:
            assert opened.metadata()["format_version"] == "2"
    assert not list((tmp_path / "run").rglob("*.tmp*"))
    assert not (tmp_path / "run/.lock").exists()


def test_the_matrix_is_what_the_stored_learners_score(whole_run):
    """Accuracy recomputed image by image from the run directory alone."""
    record, pair = load_run(whole_run)
    images, labels = load_heldout(whole_run, record)
    assert images.shape == (12, 3, 32, 32)
    for role, learner in pair.learners.items():
        with torch.no_grad():
            right = [
                int(learner_logits(pair.encoder, learner, image[None]).argmax()) == int(label)
                for image, label in zip(images, labels, strict=True)
            ]
        expected = [100 * sum(right[:6]) / 6, 100 * sum(right[6:]) / 6]
        assert record.matrices[role][1] == pytest.approx(expected)


def test_without_distillation_there_is_no_teacher(photos, tmp_path):
    record = train(config(photos, "none"), tmp_path / "run")
    stored = record.to_dict()
    assert stored["teacher"] is None
    assert stored["student"]["final_average_accuracy"] >= 0
    assert not (tmp_path / "run/backbones/teacher.safetensors").exists()


def test_the_same_command_gives_the_same_run(whole_run, photos, tmp_path):
    first, second = load_run(whole_run)[0], train(config(photos), tmp_path / "b")
    assert first.matrices == second.matrices
    a, b = weights(whole_run), weights(tmp_path / "b")
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)
    other = train(config(photos, seed=1), tmp_path / "c")
    assert other.planned_tasks == first.planned_tasks
    c = weights(tmp_path / "c")
    assert any(not torch.equal(a[name], c[name]) for name in a)


def test_an_interrupted_run_ends_as_if_it_had_not_been(whole_run, photos, tmp_path):
    """Interrupted in both stages, between tasks, in the middle of an epoch; resumed; compared bit for bit."""
    whole, expected = load_run(whole_run)[0], weights(whole_run)
    steps = 2 * 2 * 2 * 3  # tasks, learners, epochs, steps an epoch
    for after in (1, 6, 8, 13, 23, steps):
        run = tmp_path / f"after-{after}"
        with pytest.raises(KeyboardInterrupt):
            train(config(photos), run, Interrupt(after))
        with pytest.raises(KeyboardInterrupt):  # and once more, soon after
            resume(run, Interrupt(2)) if after < 23 else resume(run, Interrupt(1))
        record = resume(run)
        assert record.matrices == whole.matrices, after
        state = weights(run)
        assert all(torch.equal(expected[name], state[name]) for name in expected), after


def test_a_checkpoint_lost_in_the_middle_of_a_write_leaves_the_one_before(whole_run, photos, tmp_path, monkeypatch):
    def full(self, target):
        raise OSError(28, "No space left on device")

    saves = []
    original = RunDirectory.save_tensors

    def save(self, path, tensors, header=None):
        saves.append(path.name)
        if len(saves) == 6:  # two backbones, then epochs
            with monkeypatch.context() as patch:
                patch.setattr("pathlib.Path.replace", full)
                original(self, path, tensors, header)
        original(self, path, tensors, header)

    monkeypatch.setattr(RunDirectory, "save_tensors", save)
    with pytest.raises(
        RunError, match=r"cannot write .*last\.safetensors: No space left.*the last checkpoint is intact"
    ):
        train(config(photos), tmp_path / "run")
    assert not list((tmp_path / "run").rglob("*.tmp*"))
    monkeypatch.undo()
    assert resume(tmp_path / "run").matrices == load_run(whole_run)[0].matrices


def test_a_vanished_data_set_ends_cleanly_and_the_run_goes_on_later(photos, tmp_path):
    class Vanish(Progress):
        def stage_started(self, stage, first_epoch, first_step):
            if stage.task == 2 and stage.role == "student":
                photos.rename(tmp_path / "elsewhere")

    with pytest.raises(DataError, match="has vanished since the run began"):
        train(config(photos), tmp_path / "run", Vanish())
    with pytest.raises(DataError, match="task 2 does not exist: say where they are now with --resume --data DIR"):
        resume(tmp_path / "run")
    (tmp_path / "elsewhere").rename(photos)
    assert resume(tmp_path / "run").finished


def test_a_loss_that_is_no_number_is_named(photos, tmp_path):
    with pytest.raises(
        RunError, match=r"the teacher's cross_entropy became (nan|inf) in task 1, epoch \d, step \d: lower --lr"
    ):
        train(config(photos, lr=1e30), tmp_path / "run")


def test_heads_start_at_zero_so_that_tasks_start_level(whole_run):
    """With random rows the sum of a two-class task's rows would never move (Differs, see docs/findings.md)."""
    state = weights(whole_run)
    for head in ("student/class_head", "teacher/class_head", "student/distillation.head"):
        for part in ("weight", "bias"):
            total = state[f"{head}.{part}.trainable"].sum(dim=0)
            torch.testing.assert_close(total, torch.zeros_like(total), atol=1e-4, rtol=0)
            assert state[f"{head}.{part}.trainable"].abs().max() > 1e-4


IN_USE = [
    (lambda run: (run.mkdir(), (run / "run.json").write_text("{}")), "already holds a run: continue it with --resume"),
    (lambda run: (run.mkdir(), (run / "notes.txt").write_text("")), "exists and is not empty: choose another --out"),
    (lambda run: run.write_text(""), "exists and is not empty"),
]


@pytest.mark.parametrize(("occupy", "message"), IN_USE)
def test_a_directory_in_use_is_refused(photos, tmp_path, occupy, message):
    occupy(tmp_path / "run")
    with pytest.raises(RunError, match=message):
        train(config(photos), tmp_path / "run")


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"method": MethodConfig(method="codda")}, OptionError, "--method 'codda' is unknown, .*did you mean 'coda'"),
        ({"method": MethodConfig(distill="kdpp")}, OptionError, "--distill 'kdpp' is unknown, .*did you mean 'kdp'"),
        ({"optim": OptimConfig(device="gpu7")}, OptionError, "--device gpu7 cannot be used here"),
        ({"models": ModelConfig(student="mini_studnet")}, CdlError, "did you mean 'mini_student'"),
    ],
)
def test_what_is_wrong_is_found_before_anything_is_written(photos, tmp_path, changes, kind, message):
    from dataclasses import replace

    with pytest.raises(kind, match=message):
        train(replace(config(photos), **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_newer_format_is_refused(photos, tmp_path):
    train(config(photos, "none", epochs=1), tmp_path / "run")
    stored = json.loads((tmp_path / "run/run.json").read_text())
    (tmp_path / "run/run.json").write_text(json.dumps({**stored, "format_version": 3}))
    for action in (resume, load_run):
        with pytest.raises(RunError, match=r"has format version 3, this cdl-deploy .* reads up to 2: upgrade"):
            action(tmp_path / "run")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot read .*run.json"),
        ("[]", "is no run record"),
        ('{"format_version": 1}', "is damaged: 'config' is missing"),
    ],
)
def test_a_damaged_record_is_one_clear_line(tmp_path, text, message):
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(RunError, match=message):
        load_run(tmp_path)


def test_a_missing_run_is_one_clear_line(tmp_path):
    with pytest.raises(RunError, match=r"is no run directory: it does not exist; make one with cdl train"):
        resume(tmp_path / "nothing")


def test_a_run_without_a_finished_task_cannot_be_loaded(photos, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(config(photos), tmp_path / "run", Interrupt(3))
    with pytest.raises(RunError, match=r"has no finished task yet: continue it with cdl train .*run --resume"):
        load_run(tmp_path / "run")


def test_two_writers_are_not_let_in(photos, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(config(photos), tmp_path / "run", Interrupt(3))
    with RunDirectory(tmp_path / "run").lock(), pytest.raises(RunError, match="in use by another process"):
        resume(tmp_path / "run")


def test_accuracy_is_a_percentage_of_every_image(photos, tmp_path):
    """An oracle learner scores 100 and 0 where it should."""
    train(config(photos, "none", epochs=1), tmp_path / "run")
    _, pair = load_run(tmp_path / "run")
    head = pair.student.class_head
    with torch.no_grad():
        for rows in (head.weight.frozen, head.weight.trainable):
            rows.zero_()
        head.bias.frozen.copy_(torch.tensor([5.0, 0.0]))  # always the first class
        head.bias.trainable.zero_()
    from cdl_deploy.data.preprocessing import ResizeCrop
    from cdl_deploy.data.sources import image_folder
    from cdl_deploy.training.data.task_data import TaskImages
    from cdl_deploy.training.data.transforms import evaluation_transform

    test = image_folder(photos).test
    tasks = [TaskImages(list(test.items[:6]), [0, 0, 0, 1, 1, 1]), TaskImages(list(test.items[6:]), [2] * 3 + [3] * 3)]
    row = accuracy_row(pair.encoder, pair.student, tasks, evaluation_transform(ResizeCrop.square(32, 32, "bicubic")))
    assert row == [50.0, 0.0]
    assert all(math.isfinite(value) for value in row)


def test_a_checkpoint_does_not_grow_with_the_tasks(photos, tmp_path):
    """Nothing that earlier tasks trained is written again: those of an epoch are equally large in all tasks."""
    write_images(photos / "train", {"eel": 6, "fox": 6})
    write_images(photos / "test", {"eel": 3, "fox": 3}, seed=1)
    run, sizes = tmp_path / "run", {}

    class Measure(Progress):
        def epoch_started(self, stage, epoch, lr):
            if epoch == 1:
                sizes[stage.task, stage.role] = (run / "checkpoints/last.safetensors").stat().st_size

    three = config(photos)
    train(replace(three, data=replace(three.data, tasks=3)), run, Measure())
    with safetensors.safe_open(run / "checkpoints/last.safetensors", framework="pt") as file:
        header = len(file.metadata()["header"])
    for role in ("teacher", "student"):
        assert sizes[3, role] - sizes[2, role] < header, "only the record has grown"
    grown = [(run / f"checkpoints/task-0{task}.safetensors").stat().st_size for task in (1, 2, 3)]
    assert grown[2] - grown[1] > 10_000, "there is nothing to leave out"


def test_what_is_left_out_of_a_checkpoint_is_what_a_task_retires():
    """With known classes opened again, and a state that is no growing rows of ours."""
    rows = torch.nn.ModuleDict({"a": GrowingRows(2), "b": torch.nn.Linear(2, 2)})
    rows["a"].grow(torch.arange(6.0).view(3, 2))
    rows["a"].grow(torch.ones(1, 2), unfreeze=[2, 0])
    with torch.no_grad():
        rows["a"].unfrozen += 5
    before = {name: value.clone() for name, value in rows.state_dict().items()}
    rows["a"].grow(torch.zeros(2, 2))
    found = carried_over(before)
    assert found.keys() == {"a.frozen"} == frozen_names(rows.state_dict())
    assert torch.equal(found["a.frozen"], rows["a"].frozen)
