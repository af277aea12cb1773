"""A run that goes on after its images were moved, renamed or changed."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from cdl_deploy.cli import main
from cdl_deploy.errors import DataError
from cdl_deploy.training.loop import resume, train
from cdl_deploy.training.progress import Progress, Stopped
from tests.training.conftest import no_pictures_drawn, write_photos
from tests.training.runs import config, weights


class OneTask(Progress):
    def task_finished(self, record):
        raise Stopped


@pytest.fixture(scope="module")
def stopped(made_once):
    """A folder with `photos`, `run`, stopped after its first task of two, and `whole`, the same to its end."""

    def make(root):
        write_photos(root / "photos")
        with no_pictures_drawn():
            with pytest.raises(Stopped):
                train(config(root / "photos", "none", epochs=1), root / "run", OneTask())
            train(config(root / "photos", "none", epochs=1), root / "whole")

    return made_once("moved_data", make)


@pytest.fixture
def place(stopped, tmp_path, monkeypatch):
    """The same to change: the run began with another folder of these images, which is gone."""
    shutil.copytree(stopped, tmp_path / "place")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("cdl_deploy.training.loop.plot_run", lambda *_: None)
    return tmp_path / "place"


def test_paths_are_absolute_however_they_are_given(tmp_path, monkeypatch):
    from cdl_deploy.training.preparation import located_config

    monkeypatch.chdir(tmp_path)
    assert located_config(config("photos")).data.data == str(tmp_path / "photos")
    assert located_config(config("digits")).data.data == "digits"


def test_a_run_goes_on_where_its_images_are_now(place, stopped):
    (place / "photos").rename(place / "elsewhere")
    text = (place / "run/run.json").read_text()
    record = json.loads(text)
    assert {plan["data"] for plan in record["plans"]} == {str(stopped / "photos")}
    done = resume(place / "run", data="place/elsewhere")
    assert {plan.data for plan in done.plans} == {done.config.data.data} == {str(place / "elsewhere")}
    expected, found = weights(place / "whole"), weights(place / "run")
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_a_folder_that_is_gone_is_told_with_the_remedy(place, capsys):
    with pytest.raises(SystemExit):
        main(["train", "place/run", "--resume", "--data", "place/nowhere"])
    error = capsys.readouterr().err
    assert (
        "place/nowhere with the images of task 2 does not exist: say where they are now with --resume --data" in error
    )
    for options, message in (
        (["--labels", "x.csv"], "--labels says with --data where a run's images are now: give both"),
        (
            ["--data", "x", "--epochs", "3"],
            "--resume continues a run as it was configured, so --epochs cannot be",
        ),
    ):
        with pytest.raises(SystemExit):
            main(["train", "place/run", "--resume", *options])
        assert message in capsys.readouterr().err


def test_what_has_changed_meanwhile_ends_the_run_before_it_goes_on(place):
    """Bit for bit is promised; a class that is gone must not be found out after hours."""
    before = {path: path.stat().st_mtime_ns for path in (place / "run").rglob("*.safetensors")}
    photos = place / "photos"
    shutil.copy(photos / "train/cat/0.png", photos / "train/cat/new.png")
    with pytest.raises(DataError, match=r"the images of task 2 in .* are not those that the run began with"):
        resume(place / "run", data="place/photos")
    (photos / "train/cat/new.png").unlink()
    for split in ("train", "test"):
        (photos / split / "dog").rename(photos / split / "dogs")
    with pytest.raises(DataError, match=r"class 'dog' of task 2 is no longer in .*; did you mean 'dogs'"):
        resume(place / "run", data="place/photos")
    assert {path: path.stat().st_mtime_ns for path in (place / "run").rglob("*.safetensors")} == before
    shutil.rmtree(photos / "train/ant")  # of a task that is done, nobody needs them
    shutil.rmtree(photos / "test/ant")
    for split in ("train", "test"):
        (photos / split / "dogs").rename(photos / split / "dog")
    assert resume(place / "run", data="place/photos").tasks[1].kept_tests == [1]
