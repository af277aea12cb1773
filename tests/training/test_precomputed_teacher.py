"""A run that takes the teacher of another is the run that would have taught the same teacher itself."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from cdl_deploy.errors import OptionError, RunError
from cdl_deploy.run.config import DataConfig
from cdl_deploy.training.loop import add_task, resume, train
from cdl_deploy.training.preparation import Addition
from tests.training.conftest import write_images
from tests.training.runs import Interrupt, config, weights


def taking(run, photos, distill="kd", **changes):
    plain = config(photos, distill, **changes)
    return replace(plain, models=replace(plain.models, teacher_run=str(run)))


@pytest.fixture
def own(whole_run):
    """The images of `whole_run`."""
    return whole_run.parent / "photos"


@pytest.mark.parametrize("interrupted", [False, True])
def test_the_run_is_the_one_that_teaches_the_same_teacher_itself(whole_run, own, tmp_path, interrupted):
    itself = train(config(own, "kd"), tmp_path / "itself")
    taken = tmp_path / "taken"
    if interrupted:
        with pytest.raises(KeyboardInterrupt):
            train(taking(whole_run, own), taken, Interrupt(after=8))  # in the student's second task
        record = resume(taken)
    else:
        record = train(taking(whole_run, own), taken)
    expected, found = weights(tmp_path / "itself"), weights(taken)
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert record.matrices == itself.matrices
    assert [task.teacher_run for task in record.tasks] == [str(whole_run)] * 2
    assert all("teacher" not in task.seconds for task in record.tasks)


def test_after_an_addition_the_teacher_learns_by_itself(whole_run, own, tmp_path):
    train(taking(whole_run, own, epochs=1), tmp_path / "run")
    for split in ("train", "test"):
        write_images(tmp_path / "more" / split, {"elk": 4, "fox": 4})
    record = add_task(tmp_path / "run", Addition(str(tmp_path / "more")))
    assert [task.teacher_run for task in record.tasks] == [str(whole_run), str(whole_run), None]
    assert "teacher" in record.tasks[-1].seconds


def test_what_could_not_be_its_teacher_is_refused(whole_run, own, tmp_path):
    def refused(message, **sections):
        with pytest.raises(OptionError, match=message):
            train(replace(taking(whole_run, own), **sections), tmp_path / "run")
        assert not (tmp_path / "run").exists()

    base = taking(whole_run, own)
    refused("none has no teacher: leave it out", method=replace(base.method, distill="none"))
    refused(
        "has --components-per-task 2, this run 3: give the same", method=replace(base.method, components_per_task=3)
    )
    refused("saw its images otherwise: augmentation photo, here none", data=replace(base.data, augmentation="none"))
    refused(
        "in task 1 it learned ant, bee; this run learns ant, bee, cat, dog: give it the same classes",
        data=DataConfig(str(own), tasks=1, class_order="natural"),
    )
    refused("no run directory", models=replace(base.models, teacher_run=str(tmp_path / "nothing")))
    refused(
        "has another teacher, mini_student.glyphs, and this run mini_teacher.glyphs: its weights must be the same",
        models=replace(base.models, teacher="mini_teacher"),
    )


def test_other_images_are_refused_when_they_are_met(whole_run, photos, tmp_path):
    (next((photos / "train/ant").iterdir())).unlink()
    with pytest.raises(RunError, match="learned task 1 from 12 images that are not the 11 of"):
        train(taking(whole_run, photos), tmp_path / "run")
