"""Undo, forget and head, killed: what was begun is completed by whatever comes next."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from cdl_deploy.errors import RunError
from cdl_deploy.run.latest import latest_record
from cdl_deploy.training.checkpoint import load_run
from cdl_deploy.training.loop import add_task, resume, train
from cdl_deploy.training.preparation import Addition
from cdl_deploy.training.revisions import forget_class, new_heads, undo_task
from cdl_deploy.training.run_directory import RunDirectory
from tests.kill_points import changes
from tests.training.conftest import write_images
from tests.training.test_closed_form_runs import frozen


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """`two`: two tasks, the second one added; `one`: the first alone."""
    root = tmp_path_factory.mktemp("runs")
    for folder, names in {"first": ("ant", "bee"), "second": ("cat", "dog"), "third": ("eel", "fox")}.items():
        for split, count in (("train", 4), ("test", 2)):
            write_images(root / folder / split, dict.fromkeys(names, count), seed=len(folder + split))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cdl_deploy.training.loop.plot_run", lambda *_: None)
        train(frozen(root / "first", tasks=1), root / "one")
        shutil.copytree(root / "one", root / "two")
        add_task(root / "two", Addition(str(root / "second")))
    return root


@pytest.fixture
def run(runs, tmp_path) -> Path:
    shutil.copytree(runs / "two", tmp_path / "run")
    return tmp_path / "run"


def contents(run: Path) -> dict[str, bytes]:
    return {str(path.relative_to(run)): path.read_bytes() for path in run.rglob("*") if path.is_file()}


def next_added(run: Path, runs: Path) -> None:
    add_task(run, Addition(str(runs / "third")))


def next_resumed(run: Path, runs: Path) -> None:
    resume(run)


@pytest.mark.parametrize("then", [next_added, next_resumed])
def test_a_class_whose_forgetting_was_killed_is_in_no_file_afterwards(runs, run, tmp_path, then):
    whole = tmp_path / "whole"
    shutil.copytree(run, whole)
    count = changes(whole, lambda: forget_class(whole, "bee"))
    then(whole, runs)
    for number in (count // 2, count - 4)[: 1 + (then is next_resumed)]:
        shutil.rmtree(run)
        shutil.copytree(runs / "two", run)
        changes(run, lambda: forget_class(run, "bee"), number)
        assert "bee" not in latest_record(run).known_classes
        then(run, runs)
        for name in ("task-01", "task-02"):
            file = f"checkpoints/{name}.safetensors"
            found, expected = (RunDirectory(it).load_tensors(it / file)[0] for it in (run, whole))
            assert all(value.equal(expected[key]) for key, value in found.items()), (number, name)


def test_an_undo_that_was_killed_is_done_or_not(runs, run):
    count = changes(run, lambda: undo_task(run))
    expected = contents(run).keys()
    for number in (count // 3, 2 * count // 3, count - 1):
        shutil.rmtree(run)
        shutil.copytree(runs / "two", run)
        changes(run, lambda: undo_task(run), number)
        if len(latest_record(run).tasks) == 2:
            undo_task(run)
        resume(run)
        assert contents(run).keys() - {"run.json"} == expected - {"run.json"}
        assert load_run(run)[0].classes == ["ant", "bee"] == RunDirectory(run).read_record().classes


def test_other_heads_are_there_when_all_of_them_are(runs, tmp_path):
    """In the middle there is no run: --resume would train it, which is not what was asked for."""
    out = tmp_path / "work" / "slda"
    count = changes(tmp_path, lambda: new_heads(runs / "two", out, {"head": "ridge"}))
    whole = load_run(out)[0]
    for number in (count // 2, count - 1):
        shutil.rmtree(out.parent)
        changes(tmp_path, lambda: new_heads(runs / "two", out, {"head": "ridge"}), number)
        assert not out.exists() or load_run(out)[0].matrices == whole.matrices
        if not out.exists():
            new_heads(runs / "two", out, {"head": "ridge"})
        assert [path.name for path in out.parent.iterdir()] == ["slda"]
    with pytest.raises(RunError, match="already holds a run"):
        new_heads(runs / "two", out, {"head": "ridge"})
