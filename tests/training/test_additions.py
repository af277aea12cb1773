"""A run that goes on learning: tasks added one by one, known classes trained on."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace

import pytest
import torch

from cdl_deploy import Classifier
from cdl_deploy.cli import main
from cdl_deploy.data.folder import find_splits
from cdl_deploy.data.images import load_image
from cdl_deploy.data.preprocessing import ResizeCrop
from cdl_deploy.data.sources import fingerprint, open_source
from cdl_deploy.errors import DataError, OptionError, RunError
from cdl_deploy.export import ExportOptions, export_run
from cdl_deploy.run.config import DataConfig, MethodConfig, ModelConfig, OptimConfig, RunConfig
from cdl_deploy.run.record_parts import FinishedTask, TaskPlan
from cdl_deploy.training.checkpoint import load_run
from cdl_deploy.training.data import task_data
from cdl_deploy.training.data.task_data import TaskData
from cdl_deploy.training.data.transforms import evaluation_transform
from cdl_deploy.training.growing import GrowingRows
from cdl_deploy.training.loop import add_task, resume, train
from cdl_deploy.training.models.learner import learner_logits
from cdl_deploy.training.preparation import Addition
from cdl_deploy.training.progress import Progress
from cdl_deploy.typed_json import convert
from tests.conftest import no_shape_checks
from tests.records import finished_task
from tests.training.conftest import no_pictures_drawn, write_images

CLASSES = ("ant", "bee", "cat", "dog", "eel", "fox", "gnu", "hen")
PAIRS = [CLASSES[i : i + 2] for i in range(0, 8, 2)]


def config(data, tasks: int, **method) -> RunConfig:
    """Small, but with the batch size left to its default."""
    return RunConfig(
        DataConfig(str(data), tasks=tasks, class_order="natural"),
        ModelConfig(teacher="mini_student", student="mini_student"),
        MethodConfig(**{"components_per_task": 2, **method}),
        OptimConfig(epochs=1, device="cpu"),
    )


def make_photos(root, pairs=PAIRS) -> None:
    """Images of a class are the same wherever they lie; the first class has the most, so that batches differ."""
    for pair in pairs:
        for name in pair:
            extra = 40 if name == "ant" else 0
            write_images(root / "train", {name: 9 + extra}, seed=ord(name[0]))
            write_images(root / "test", {name: 3}, seed=ord(name[1]))


def test_a_folder_is_searched_once_however_many_tasks_it_had(tmp_path, monkeypatch):
    make_photos(tmp_path / "all")
    plans = [TaskPlan(tuple(pair), str(tmp_path / "all")) for pair in PAIRS]
    opened = TaskData(plans, [], {plans[0].source_key: open_source(*plans[0].source_key)}, lambda _: {}, [])
    tests = [opened.test(number) for number in range(1, 5)]
    searched = []

    def search(*place):
        searched.append(place)
        return find_splits(*place)

    monkeypatch.setattr(task_data, "find_splits", search)
    tested = [
        convert(FinishedTask, finished_task(1, [], test_fingerprint=fingerprint(test.items)), "") for test in tests
    ]
    later = TaskData(plans, tested, {}, lambda _: {}, [])
    assert [later.test(number) for number in range(1, 5)] == tests
    assert searched == [(tmp_path / "all", None, None)]


@pytest.mark.parametrize("method", ["coda", "dualprompt"])
def test_single_additions_equal_one_run_bit_for_bit(tmp_path, method):
    """Every folder is deleted as soon as its task is learned."""
    make_photos(tmp_path / "all")
    whole = train(config(tmp_path / "all", 4, method=method), tmp_path / "whole")
    make_photos(tmp_path / "first", PAIRS[:1])
    train(config(tmp_path / "first", 1, method=method), tmp_path / "grown")
    shutil.rmtree(tmp_path / "first")
    for number, pair in enumerate(PAIRS[1:], start=2):
        folder = tmp_path / f"more-{number}"
        make_photos(folder, [pair])
        grown = add_task(tmp_path / "grown", Addition(str(folder)))
        assert grown.tasks[-1].kept_tests == list(range(1, number))
        shutil.rmtree(folder)
    assert grown.classes == list(CLASSES)
    assert grown.matrices == whole.matrices
    expected, found = load_run(tmp_path / "whole")[1].trained_state(), load_run(tmp_path / "grown")[1].trained_state()
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    for a, b in zip(whole.tasks, grown.tasks, strict=True):
        for key in ("classes", "train_images", "data_fingerprint", "test_fingerprint", "optim"):
            assert getattr(a, key) == getattr(b, key)


def two_tasks(root):
    """Two tasks: ant, bee; cat, dog."""
    make_photos(root / "photos", PAIRS[:2])
    train(config(root / "photos", 2), root / "run")
    return root / "run"


@pytest.fixture(scope="module")
def trained_once(tmp_path_factory):
    with no_pictures_drawn():
        return two_tasks(tmp_path_factory.mktemp("two-tasks"))


@pytest.fixture
def run(trained_once, tmp_path):
    """A copy, to be changed."""
    return shutil.copytree(trained_once, tmp_path / "run")


def test_earlier_tasks_are_tested_on_all_their_images_where_they_still_are(tmp_path):
    run = two_tasks(tmp_path)  # its images are changed
    make_photos(tmp_path / "new", PAIRS[2:3])
    record = add_task(run, Addition(str(tmp_path / "new"), optim={"epochs": 2, "lr": 5e-4}))
    assert record.tasks[-1].kept_tests == []
    assert asdict(record.tasks[-1].optim) == {"epochs": 2, "batch_size": 8, "lr": 5e-4}
    assert record.tasks[0].optim.epochs == 1
    write_images(tmp_path / "photos/test", {"bee": 4}, seed=7)  # no longer the folder it was
    make_photos(tmp_path / "newer", PAIRS[3:])
    record = add_task(run, Addition(str(tmp_path / "newer")))
    assert record.tasks[-1].kept_tests == [1]


def rows(run, number: int) -> dict[str, torch.Tensor]:
    """The heads' rows after a task, in the order of the logits."""
    record, pair = load_run(run)
    assert len(record.tasks) == number
    heads = {"class": pair.student.class_head, "kd": pair.student.distillation.head, "teacher": pair.teacher.class_head}
    return {name: head.weight.all().detach().clone() for name, head in heads.items()}


def test_known_classes_learn_on_and_all_others_stand_still(run, tmp_path):
    before = rows(run, 2)
    make_photos(tmp_path / "new", [("eel", "bee"), ("dog", "fox")])
    record = add_task(run, Addition(str(tmp_path / "new"), classes=("eel", "dog"), allow_known=True))
    assert record.tasks[-1].classes == ["eel"]
    assert record.tasks[-1].known_classes == ["dog"]
    assert record.classes == ["ant", "bee", "cat", "dog", "eel"]
    after = rows(run, 3)
    for name in before:
        assert torch.equal(after[name][:3], before[name][:3]), name
        assert not torch.equal(after[name][3], before[name][3]), name
    record = add_task(run, Addition(str(tmp_path / "new"), classes=("dog", "bee"), allow_known=True))
    assert record.tasks[-1].classes == []
    last = rows(run, 4)
    for name in before:
        moved = [i for i in range(5) if not torch.equal(last[name][i], after[name][i])]
        assert moved == [1, 3], name


def test_an_interrupted_addition_ends_as_if_it_had_not_been(run, tmp_path):
    make_photos(tmp_path / "new", [("eel", "bee")])
    addition = Addition(str(tmp_path / "new"), allow_known=True)
    shutil.copytree(run, tmp_path / "whole")
    whole = add_task(tmp_path / "whole", addition)

    class Interrupt(Progress):
        left = 2

        def step(self, stage, epoch, images, losses):
            self.left -= 1
            if not self.left:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        add_task(run, addition, Interrupt())
    with pytest.raises(RunError, match=r"has tasks left to learn: finish it first with cdl train .* --resume"):
        add_task(run, addition)
    assert resume(run).matrices == whole.matrices
    expected, found = load_run(tmp_path / "whole")[1].trained_state(), load_run(run)[1].trained_state()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({}, DataError, r"knows: 'bee' \(task 1\); leave them out with --classes, or train them on with --allow-known"),
        ({"classes": ("eel", "fax")}, DataError, "--classes: no class 'fax' in .*; did you mean 'fox'"),
        ({"optim": {"seed": 3}}, OptionError, "--seed cannot change in the middle of a run"),
        ({"data": "nowhere"}, DataError, "nowhere is no folder"),
    ],
)
def test_what_does_not_fit_leaves_the_run_alone(run, tmp_path, options, kind, message):
    make_photos(tmp_path / "new", [("eel", "bee"), ("fox",)])
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    with pytest.raises(kind, match=message) as error:
        add_task(run, replace(Addition(str(tmp_path / "new")), **options))
    assert "\n" not in str(error.value)
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()} == before


def test_one_class_at_a_time(run, tmp_path):
    """It is learned against the classes before; over its own logit alone its row would have stayed what it was, 0."""
    make_photos(tmp_path / "new", [("eel",)])
    record = add_task(run, Addition(str(tmp_path / "new"), optim={"epochs": 10}))
    assert record.tasks[-1].classes == ["eel"]
    assert record.matrices["student"][-1][-1] == 100


def test_names_that_differ_in_case_alone(run, tmp_path):
    make_photos(tmp_path / "new", [("Bee", "eel")])
    with pytest.raises(
        DataError, match=r"class 'Bee' in .* differs in case or spaces alone from 'bee', which the run knows"
    ):
        add_task(run, Addition(str(tmp_path / "new")))


def cdl(*arguments):
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    return end.value.code


def test_the_command_line_adds_and_shows_the_history(run, tmp_path, capsys):
    make_photos(tmp_path / "new", PAIRS[2:3])
    assert cdl("train", run, "--add", tmp_path / "new", "--classes", "fox,eel", "--epochs", 1, "--json") == 0
    record = json.loads(capsys.readouterr().out)
    assert record["tasks"][2]["classes"] == ["fox", "eel"]
    assert cdl("runs", run) == 0
    out = capsys.readouterr().out
    assert "fox, eel" in out
    assert record["tasks"][2]["finished"][:10] in out
    assert "new" in out


def test_what_was_added_is_exported(run, tmp_path):
    """Also a task that brought no new class: its prompts are in the graph, its list of classes is empty."""
    make_photos(tmp_path / "new", [("eel", "bee"), ("dog", "fox")])
    add_task(run, Addition(str(tmp_path / "new"), classes=("eel", "dog"), allow_known=True))
    add_task(run, Addition(str(tmp_path / "new"), classes=("dog", "bee"), allow_known=True))
    with no_shape_checks():  # tracing uses symbolic shapes
        exported = export_run(run, tmp_path / "out", ExportOptions(teacher=False))
    assert exported[0].bundle.tasks == (("ant", "bee"), ("cat", "dog"), ("eel",), ())
    image = tmp_path / "new/test/eel/0.png"
    _, pair = load_run(run)
    pixels = evaluation_transform(ResizeCrop.square(32, 32, "bicubic"))(load_image(image))[None]
    with torch.no_grad():
        expected = learner_logits(pair.encoder, pair.student, pixels).softmax(1)[0]
    (prediction,) = Classifier(tmp_path / "out/student.onnx").predict(image, top_k=5)
    names = ("ant", "bee", "cat", "dog", "eel")
    assert dict(prediction.top_k) == pytest.approx(dict(zip(names, expected.tolist(), strict=True)), abs=1e-4)
    assert names.index(prediction.label) == int(expected.argmax())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--add", "x", "--method", "coda"), "--add goes on with a run as it was configured, so --method cannot be"),
        (("--classes", "a"), "--classes and --allow-known belong to --add DIR"),
        (("--add", "x", "--resume"), "--resume and --add exclude each other"),
        (("--out", "elsewhere"), "RUN is .*run and --out is elsewhere: give one of them"),
    ],
)
def test_options_that_do_not_go_together(tmp_path, capsys, arguments, message):
    import re

    assert cdl("train", tmp_path / "run", *arguments) == 2
    assert re.search(message, capsys.readouterr().err)


def test_no_directory_at_all(capsys):
    assert cdl("train") == 2
    assert "no run directory is given: add --out RUN" in capsys.readouterr().err


def test_reopened_rows_take_the_place_of_earlier_ones():
    rows = GrowingRows(2)
    rows.grow(torch.tensor([[1.0, 1.0], [2.0, 2.0]]))
    rows.grow(torch.tensor([[3.0, 3.0]]), unfreeze=[1])
    rows.all().sum().backward()
    assert rows.frozen.grad is None
    assert rows.trainable.grad.tolist() == [[1.0, 1.0]]
    assert rows.unfrozen.grad.tolist() == [[1.0, 1.0]]
    with torch.no_grad():
        rows.unfrozen += 10
    assert rows.all().tolist() == [[1.0, 1.0], [12.0, 12.0], [3.0, 3.0]]
    copy = GrowingRows(2)
    copy.load_state_dict(rows.state_dict())
    assert torch.equal(copy.all(), rows.all())
    rows.grow(torch.tensor([[4.0, 4.0]]))
    assert rows.all().tolist() == [[1.0, 1.0], [12.0, 12.0], [3.0, 3.0], [4.0, 4.0]]
    assert len(rows.unfrozen) == 0
