"""Model, statistics and description are replaced together, whatever happens; what cannot be learned is one line."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cdl_deploy import Classifier, Learner
from cdl_deploy.closed_form import model_world
from cdl_deploy.closed_form.statistics_file import read_statistics
from cdl_deploy.learn.opened import open_learnable
from cdl_deploy.runtime.bundle import read_bundle
from tests.export.learning import NEW, OLD, check_same_model, error_of, images_of, run
from tests.kill_points import every_kill


def content_of(folder):
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir()) if not file.name.startswith(".")}


def fits(folder):
    """The classes of the model, whose statistics are beside it, and whose description is its own or away."""
    opened = open_learnable(folder / "student.onnx")
    opened.close()
    beside = folder / "student.json"
    if beside.exists():
        assert tuple(json.loads(beside.read_text())["classes"]) == opened.bundle.classes
    return opened.bundle.classes


def test_killed_at_any_moment_it_is_the_old_model_or_the_new_one(first_task, photos, tmp_path, monkeypatch):
    source, folder = first_task(), tmp_path / "device"
    monkeypatch.setattr(model_world, "FRESH", 10)  # heads are solved for each kill, and need not be good
    learner = Learner(source / "student.onnx").add(NEW[0], images_of(photos, NEW[0]))
    (learned,) = learner._steps

    def prepare():
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(source, folder)
        prepared[:] = [Learner(folder / "student.onnx")]
        prepared[-1]._do(learned)

    prepared: list[Learner] = []
    seen = []
    for number in every_kill(folder, prepare, lambda: prepared[-1].save()):
        seen.append(fits(folder))
        names = [name for name in content_of(folder) if name.endswith(".safetensors")]
        assert len(names) <= 2, number
        after = Learner(folder / "student.onnx")
        if number % 3:
            continue
        if len(seen[-1]) == len(OLD):
            after._do(learned)
        else:
            after.undo()
        after.save()  # whoever comes next cleans up
        fits(folder)
        assert len([name for name in os.listdir(folder) if name.endswith(".safetensors")]) == 1, number
        assert not [name for name in os.listdir(folder) if ".tmp" in name], number
    assert {len(classes) for classes in seen} == {2, 3}
    assert len(seen) > 8


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked here")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_two_processes_killed_at_random_moments(first_task, photos, tmp_path, monkeypatch):
    """benchmarks/attack/moments.py does so with the whole command, at a hundred moments."""
    folder = tmp_path / "device"
    monkeypatch.setattr(model_world, "FRESH", 10)
    shutil.copytree(first_task(), folder)
    steps = []
    for name in NEW:
        learner = Learner(folder / "student.onnx").add(name, images_of(photos, name))
        steps += learner._steps
    random = np.random.default_rng(0)
    found = set()
    for _ in range(12):
        shutil.rmtree(folder)
        shutil.copytree(first_task(), folder)
        learners = [Learner(folder / "student.onnx") for _ in NEW]
        children = []
        for learner, step in zip(learners, steps, strict=True):
            child = os.fork()
            if not child:
                try:
                    learner._do(step)
                    learner.save()
                finally:
                    os._exit(0)
            children.append(child)
        for child in children:
            time.sleep(random.uniform(0, 0.04))
            os.kill(child, signal.SIGKILL)
        for child in children:
            os.waitpid(child, 0)
        found.add(fits(folder))
    assert found <= {tuple(OLD), (*OLD, NEW[0]), (*OLD, NEW[1]), (*OLD, *NEW), (*OLD, *reversed(NEW))}
    Learner(folder / "student.onnx").add(OLD[0], images_of(photos, OLD[0], "test")).save()
    assert not [name for name in os.listdir(folder) if ".tmp" in name]


def test_what_a_killed_process_had_begun_is_removed(model, photos):
    """Statistics that were never finished have a name that nothing else has."""
    path = model()
    left = path.with_name(f".{path.stem}.statistics.0123456789ab.safetensors.1-0a1b2c.tmp.safetensors")
    another = path.with_name(".other.statistics.0123456789ab.safetensors.1-0a1b2c.tmp.safetensors")
    left.write_bytes(b"half")
    another.write_bytes(b"of another model")
    Learner(path).add(NEW[0], images_of(photos, NEW[0])).save()
    assert not left.exists()
    assert another.exists()


def test_an_error_while_writing_leaves_everything_as_it_was(model, photos, monkeypatch):
    path = model()
    before = content_of(path.parent)
    learner = Learner(path).add(NEW[0], images_of(photos, NEW[0]))

    def fail(temporary):
        raise OSError(28, "No space left on device", str(temporary))

    with pytest.raises(Exception, match="No space left on device; nothing was changed"):
        learner.save(before_commit=fail)
    assert content_of(path.parent) == before
    learner.save()
    assert fits(path.parent) == (*OLD, NEW[0])


def test_two_processes_at_once_both_are_learned(model, photos):
    path = model()
    program = "import sys; from cdl_deploy.cli import main; main(sys.argv[1:])"
    both = [
        subprocess.Popen(
            [sys.executable, "-c", program, "learn", path, "--class", name, *images_of(photos, name), "-o", path],
            stdout=subprocess.PIPE,
        )
        for name in NEW
    ]
    assert [process.wait(60) for process in both] == [0, 0]
    assert set(fits(path.parent)) == {*OLD, *NEW}
    for process in both:
        process.stdout.close()


def test_what_another_process_learned_meanwhile_stays(model, photos):
    path = model()
    one, other = Learner(path), Learner(path)
    one.add(NEW[0], images_of(photos, NEW[0])).save()
    other.add(NEW[1], images_of(photos, NEW[1])).save()
    assert other.classes == (*OLD, *NEW)
    late = Learner(path).undo()
    Learner(path).forget(OLD[0]).save()
    with pytest.raises(Exception, match="was replaced by another process since it was opened; nothing was changed"):
        late.save()


def test_a_classifier_of_the_old_file_goes_on(model, photos):
    path = model()
    images = images_of(photos, OLD[0], "test")
    classifier = Classifier(path)
    before = [item.top_k for item in classifier.predict(images)]
    Learner(path).add(NEW[0], images_of(photos, NEW[0])).save()
    assert [item.top_k for item in classifier.predict(images)] == before
    assert Classifier(path).classes == (*OLD, NEW[0])
    assert next(Classifier(path).predict(images_of(photos, NEW[0], "test"))).label == NEW[0]


def test_an_update_that_travels(model, first_task, photos, tmp_path):
    path = model()
    patch, new, there = tmp_path / "out.cdlup", path.with_name("new.onnx"), tmp_path / "there.onnx"
    images = images_of(photos, NEW[0])
    assert run("learn", path, "--class", NEW[0], *images, "-o", new, "--patch", patch) == 0
    assert run("update", first_task() / "student.onnx", patch, "-o", there) == 0
    assert there.read_bytes() == new.read_bytes()
    assert f"without its statistics, {read_bundle(new).statistics.file}" in error_of(
        "learn", there, "--class", NEW[1], images[0], "-o", there
    )
    shutil.copy(new.parent / read_bundle(new).statistics.file, tmp_path)
    assert run("learn", there, "--class", NEW[1], images_of(photos, NEW[1])[0], "-o", there) == 0


def test_from_the_command_line(model, photos, tmp_path, capsys):
    path, new = model(), tmp_path / "device/new.onnx"
    folder = tmp_path / "more"
    for name in (NEW[0], OLD[0]):
        shutil.copytree(photos / ("train" if name in NEW else "test") / name, folder / name)
    before = content_of(path.parent)
    assert run("learn", path, folder, "--dry-run") == 0
    told = f"learned {OLD[0]} (4 images, known before), {NEW[0]} (8 images, new); now 3 classes\n"
    assert capsys.readouterr().out == f"{path}: would have {told}"
    assert content_of(path.parent) == before
    assert run("learn", path, folder, "-o", new, "--review", "--held-out", photos, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["new"] == [NEW[0]]
    assert found["images"] == {OLD[0]: 12, OLD[1]: 8, NEW[0]: 8}
    assert found["review"]["before"] == found["review"]["after"] == 100
    assert found["review"]["held_out"] == 8
    assert [item["name"] for item in found["review"]["classes"]] == [OLD[0], NEW[0]]
    assert len(found["review"]["classes"][0]["nearest"]) == 2
    assert sorted(set(content_of(path.parent)) - set(before)) == [
        "new.json", "new.onnx", Path(read_bundle(new).statistics.file).name
    ]  # fmt: skip
    assert run("learn", new, "--undo", "-o", new) == 0
    assert capsys.readouterr().out == f"{new}: taken back {OLD[0]} (4), {NEW[0]} (8); now 2 classes\n"
    check_same_model(new.read_bytes(), path.read_bytes())
    assert "nothing to undo" in error_of("learn", new, "--undo", "-o", new)
    assert run("inspect", new) == 0


def test_mislabelled_images_and_max_drop(model, photos, tmp_path, capsys):
    path = model()
    folder = tmp_path / "swapped"
    for name, other in (OLD, OLD[::-1]):
        shutil.copytree(photos / "train" / name, folder / other, dirs_exist_ok=True)
    for number in range(60):
        shutil.copy(images_of(photos, OLD[0])[0], folder / OLD[1] / f"again{number}.png")
    before = content_of(path.parent)
    options = ("--held-out", photos, "--max-drop", "1")
    error = error_of("learn", path, folder, "-o", path, *options)
    assert "more than --max-drop 1: nothing was written" in error
    assert content_of(path.parent) == before
    out = capsys.readouterr().out
    assert "classes known before: 100.0 →" in out
    assert f"looks like {OLD[0]}" in out or f"looks like {OLD[1]}" in out


def test_models_that_cannot_learn(bundles, small_bundle, model, photos, tmp_path):
    image = images_of(photos, NEW[0])[0]

    def why(path):
        return error_of("learn", path, "--class", "x", image, "-o", tmp_path / "new.onnx")

    assert "exported without statistics; export a run with a closed-form head" in why(small_bundle / "student.onnx")
    packaged = bundles(packaged=True)
    assert "float32 model do not fit its features; give the float32 file of the same export" in why(
        packaged / "student.fp16.onnx"
    )
    path = model()
    sums = path.parent / "student.statistics.safetensors"
    content = sums.read_bytes()
    sums.write_bytes((packaged / "student.statistics.safetensors").read_bytes())
    assert "is not the file of statistics that student.onnx names" in why(path)
    sums.unlink()
    assert "copy that file from where the model comes from" in why(path)
    sums.write_bytes(content)
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(path.read_bytes()[:5000])
    assert "no whole ONNX model" in why(broken)
    broken.write_bytes(b"")
    assert "broken.onnx" in why(broken)
    assert "expected an .onnx file that cdl exported" in why(tmp_path / "missing.onnx")
    assert not (tmp_path / "new.onnx").exists()


def test_a_model_from_elsewhere(tmp_path):
    from tests.runtime.conftest import build_model

    path = tmp_path / "other.onnx"
    path.write_bytes(build_model().SerializeToString())
    assert "an ONNX model that cdl did not export" in error_of("learn", path, "--class", "x", path, "-o", path)


def test_images_and_names_that_cannot_be_learned(model, photos, tmp_path, capsys):
    path = model()
    before = content_of(path.parent)
    folder = tmp_path / "more"
    shutil.copytree(photos / "train" / NEW[0], folder / NEW[0])
    (folder / NEW[0] / "torn.jpg").write_bytes(b"no image")
    error = error_of("learn", path, folder, "-o", path)
    assert "torn.jpg" in error
    assert "--skip-bad" in error
    assert f"the model knows '{OLD[0]}'" in error_of("learn", path, "--class", OLD[0].upper(), folder, "-o", path)
    assert "no such file" in error_of("learn", path, "--class", "x", tmp_path / "none.jpg", "-o", path)
    assert "nothing to learn" in error_of("learn", path, "-o", path)
    assert "add -o NEW.onnx" in error_of("learn", path, folder)
    assert "do one after the other" in error_of("learn", path, folder, "--undo", "-o", path)
    assert "add --held-out" in error_of("learn", path, folder, "--max-drop", "1", "-o", path)
    assert f"did you mean '{OLD[0]}'" in error_of("learn", path, "--forget", OLD[0] + "s", "-o", path)
    assert f"such as {photos / 'test'}" in error_of("learn", path, photos, "-o", path)
    good = tmp_path / "good"
    shutil.copytree(photos / "train" / NEW[0], good / NEW[0])
    assert "has no image of a class known before" in error_of(
        "learn", path, good, "-o", path, "--held-out", good, "--max-drop", "1"
    )
    assert run("learn", path, good, "-o", tmp_path / "none/new.onnx") == 0
    assert "Not a directory" in error_of("learn", path, good, "-o", path / "new.onnx")
    assert content_of(path.parent) == before
    assert run("learn", path, folder, "-o", path, "--skip-bad") == 0
    captured = capsys.readouterr()
    assert "left out: " in captured.err
    assert "8 images, new" in captured.out
    assert "have been added already" in error_of("learn", path, folder, "-o", path, "--skip-bad")
    assert run("learn", path, "--class", OLD[0].upper(), images_of(photos, OLD[0])[0], "--as-new", "-o", path) == 0
    assert "learned from 1 image: that is little" in capsys.readouterr().err


@pytest.mark.skipif(os.geteuid() == 0 and not shutil.which("setpriv"), reason="root may write everywhere")
def test_a_folder_that_cannot_be_written(model, photos, monkeypatch):
    path = model()
    learner = Learner(path).add(NEW[0], images_of(photos, NEW[0]))
    before = content_of(path.parent)
    refuse = os.open

    def no_writing(name, flags, *more, **options):
        if flags & os.O_CREAT and str(path.parent) in str(name):
            raise PermissionError(13, "Permission denied", str(name))
        return refuse(name, flags, *more, **options)

    monkeypatch.setattr(os, "open", no_writing)
    with pytest.raises(Exception, match="Permission denied; nothing was changed, the old model is as it was"):
        learner.save()
    monkeypatch.undo()
    assert content_of(path.parent) == before


def test_a_full_disk_is_found_before_anything_is_written(model, photos, monkeypatch):
    path = model()
    learner = Learner(path).add(NEW[0], images_of(photos, NEW[0]))
    before = content_of(path.parent)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10, 10, 1000))
    with pytest.raises(Exception, match="1,000 are free on the disk; nothing was changed"):
        learner.save()
    assert content_of(path.parent) == before


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="a folder that takes no files")
def test_a_folder_that_takes_no_files_is_named_at_once(model, photos):
    learner = Learner(model()).add(NEW[0], images_of(photos, NEW[0]))
    with pytest.raises(Exception, match=r"^/proc/x\.onnx: no files can be made in this folder; nothing was changed"):
        learner.save("/proc/x.onnx")


def test_arrays_and_one_image_at_a_time(model, photos):
    path = model()
    arrays = [np.asarray(Image.open(file).convert("RGB")) for file in images_of(photos, NEW[0])]
    learner = Learner(path).add(NEW[0], arrays[0]).add(NEW[0], arrays[1:])
    assert learner.additions == ({NEW[0]: 1}, {NEW[0]: 7})
    learner.save()
    stored = read_statistics(path.parent / read_bundle(path).statistics.file)
    assert stored.history.total.images == 24
