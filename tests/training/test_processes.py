"""Two processes against one: the same gradients, the same run, and one voice."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

from cdl_deploy.errors import DataError, OptionError
from cdl_deploy.training.checkpoint import load_run
from cdl_deploy.training.data.loading import SeededBatches
from cdl_deploy.training.loop import train
from cdl_deploy.training.processes import Processes, connected
from cdl_deploy.training.step import stage_losses
from tests.children import Child
from tests.training.runs import config
from tests.training.test_learner import make_pair, pixels
from tests.training.two_processes import work


def start_two(task: str, photos: Path, out: Path) -> list[subprocess.CompletedProcess[str]]:
    """As a launcher would: the same program twice, told apart by the environment."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    both = [Child(work, task, photos, out, env={**where, "RANK": rank, "LOCAL_RANK": rank}) for rank in "01"]
    return [child.finished() for child in both]


@pytest.mark.pictures  # the launched processes draw them
def test_two_processes_learn_what_one_learns(photos, tmp_path):
    for finished in start_two("train", photos, tmp_path):
        assert finished.returncode == 0, finished.stderr
        assert finished.stdout == ""
    for count in (5, 1):
        for role in ("teacher", "student"):
            pair = make_pair()
            terms = stage_losses(pair, role, pixels(count), torch.tensor([2, 3, 4, 3, 2])[:count])
            torch.stack(list(terms.values())).sum().backward()
            found = safetensors.torch.load_file(tmp_path / f"{role}-{count}.safetensors")
            torch.testing.assert_close(found.pop("loss terms"), torch.stack(list(terms.values())), atol=1e-6, rtol=1e-6)
            expected = {n: v.grad for n, v in pair.learners[role].named_parameters() if v.grad is not None}
            assert found.keys() == expected.keys()
            for name, gradient in expected.items():
                torch.testing.assert_close(found[name], gradient, atol=1e-6, rtol=1e-5, msg=f"{role} {count} {name}")

    record = train(config(photos), tmp_path / "alone")
    apart = json.loads((tmp_path / "run/run.json").read_text())
    assert apart["config"]["optim"].pop("log") == "tensorboard"
    config_alone = record.config.to_dict()
    assert config_alone["optim"].pop("log") == "none"
    assert apart["config"] == config_alone
    assert {role: apart[role]["accuracy_matrix"] for role in ("teacher", "student")} == record.matrices
    assert len(list((tmp_path / "run/logs/tensorboard").iterdir())) == 1, "only the main process keeps a log"
    shutil.rmtree(tmp_path / "run/logs")
    assert sorted(p.name for p in (tmp_path / "run").rglob("*")) == sorted(
        p.name for p in (tmp_path / "alone").rglob("*")
    )
    ours, theirs = (load_run(tmp_path / name)[1].trained_state() for name in ("run", "alone"))
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, atol=1e-5, rtol=1e-5, msg=name)


def test_a_process_that_fails_ends_the_others(photos, tmp_path):
    first, second = start_two("fail", photos, tmp_path / "run")
    assert (second.returncode, second.stderr) == (2, "error: image 5 is broken: repair it\n")
    # Gloo's own thread may find its peer gone before this process is told, and abort.
    assert first.returncode in (2, -signal.SIGABRT)
    assert "error:" not in first.stderr
    assert first.stdout == ""


def test_what_all_find_wrong_is_said_once(photos, tmp_path):
    first, second = start_two("wrong", photos, tmp_path / "run")
    assert first.returncode == second.returncode == 2
    assert first.stderr.startswith("error: ")
    assert "has its own train/ folder, so --holdout cannot apply" in first.stderr
    assert first.stderr.count("\n") == 1
    assert second.stderr == ""
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_batches_are_divided_without_rest(count):
    """Together the processes see every batch of the one-process run, with the same seeds for augmentation."""

    def of(index: int, count: int) -> list[list[tuple[int, int]]]:
        processes = Processes(torch.device("cpu"))
        processes.index, processes.count = index, count
        return list(SeededBatches(9, 4, seed=7, scope=("x", 1), shuffle=True, share=processes.share))

    whole = of(0, 1)
    assert [len(batch) for batch in whole] == [4, 4, 1]
    parts = [of(index, count) for index in range(count)]
    for number, batch in enumerate(whole):
        shares = [part[number] for part in parts]
        assert all(shares), "every process takes every step"
        assert sorted(key for share in shares[: len(batch)] for key in share) == sorted(batch)
        assert all(share == batch[:1] for share in shares[len(batch) :])


def test_one_process_needs_no_launcher(monkeypatch):
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setitem(sys.modules, "accelerate", None)  # importing it fails
    with connected("cpu") as processes:
        assert (processes.index, processes.count, processes.is_main, processes.device_name) == (0, 1, True, "cpu")
        gradient = torch.ones(2)
        assert processes.add_up([gradient], torch.tensor([3.0])).tolist() == [3.0]
        with pytest.raises(DataError, match="mine"), processes.agreed():
            raise DataError("mine")
    with pytest.raises(OptionError, match="--device gpu7 cannot be used here"), connected("gpu7"):
        pass
    monkeypatch.setenv("WORLD_SIZE", "2")
    with (
        pytest.raises(Exception, match=r"several processes needs accelerate, which is not installed: pip install"),
        connected("cpu"),
    ):
        pass
