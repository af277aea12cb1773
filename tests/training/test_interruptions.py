"""Nothing is lost: signals finish the step, kills at any moment are resumed, broken surroundings end in one line."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
import torch

from cdl_deploy.cli import main
from cdl_deploy.cli.signals import stop_on_signals
from cdl_deploy.errors import DataError
from cdl_deploy.training import step as step_module
from cdl_deploy.training.checkpoint import load_run
from cdl_deploy.training.loop import resume, train
from cdl_deploy.training.progress import Progress, Stopped
from tests.children import Child, run_program
from tests.training.runs import config, weights

PROJECT = Path(__file__).resolve().parents[2]


class StopAfter:
    """Asks for a stop from a number of questions on."""

    def __init__(self, questions: int) -> None:
        self.left = questions

    def __call__(self) -> bool:
        self.left -= 1
        return self.left <= 0


def test_a_stop_finishes_the_step_and_goes_on_from_there(photos, tmp_path):
    """In the middle of an epoch, at its end, between stages, while images are checked or tested."""
    seen = []

    class Watch(Progress):
        def step(self, stage, epoch, images, losses):
            seen.append((stage.task, stage.role, epoch, images))

    whole = train(config(photos), tmp_path / "whole", Watch())
    expected = weights(tmp_path / "whole")
    once = list(seen)
    for questions in (2, 5, 12, 20, 31):
        run, seen[:] = tmp_path / f"stop-{questions}", []
        with pytest.raises(Stopped):
            train(config(photos), run, Watch(), StopAfter(questions))
        with pytest.raises(Stopped):
            resume(run, Watch(), StopAfter(3))
        assert resume(run, Watch()).matrices == whole.matrices
        assert seen == once, "a step was lost or done twice"
        state = weights(run)
        assert all(torch.equal(expected[name], state[name]) for name in expected)


def test_a_stop_before_anything_was_learned_leaves_nothing(photos, tmp_path):
    with pytest.raises(Stopped):
        train(config(photos), tmp_path / "run", stop=lambda: True)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_say_how_to_continue(photos, tmp_path, monkeypatch, capsys, request, number, code):
    losses, calls = step_module.stage_losses, []
    before = signal.signal(number, signal.default_int_handler)  # whatever the tests were started with
    request.addfinalizer(lambda: signal.signal(number, before))

    def signalled(*arguments):
        calls.append(1)
        if len(calls) == 2:
            signal.raise_signal(number)
        return losses(*arguments)

    run = tmp_path / "run"
    options = ["--data", str(photos), "--tasks", "1", "--distill", "none", "--epochs", "1", "--batch-size", "4"]
    with monkeypatch.context() as patch:
        patch.setattr(step_module, "stage_losses", signalled)
        with pytest.raises(SystemExit) as end:
            main(["train", str(run), *options, "--components-per-task", "2"])
    assert end.value.code == code
    err = capsys.readouterr().err
    assert "finishing this step and saving" in err
    assert f"stopped; continue with: cdl train {run} --resume" in err
    assert len(calls) == 2
    assert signal.getsignal(number) == signal.default_int_handler
    with pytest.raises(SystemExit) as end:
        main(["train", str(run), "--resume", "--json"])
    assert end.value.code == 0
    assert json.loads(capsys.readouterr().out)["status"] == "finished"


def test_a_signal_that_was_ignored_stays_ignored():
    """As a shell starts jobs in the background, and nohup."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stop_on_signals() as stop:
            signal.raise_signal(signal.SIGINT)
            assert not stop()
            signal.raise_signal(signal.SIGTERM)
            assert stop()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_an_image_that_breaks_while_the_run_goes_on(whole_run, photos, tmp_path):
    """Named on one line; restored, the run goes on to the same end."""
    image = photos / "train/dog/2.png"
    good = image.read_bytes()

    class Break(Progress):
        def stage_started(self, stage, first_epoch, first_step):
            if stage.task == 2 and stage.role == "student":
                image.write_bytes(good[:60])

    with pytest.raises(DataError, match=r"cannot read image .*dog/2\.png"):
        train(config(photos), tmp_path / "run", Break())
    image.write_bytes(good)
    assert resume(tmp_path / "run").matrices == load_run(whole_run)[0].matrices


def test_killed_at_any_moment_the_result_is_the_same():
    """SIGKILL at random moments and in the middle of writes, checkpoints and cached views; see benchmarks/kill_test.py
    for longer series, and for runs without views, or with the pictures, at which test_one_truth.py kills too."""
    words = ["--runs", "2", "--seed", "1", "--cache-views", "1", "--without-pictures"]
    done = Child(run_program, PROJECT / "benchmarks/kill_test.py", words).finished()
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["differing"] == 0
    assert sum(report["kills"].values()) >= 4  # two in each run; the third may come after its end
