"""Whole runs of every method, their record, and that nothing is lost between a teacher's stage and what follows."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from cdl_deploy.errors import OptionError
from cdl_deploy.run.config import DataConfig, MethodConfig, ModelConfig, OptimConfig, RunConfig
from cdl_deploy.training.checkpoint import load_heldout, load_run
from cdl_deploy.training.loop import resume, train
from cdl_deploy.training.models.learner import learner_logits
from cdl_deploy.training.progress import Progress


def config(photos, **method) -> RunConfig:
    """Two tasks of two classes; the student's shape for the teacher too, to be quick."""
    return RunConfig(
        DataConfig(str(photos), tasks=2, class_order="natural"),
        ModelConfig(teacher="mini_student", student="mini_student"),
        MethodConfig(components_per_task=2, **method),
        OptimConfig(epochs=1, batch_size=6, device="cpu"),
    )


def state(run) -> dict[str, torch.Tensor]:
    return load_run(run)[1].trained_state()


RUNS = [
    {"method": "l2p", "query": "block:2", "query_regulariser": 0.1},
    {"method": "dualprompt", "query": "full", "unseen_keys": "chosen"},
    {"method": "apt", "query": "full", "apt_teacher": "merged"},
]


@pytest.mark.parametrize("method", RUNS)
def test_a_run_from_end_to_end(photos, tmp_path, method):
    record = train(config(photos, **method), tmp_path / "run")
    stored = json.loads((tmp_path / "run/run.json").read_text())
    assert {name: stored["config"]["method"][name] for name in method} == method
    images, labels = load_heldout(tmp_path / "run", record)
    _, pair = load_run(tmp_path / "run")
    assert pair.student.first_block == (2 if method["query"] == "block:2" else 0)
    for role, learner in pair.learners.items():
        with torch.no_grad():
            right = (learner_logits(pair.encoder, learner, images).argmax(1) == labels).float()
        expected = [100 * right[:6].mean().item(), 100 * right[6:].mean().item()]
        assert record.matrices[role][1] == pytest.approx(expected)


class Interrupt(Progress):
    """Stops the run where a learner's stage begins, or where it has just ended."""

    def __init__(self, task: int, role: str, where: str) -> None:
        self.at = (task, role, where)

    def stage_started(self, stage, first_epoch, first_step):
        self.stop(stage, "started")

    def stage_finished(self, stage):
        self.stop(stage, "finished")

    def stop(self, stage, where):
        if (stage.task, stage.role, where) == self.at:
            raise KeyboardInterrupt


def test_apt_merges_once_whatever_comes_between(photos, tmp_path):
    """Right after a teacher's stage, before the student's, after the student's: the end is the same to the bit."""
    expected = [train(config(photos, method="apt"), tmp_path / "whole").matrices, state(tmp_path / "whole")]
    assert expected[1]["teacher/method.merges"] == expected[1]["student/method.merges"] == 2
    for at in ((1, "teacher", "finished"), (2, "student", "started"), (2, "student", "finished")):
        run = tmp_path / "-".join(map(str, at))
        with pytest.raises(KeyboardInterrupt):
            train(config(photos, method="apt"), run, Interrupt(*at))
        assert resume(run).matrices == expected[0], at
        resumed = state(run)
        assert all(torch.equal(value, resumed[name]) for name, value in expected[1].items()), at


def test_merged_prompts_are_what_the_checkpoints_say(photos, tmp_path):
    train(config(photos, method="apt", merge_share=0.6, distill="none"), tmp_path / "run")
    from safetensors.torch import load_file

    first, second = (load_file(tmp_path / f"run/checkpoints/task-0{n}.safetensors") for n in (1, 2))
    working, merged = "student/method.working", "student/method.merged"
    assert torch.equal(first[merged], first[working])
    assert not torch.equal(first[working], second[working])
    torch.testing.assert_close(second[merged], 0.6 * first[merged] + 0.4 * second[working])


def test_a_query_that_does_not_fit_is_found_before_anything_is_written(photos, tmp_path):
    wrong = config(photos, query="block:2")
    with pytest.raises(
        OptionError, match=r"CODA-Prompt prompts blocks 2 to 6 \(counted from 0\), but the model has 6 blocks"
    ):
        train(wrong, tmp_path / "run")
    with pytest.raises(OptionError, match="--query block:1 has no meaning with --method apt"):
        train(replace(wrong, method=MethodConfig(method="apt", query="block:1")), tmp_path / "run")
    assert not (tmp_path / "run").exists()
