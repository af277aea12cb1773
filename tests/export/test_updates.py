"""`--update-from`: one more task, exported, reaches a device as an update."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cdl_deploy.cli import main
from cdl_deploy.errors import BundleError, OptionError, UpdateError
from cdl_deploy.export import ExportOptions, export_run, updates
from cdl_deploy.export.updates import older_models
from cdl_deploy.runtime.bundle import description, read_bundle
from cdl_deploy.training.loop import add_task
from cdl_deploy.training.preparation import Addition
from cdl_deploy.update.patch import apply_updates
from tests.conftest import MadeOnce, no_shape_checks
from tests.training.conftest import no_pictures_drawn, write_images

PROJECT = Path(__file__).parents[2]
PROGRAM = "import tests.tiny_models; from cdl_deploy.cli import main; main()"
ENVIRONMENT = {
    "COLUMNS": "200",
    "PYTHONHASHSEED": "12345",
    "OMP_NUM_THREADS": "1",  # as tests/conftest.py
}


@pytest.fixture(scope="session")
def first(after_each_task: Path) -> Path:
    """Folder of the version before."""
    return after_each_task / "2"


@pytest.fixture(scope="session")
def grown_run(after_each_task: Path, made_once: MadeOnce) -> Path:
    """The same run after one more task of two classes. Only to be read."""

    def make(root: Path) -> None:
        shutil.copytree(after_each_task / "run", root / "run")
        write_images(root / "new/train", {"eel": 6, "fox": 6})
        write_images(root / "new/test", {"eel": 3, "fox": 3}, seed=1)
        with no_pictures_drawn():
            add_task(root / "run", Addition(str(root / "new")))

    return made_once("grown_run", make) / "run"


@pytest.fixture(scope="session")
def second(grown_run: Path, first: Path, made_once: MadeOnce) -> tuple[Path, dict[str, list[dict[str, object]]]]:
    """Folder of the next version, with updates from the one before, and the report on the updates of each role."""

    def make(root: Path) -> None:
        root.mkdir()
        with no_shape_checks():
            exported = export_run(grown_run, root / "v2", ExportOptions(update_from=(first,), latency=False))
        reports = {item.bundle.role: item.to_dict()["updates"] for item in exported}
        (root / "updates.json").write_text(json.dumps(reports))

    root = made_once("second_version", make)
    return root / "v2", json.loads((root / "updates.json").read_text())


def test_a_device_gets_the_full_export(first, second, tmp_path):
    out, reports = second
    names = ["student.cdlup", "student.json", "student.onnx", "teacher.cdlup", "teacher.json", "teacher.onnx"]
    assert sorted(path.name for path in out.iterdir()) == names
    assert sorted(reports) == ["student", "teacher"]
    for role, updates_of_role in reports.items():
        update, base = out / f"{role}.cdlup", first / f"{role}.onnx"
        assert updates_of_role == [{"path": str(update), "base": str(base), "bytes": update.stat().st_size}]
        apply_updates(base, [update], tmp_path / "new.onnx")
        assert (tmp_path / "new.onnx").read_bytes() == (out / f"{role}.onnx").read_bytes()


def test_an_update_is_not_larger_than_what_the_task_changed(first, second):
    """The same backbone is in both files: only prompts, head, selection and metadata travel."""
    out, _ = second
    for role in ("student", "teacher"):
        before, after = read_bundle(first / f"{role}.onnx"), read_bundle(out / f"{role}.onnx")
        new_numbers = after.parameters - before.parameters
        assert (out / f"{role}.cdlup").stat().st_size < 4 * new_numbers + 40_000
        assert (out / f"{role}.cdlup").stat().st_size < 0.35 * (out / f"{role}.onnx").stat().st_size


@pytest.mark.usefixtures("without_wandb")
def test_the_command_line_from_end_to_end(grown_run, first, second, tmp_path, capsys, monkeypatch):
    """In place: the older model is the very file that the export replaces. Another process exports the same bytes,
    whatever the seed of Python's hashes; on as many threads, as the parity that was measured is in the metadata."""
    out, _ = second
    shutil.copytree(first, tmp_path / "bundle")
    shutil.copytree(first, tmp_path / "device")
    monkeypatch.chdir(tmp_path)

    def cdl(*arguments: str) -> str:
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        said = capsys.readouterr()
        assert (caught.value.code, said.err) == (0, "")
        return said.out

    options = ["--onnx", "--no-teacher", "--out", "bundle", "--update-from", "bundle/student.onnx"]
    said = subprocess.run(
        [sys.executable, "-c", PROGRAM, "export", grown_run, *options],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, **ENVIRONMENT, "PYTHONPATH": os.pathsep.join((os.environ["PYTHONPATH"], str(PROJECT)))},
    ).stdout
    size = (tmp_path / "bundle/student.cdlup").stat().st_size
    share = size / (tmp_path / "bundle/student.onnx").stat().st_size
    line = f"student.cdlup: {size / 1e6:.2f} MB, {share:.2%} of student.onnx, updates bundle/student.onnx"
    assert line in said.splitlines()
    assert (tmp_path / "bundle/student.cdlup").read_bytes() == (out / "student.cdlup").read_bytes()

    said = cdl("update", "device/student.onnx", "bundle/student.cdlup", "-o", "device/student.onnx")
    assert said.startswith("device/student.onnx: task 3 brings eel and fox: now 6 classes in 3 tasks, accuracy ")
    for name in ("student.onnx", "student.json"):
        assert (tmp_path / "device" / name).read_bytes() == (out / name).read_bytes()
    assert json.loads((tmp_path / "device/student.json").read_text()) == json.loads(
        json.dumps(description(read_bundle(out / "student.onnx")))
    )


def test_older_versions_of_one_role_get_names_of_their_own(first, second, tmp_path):
    out, _ = second
    shutil.copy(out / "student.onnx", tmp_path / "student.onnx")
    other = tmp_path / "v0.onnx"
    other.write_bytes((first / "teacher.onnx").read_bytes())
    made = updates.make_updates(tmp_path / "student.onnx", [first / "student.onnx", other])
    assert len({update.path for update in made}) == 2
    for update in made:
        assert update.path.name.startswith("student.from-")
        apply_updates(update.base, [update.path], tmp_path / "new.onnx")
        assert (tmp_path / "new.onnx").read_bytes() == (out / "student.onnx").read_bytes()
    assert not (tmp_path / "student.cdlup").exists()


def test_older_models_by_role(small_bundle, tmp_path):
    student, teacher = small_bundle / "student.onnx", small_bundle / "teacher.onnx"
    assert older_models([], ["student"]) == {}
    assert older_models([small_bundle], ["student"]) == {"student": [student]}
    assert older_models([small_bundle, student], ["student", "teacher"]) == {"student": [student], "teacher": [teacher]}
    with pytest.raises(OptionError, match=r"--update-from .*teacher.onnx is a teacher, and this export writes only the "
                                          r"student: give an older one of these"):  # fmt: skip
        older_models([teacher], ["student"])
    with pytest.raises(OptionError, match=r"--update-from .* is a folder without student.onnx: give the older model"):
        older_models([tmp_path], ["student"])
    with pytest.raises(BundleError, match=r"none.onnx: No such file or directory"):
        older_models([tmp_path / "none.onnx"], ["student"])


@pytest.mark.usefixtures("traced")
def test_nothing_is_left_where_an_update_cannot_be_made(small_run, small_bundle, tmp_path, monkeypatch):
    def fail(*arguments):
        raise UpdateError("too large")

    monkeypatch.setattr(updates, "make_update", fail)
    options = ExportOptions(teacher=False, update_from=(small_bundle / "student.onnx",))
    with pytest.raises(UpdateError, match="too large"):
        export_run(small_run, tmp_path / "out", options)
    assert list(tmp_path.iterdir()) == []
