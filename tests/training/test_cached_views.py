"""`--cache-views`: the same losses from what is kept as from pixels, the same run, also after a kill; its limits."""

from __future__ import annotations

import shutil
from collections import namedtuple
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from cdl_deploy.cli import main
from cdl_deploy.errors import OptionError, RunError
from cdl_deploy.run.config import MethodConfig
from cdl_deploy.run.record import RunRecord
from cdl_deploy.training import cached_views
from cdl_deploy.training.cached_views import LABELS, CachedViews, check_views, compute_rows, with_cached_views
from cdl_deploy.training.checkpoint import load_run
from cdl_deploy.training.context import Run, Task, images_to_learn
from cdl_deploy.training.data.loading import Rows, SeededBatches, TrainingImages, split
from cdl_deploy.training.data.task_data import TaskImages, open_sources
from cdl_deploy.training.frozen import row_bytes
from cdl_deploy.training.loop import add_task, train
from cdl_deploy.training.models.teacher_student import TeacherStudent, build_teacher_student
from cdl_deploy.training.preparation import Addition, never
from cdl_deploy.training.processes import Processes
from cdl_deploy.training.progress import Progress, Stage, Stop, Stopped
from cdl_deploy.training.run_directory import RunDirectory
from cdl_deploy.training.step import stage_losses
from tests.training.conftest import make_backbone, write_images
from tests.training.runs import config, weights

CPU = torch.device("cpu")
METHODS = {
    "coda, kdp": {},
    "coda, kdp, early query": {"query": "block:1"},
    "early query and its regulariser": {"query": "block:1", "query_regulariser": 0.5},
    "no query": {"method": "apt"},
    "tokens compared": {"distill": "fitnets", "query": "block:1"},
    "all tokens compared": {"distill": "reviewkd", "method": "l2p"},
    "student alone": {"distill": "none", "method": "dualprompt"},
}


def make_pair(known=(), **options):
    """Different widths and depths, in the second of two tasks."""
    backbones = {"student": make_backbone(width=24, depth=6), "teacher": make_backbone(width=36, depth=7, seed=1)}
    if options.get("distill") == "none":
        del backbones["teacher"]
    pair = build_teacher_student(backbones, MethodConfig(components_per_task=2, **options), 0)
    pair.begin_task(2, 0)
    pair.begin_task(3, 0, known)
    return pair


def terms_and_gradients(pair, role, batch, labels) -> dict[str, torch.Tensor]:
    pair.learners[role].zero_grad()
    terms = stage_losses(pair, role, batch, labels)
    torch.stack(list(terms.values())).sum().backward()
    gradients = {name: value.grad for name, value in pair.learners[role].named_parameters() if value.grad is not None}
    return {**{name: value.detach() for name, value in terms.items()}, **gradients}


@pytest.mark.parametrize("known", [(), (1,)], ids=["new classes", "and a known one"])
@pytest.mark.parametrize("options", METHODS.values(), ids=METHODS)
def test_a_step_from_what_is_kept_is_the_step_from_pixels(options, known):
    """Bit for bit; and a row is as large as it was said to be."""
    pair = make_pair(known, **options)
    images = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([2, 4, 1 if known else 3])
    for role in pair.learners:
        rows = compute_rows(pair, role, images, labels)
        assert not any(value.requires_grad for value in rows.values())
        assert sum(value.nbytes for value in rows.values()) == 3 * (8 + row_bytes(pair, role, 5))
        assert torch.equal(rows.pop(LABELS), labels)
        expected = terms_and_gradients(pair, role, images, labels)
        found = terms_and_gradients(pair, role, rows, labels)
        assert expected.keys() == found.keys()
        assert len(expected) > 3
        for name, value in expected.items():
            assert torch.equal(found[name], value), name


def test_nothing_frozen_runs_in_a_step():
    """No block of the teacher, and of the student's each once: the query is kept."""
    pair = make_pair()
    images, labels = torch.zeros(2, 3, 16, 16, dtype=torch.uint8), torch.tensor([2, 3])
    rows = compute_rows(pair, "student", images, labels)
    ran: list[str] = []
    for role, learner in pair.learners.items():
        for block in learner.backbone.vit.blocks:
            block.norm1.register_forward_hook(lambda *_, role=role: ran.append(role))
    stage_losses(pair, "student", rows, labels)
    assert ran == ["student"] * 6


def test_pieces_of_a_batch_are_its_rows():
    rows = {"a": torch.arange(10).view(5, 2), "b": torch.arange(5)}
    pieces = split(rows, 2)
    assert [len(piece["b"]) for piece in pieces] == [2, 2, 1]
    assert all(torch.equal(torch.cat([piece[name] for piece in pieces]), rows[name]) for name in rows)


# ---- the views of a stage --------------------------------------------------------------------------------------------


class Watch(Progress):
    """What was computed, as (view, images done), and an interruption after so many calls and steps."""

    def __init__(self, interrupt_after: int = 0) -> None:
        self.computed: list[tuple[int, int]] = []
        self.left = interrupt_after

    def caching(self, stage, view, done):
        self.computed.append((view, done))
        self.count()

    def step(self, stage, epoch, images, losses):
        self.count()

    def count(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def learned(whole_run) -> tuple[RunRecord, TeacherStudent]:
    return load_run(whole_run)


@dataclass
class StageViews:
    """The student's stage of a task with eleven images, four epochs from two views, batches of four."""

    learned: tuple[RunRecord, TeacherStudent]
    root: Path

    def __post_init__(self) -> None:
        drawn = np.random.default_rng(0).integers(0, 256, (11, 40, 44, 3), dtype=np.uint8)
        self.images = TaskImages(list(drawn), [2, 3] * 5 + [2])

    def open(self, watch: Progress | None = None, stop: Stop = never, **changes) -> tuple[CachedViews, TrainingImages]:
        """The stage's views, as at its beginning or after an interruption, and the images without a cache."""
        record, pair = self.learned
        optim = replace(record.config.optim, **{"cache_views": 2, "workers": 0, **changes})
        run = Run(RunDirectory(self.root), record, pair, {}, Processes(CPU), watch or Progress(), stop)
        task = Task(2, record.plans[1], optim, self.images, self.images, TaskImages([], []))
        plain = images_to_learn(run, task, "student")
        views = with_cached_views(run, task, Stage(2, 2, "student", 4, len(plain), 4), plain)
        assert isinstance(views, CachedViews)
        return views, plain

    def epoch(self, views: CachedViews, epoch: int) -> list[tuple[Rows, torch.Tensor]]:
        return list(views.batches(4, 0, (2, "student", epoch)))

    def whole(self, watch: Progress | None = None) -> list[dict[str, torch.Tensor]]:
        """The batches of both views."""
        views, _ = self.open(watch)
        return [{**rows, LABELS: labels} for epoch in (0, 1) for rows, labels in self.epoch(views, epoch)]


@pytest.fixture
def stage(learned, tmp_path, monkeypatch) -> StageViews:
    """With a part for every batch."""
    monkeypatch.setattr(cached_views, "PART_BYTES", 1)
    return StageViews(learned, tmp_path / "stage")


ALL = [(view, done) for view in (0, 1) for done in (4, 8, 11)]


def equal(first: list[dict[str, torch.Tensor]], second: list[dict[str, torch.Tensor]]) -> bool:
    return len(first) == len(second) and all(
        a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
        for a, b in zip(first, second, strict=True)
    )


@pytest.mark.parametrize("resident", [False, True])
@pytest.mark.parametrize("part_bytes", [1, 2**20])
def test_an_epoch_has_its_order_and_its_view(stage, monkeypatch, resident, part_bytes):
    """Epoch e: the images in the order of epoch e, as they look in epoch e mod 2 without a cache."""
    monkeypatch.setattr(cached_views, "PART_BYTES", part_bytes)
    views, plain = stage.open(watch := Watch(), resident=resident)
    for epoch in range(4):
        scope = (2, "student", epoch % 2)
        order = [index for keys in SeededBatches(11, 4, 0, scope, True) for index, _ in keys]
        pixels = torch.cat([some for some, _ in plain.batches(4, 0, scope)])
        looks = dict(zip(order, pixels, strict=True))
        expected = [[index for index, _ in keys] for keys in SeededBatches(11, 4, 0, (2, "student", epoch), True)]
        found = stage.epoch(views, epoch)
        assert len(found) == 3
        for (rows, labels), indices in zip(found, expected, strict=True):
            assert torch.equal(rows["pixels"], torch.stack([looks[index] for index in indices]))
            assert labels.tolist() == [stage.images.labels[index] for index in indices]
            again = compute_rows(stage.learned[1], "student", rows["pixels"], labels)
            for name, value in rows.items():
                torch.testing.assert_close(value, again[name], atol=1e-5, rtol=1e-5)
    assert watch.computed == ALL, "a view is computed once"
    skipped = list(views.batches(4, 0, (2, "student", 3), 2))
    assert equal([skipped[0][0]], [stage.epoch(views, 3)[2][0]])
    dropped = [rows for rows, _ in views.batches(4, 0, (2, "student", 3), drop_last=True)]
    assert equal(dropped, [rows for rows, _ in stage.epoch(views, 3)[:2]])


@pytest.mark.parametrize(("calls", "left"), [(1, ALL), (3, ALL[2:]), (5, ALL[4:])])
def test_what_was_written_before_an_interruption_is_not_computed_again(stage, tmp_path, calls, left):
    """It comes while a part is computed, before this is written."""
    whole = stage.whole()
    cut = StageViews(stage.learned, tmp_path / "cut")
    with pytest.raises(KeyboardInterrupt):
        cut.whole(Watch(calls))
    assert equal(cut.whole(watch := Watch()), whole)
    assert watch.computed == left


def test_a_stop_while_a_view_is_computed_keeps_what_was(stage):
    answers = iter([False, True])
    views, _ = stage.open(first := Watch(), lambda: next(answers))
    with pytest.raises(Stopped):
        stage.epoch(views, 0)
    assert first.computed == ALL[:2]
    stage.whole(second := Watch())
    assert second.computed == ALL[2:]


def damage(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def of_another_stage(file: Path) -> None:
    directory = RunDirectory(file.parents[1])
    tensors, header = directory.load_tensors(file)
    directory.save_tensors(file, {name: value + 1 for name, value in tensors.items()}, {**header, "fingerprint": "0"})


@pytest.mark.parametrize("harm", [damage, of_another_stage, Path.unlink, lambda file: file.write_text("x")])
def test_a_part_that_does_not_fit_is_computed_again_with_those_behind_it(stage, harm):
    whole = stage.whole()
    names = [f"view-00{view}-part-0000{number}.safetensors" for view in (0, 1) for number in (0, 1, 2)]
    assert sorted(file.name for file in (stage.root / "views").iterdir()) == names
    harm(stage.root / "views" / names[1])
    assert equal(stage.whole(watch := Watch()), whole)
    assert watch.computed == ALL[1:3]


def test_views_of_another_teacher_or_seed_are_removed(stage):
    stage.whole()
    with torch.no_grad():
        weight = stage.learned[1].teacher.class_head.weight.trainable
        weight += 1
        views, _ = stage.open(watch := Watch())
        weight -= 1
    assert list((stage.root / "views").iterdir()) == []
    stage.epoch(views, 0)
    assert watch.computed == ALL[:3]
    stage.open(seed=1)
    assert list((stage.root / "views").iterdir()) == []


def test_a_full_disk_is_one_line(stage, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(safetensors.torch, "save", full)
    with pytest.raises(RunError, match=r"cannot write .*view-000-part-00000.safetensors: No space left on device"):
        stage.whole()


# ---- whole runs ------------------------------------------------------------------------------------------------------


def same(first: Path, second: Path) -> bool:
    ours, theirs = weights(first), weights(second)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_as_many_views_as_epochs_are_the_run_without(whole_run, photos, tmp_path):
    """One view, learned from twice, and kills: benchmarks/kill_test.py, which test_interruptions.py runs."""
    train(config(photos, cache_views=2), tmp_path / "run")
    assert same(tmp_path / "run", whole_run)
    assert not (tmp_path / "run/views").exists()


def test_a_task_is_added_with_views(photos, tmp_path):
    """The option is the task's own; with as many views as epochs it learns what it would without."""
    write_images(tmp_path / "new/train", {"eel": 5, "fox": 4})
    write_images(tmp_path / "new/test", {"eel": 2, "fox": 2}, seed=1)
    train(config(photos, "none", epochs=1), tmp_path / "run-0")
    shutil.copytree(tmp_path / "run-0", tmp_path / "run-1")
    add_task(tmp_path / "run-0", Addition(str(tmp_path / "new")))
    record = add_task(tmp_path / "run-1", Addition(str(tmp_path / "new"), optim={"cache_views": 1}), watch := Watch())
    assert watch.computed == [(0, 4), (0, 8), (0, 9)]
    assert record.plans[-1].optim == {"cache_views": 1}
    assert record.config.optim.cache_views == 0
    assert same(tmp_path / "run-0", tmp_path / "run-1")


# ---- what is said and refused beforehand -----------------------------------------------------------------------------

Usage = namedtuple("Usage", "total used free")
SECOND_TASK = 12 * (8 + 3 * 32 * 32 + 4 * (64 + 4 + 64))
"""Bytes of a view of twelve images: label, pixels, the query, the teacher's logits of four classes and its token."""


class Two(Processes):
    def __init__(self) -> None:
        super().__init__(CPU)
        self.count = 2


def check(learned: tuple[RunRecord, TeacherStudent], views: int, processes: Processes, root: Path) -> int:
    """As a run begins."""
    record, pair = learned
    record = replace(record, tasks=[], config=config(record.config.data.data, cache_views=views))
    return check_views(record, pair, open_sources(record.plans, 0), processes, root)


def test_the_size_is_said_beforehand_and_true(stage, learned, tmp_path, monkeypatch):
    """Of the largest stage; of views that no epoch takes nothing. The files have a header each on top."""
    one = Processes(CPU)
    assert check(learned, 1, one, tmp_path / "none" / "run") == SECOND_TASK
    assert check(learned, 9, one, tmp_path / "run") == 2 * SECOND_TASK
    stage.whole()
    files = list((stage.root / "views").iterdir())
    assert 0 <= sum(file.stat().st_size for file in files) - 2 * 11 * SECOND_TASK / 12 < 800 * len(files)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, SECOND_TASK))
    assert check(learned, 1, one, tmp_path / "run") == SECOND_TASK
    assert check(learned, 2, one, stage.root) == 2 * SECOND_TASK, "what lies there already needs no more room"
    message = (
        r"--cache-views needs 0.1 MB for task 2 \(12 images × 2 views × 3.6 kB\), but .* has 0.0 MB free: "
        "keep fewer views, or choose another --out"
    )
    with pytest.raises(OptionError, match=message):
        check(learned, 2, one, tmp_path / "run")
    message = "--cache-views keeps the views of one process, and there are 2: leave it out, or start one"
    with pytest.raises(OptionError, match=message):
        check(learned, 2, Two(), tmp_path / "run")


def test_an_addition_that_only_solves_its_heads_keeps_no_views(learned, tmp_path):
    """Refused where it is asked for; what the run was begun with says nothing about it."""
    record, pair = learned
    begun = config(record.config.data.data, cache_views=2)
    begun = replace(begun, method=replace(begun.method, head="slda"))  # trains in the first task
    record = replace(record, config=begun, tasks=record.tasks[:1])
    sources = open_sources(record.plans, 1)
    assert check_views(record, pair, sources, Processes(CPU), tmp_path) == 0
    asked = replace(record.plans[1], optim={"cache_views": 3})
    with pytest.raises(OptionError, match="--cache-views 3: nothing trains"):
        check_views(replace(record, plans=[record.plans[0], asked]), pair, sources, Processes(CPU), tmp_path)


def test_a_dry_run_says_it_too(photos, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    options = ["--data", photos, "--tasks", 2, "--components-per-task", 2, "--cache-views", 20, "--epochs", 10]
    models = ["--head", "learned", "--teacher", "mini_student", "--student", "mini_student", "--device", "cpu"]
    with pytest.raises(SystemExit) as end:
        main(["train", *map(str, (*options, *models)), "--dry-run"])
    assert end.value.code == 0
    said = f"views:  {10 * SECOND_TASK / 1e6:.1f} MB on disk, while a stage learns from them"
    assert said in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--cache-views", "-1"], "--cache-views is -1, expected at least 0"),
        (
            ["--cache-views", "2", "--method", "none", "--distill", "none"],
            "--cache-views 2: nothing trains (see --adapt), so there is nothing to keep: leave it out",
        ),
    ],
)
def test_what_cannot_be(photos, tmp_path, capsys, options, message):
    with pytest.raises(SystemExit) as end:
        main(["train", "--data", str(photos), "--device", "cpu", *options, "--out", str(tmp_path / "run")])
    assert end.value.code == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "run").exists()
