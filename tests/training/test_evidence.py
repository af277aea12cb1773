"""benchmarks/evidence: it goes on after a kill; its tables, from records whose figures can be worked out by hand."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.evidence import aims, latency, measure, records, report, rows, tables
from benchmarks.evidence.__main__ import main
from benchmarks.evidence.budget import BUDGETS, Budget, cut
from benchmarks.evidence.drawings import TEST, TRAIN, chosen, prepare
from benchmarks.evidence.picture import picture
from cdl_deploy.run.config import ModelConfig
from cdl_deploy.run.record import read_record
from tests.tiny_models import tiny_pair, write_tiny_weights
from tests.training.conftest import write_photos

TINY = Budget("tiny", 4, 2, None, 1, 1, (0,), ("coda",), "", tasks=2)


class Killed(BaseException):
    """Nothing catches it."""


def place_in(root: Path, pair: ModelConfig | None = None) -> measure.Place:
    models = {} if pair is None else {
        "teacher": pair.teacher, "student": pair.student,
        "teacher_weights": pair.teacher_weights, "student_weights": pair.student_weights,
    }  # fmt: skip
    return measure.Place(root / "photos", root / "runs", root / "records", TINY, models, say=lambda text: None)


def test_a_killed_row_goes_on_where_it_was(tmp_path, monkeypatch):
    write_photos(tmp_path / "photos")
    write_tiny_weights(tmp_path / "weights")
    place = place_in(tmp_path, tiny_pair(tmp_path / "weights", 5))
    from cdl_deploy.training import loop

    finish, tasks = loop.finish_task, []

    def killed(run, task, *rest):
        tasks.append(task.number)
        if tasks == [1, 2]:
            raise Killed
        return finish(run, task, *rest)

    monkeypatch.setattr(loop, "finish_task", killed)
    work = {"only": ("coda-none-first",), "parts": ("rows",)}
    with pytest.raises(Killed):
        measure.measure_all(place, **work)
    assert not list(place.records.glob("*"))
    assert not read_record(place.runs / "coda-none-first-0").finished
    measure.measure_all(place, **work)
    assert tasks == [1, 2, 2], "the first task was not learned again"
    record = json.loads(place.record("coda-none-first-slda-0").read_text())
    assert record["training"]["resumed"]
    assert record["student"]["final_average_accuracy"] >= 0
    assert record["budget"]["images"] == 4
    assert record["adapt"] == "first"
    assert record["backbones"]["student"]["sha256"]
    measure.measure_all(place, **work)
    assert tasks == [1, 2, 2], "what has a record is not measured again"
    assert list(measure.head_work(place, [rows.Row("coda-none-first", "coda", "none", "first", ("slda",))])) == []
    (row,) = [row for row in rows.all_rows(TINY) if row.name == "coda-none-first"]
    (exporting,) = measure.file_work(place, [row], small=False)
    assert exporting.func is measure.keep_files
    monkeypatch.setattr(measure, "files_of", lambda *_: {"student": {"accuracy": 50.0, "images": 12, "bytes": 9}})
    exporting()
    assert json.loads(place.record("coda-none-first-slda-0").read_text()) == record | {
        "files": {"student": {"accuracy": 50.0, "images": 12, "bytes": 9}}
    }
    assert list(measure.file_work(place, [row], small=False)) == []


def test_a_lender_that_was_killed_is_finished_although_it_has_a_record(tmp_path):
    """The record can be of another machine's run, or of one that is gone; the teacher must be here."""
    place = place_in(tmp_path)
    lender, taker = (row for row in rows.all_rows(TINY) if row.name in ("coda-kd-first", "coda-kdp-first"))
    for name in ("coda-kd-first-slda-0", "coda-kdp-first-slda-0"):
        place.records.mkdir(exist_ok=True)
        place.record(name).write_text("{}")
    root = place.runs / "coda-kd-first-0"
    root.mkdir(parents=True)  # what a killed run leaves
    (training,) = measure.row_work(place, [lender, taker])
    assert (training.func, training.args[1:]) == (measure.train, (lender, 0, root))
    root.with_suffix(".times.json").write_text("{}")
    assert list(measure.row_work(place, [lender, taker])) == []


def test_nothing_begins_after_the_time_is_up(tmp_path, monkeypatch):
    begun = []
    monkeypatch.setattr(measure, "PARTS", {"rows": lambda *_: iter([lambda: begun.append(1), lambda: begun.append(2)])})
    measure.measure_all(place_in(tmp_path), until=0)
    assert begun == []
    measure.measure_all(place_in(tmp_path))
    assert begun == [1, 2]


def test_rows_are_in_the_order_of_what_they_are_worth_and_lend_their_teachers(tmp_path):
    every = rows.all_rows(BUDGETS["full"])
    assert [row.name for row in every[:11]] == [
        "frozen", "frozen-11x70", "distilled-11x70", "distilled-11x56", "distilled-10x56",
        "coda-none-first", "coda-kd-first", "coda-kdp-first", "coda-none-all", "coda-kd-all", "coda-kdp-all",
    ]  # fmt: skip
    names = [row.name for row in every]
    assert all(names.index(row.teacher_of) < at for at, row in enumerate(every) if row.teacher_of)
    place = place_in(tmp_path, ModelConfig("t", "s", teacher_weights="tw", student_weights="sw"))
    alone, taught = (measure.options_of(place, next(r for r in every if r.name == name), 3)
                     for name in ("coda-none-all", "coda-kdp-first"))  # fmt: skip
    assert "teacher" not in alone
    assert alone["head"] == "learned"
    assert alone["adapt"] == "all"
    assert alone["seed"] == 3
    assert taught["teacher_run"] == str(tmp_path / "runs/coda-kd-first-3")
    assert taught["head"] == "slda"
    assert BUDGETS["full"].epochs == 20
    assert BUDGETS["full"].seeds == (0, 1, 2)


def test_a_student_of_another_shape_has_its_own_weights_and_size_and_no_teacher(tmp_path):
    pair = ModelConfig("t", "s", teacher_weights="w/teacher.safetensors", student_weights="w/student.safetensors")
    told = measure.options_of(place_in(tmp_path, pair), rows.DEEP, 1)
    assert told == {
        "tasks": 2, "seed": 1, "epochs": 1, "head": "slda", "method": "none", "distill": "none", "image_size": 70,
        "student": "t", "student_weights": "w/teacher.safetensors", "student_blocks": 11,
    }  # fmt: skip
    assert rows.DEEP.told("slda-early") == {"head": "slda", "features": "class+patches+patches@6+patches@8"}
    assert "teacher_features" in rows.FROZEN.told("slda-early")
    assert rows.FROZEN.told("ncm") == {"head": "ncm"}


def test_a_distilled_student_has_its_own_weights_and_is_left_out_without_them(tmp_path):
    pair = ModelConfig("t", "s", teacher_weights="w/teacher.safetensors", student_weights=str(tmp_path / "student.st"))
    said = []
    place = replace(place_in(tmp_path, pair), say=said.append)
    measure.measure_all(place, only=("distilled-11x56",), parts=("rows",))
    (line,) = said
    assert line.endswith(f"--out {tmp_path} --student vit_384x11_patch14_56 --distil IMAGES")
    file = tmp_path / "vit_384x11_patch14_56-distilled.safetensors"
    file.with_suffix(".json").write_text('{"image_size": 56}')
    told = measure.options_of(place, rows.DISTILLED[1], 1)
    assert told == {
        "tasks": 2, "seed": 1, "epochs": 1, "head": "slda", "method": "none", "distill": "none", "image_size": 56,
        "student": "vit_384x11_patch14_56", "student_weights": str(file),
    }  # fmt: skip
    shorter = measure.options_of(place, rows.DISTILLED[2], 1)
    assert shorter == {**told, "student_blocks": 10, "features": "class+patches+patches@6+patches@8"}
    assert tables.label(rows.DISTILLED[2]) == "distilled student, 10 blocks at 56 px"
    assert rows.DISTILLED[1].teachers_row == "frozen"
    assert tables.label(rows.DISTILLED[1]) == "distilled student, 11 blocks at 56 px"


def test_a_student_of_another_shape_is_compared_with_the_frozen_teacher(results):
    write_row(results / "evidence/shortest", "frozen-11x70", "slda", 0, 59.5)
    found = records.read_records(results / "evidence", "shortest")
    (aim,) = aims.student_aim(found)
    line = "frozen-11x70, slda (of the runs): 59.5 against 60.0, its latency was not measured: **not known**"
    assert f"\n  * {line}" in aim
    assert "| frozen student, 11 blocks at 70 px | none | slda | 59.5 † |" in tables.whole_table(found)


def test_a_budget_takes_the_same_images_every_time(tmp_path):
    write_photos(tmp_path / "photos")
    first, second = (cut(tmp_path / "photos", tmp_path / name, 4, 2) for name in ("one", "two"))
    found = sorted(path.relative_to(first) for path in first.rglob("*.png"))
    assert found == sorted(path.relative_to(second) for path in second.rglob("*.png"))
    assert len(found) == 4 * (4 + 2)
    assert cut(tmp_path / "photos", tmp_path / "three", None, None) == tmp_path / "photos"


# ---- pages from records ----------------------------------------------------------------------------------------------


def write_row(folder: Path, name: str, head: str, seed: int, student: float, teacher: float | None = None) -> None:
    row = next(row for row in rows.all_rows(BUDGETS["shortest"]) if row.name == name)
    figures = {"average_incremental_accuracy": 60.0, "forgetting": 5.0, "forgetting_standard": 6.0}
    record = {
        "row": name, "head": head, "seed": seed, "adapt": row.adapt, "commit": "abc", "machine": "2 cores",
        "training": {"seconds": 22.0, "processor_seconds": 20.0}, "stage_seconds": {"student": 30, "evaluation": 10},
        "versions": {"torch": "1"}, "student": {"final_average_accuracy": student, **figures},
        "backbones": {"student": {"model": "s", "parameters": 1_200_000}},
    }  # fmt: skip
    if teacher is not None:
        record["teacher"] = {"final_average_accuracy": teacher, **figures, "forgetting": 7.0}
        record["backbones"]["teacher"] = {"model": "t", "parameters": 4_000_000}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}-{head}-{seed}.json").write_text(json.dumps(record))


@pytest.fixture
def results(tmp_path):
    folder = tmp_path / "evidence/shortest"
    write_row(folder, "frozen", "slda", 0, 50.0, 60.0)
    for seed, (none, kd, kdp) in enumerate([(50.0, 51.0, 54.0), (52.0, 51.0, 55.0)]):
        write_row(folder, "coda-none-first", "slda", seed, none)
        write_row(folder, "coda-kd-first", "slda", seed, kd, 59.0)
        write_row(folder, "coda-kdp-first", "slda", seed, kdp, 59.0)
    for seed, accuracy in enumerate((56.0, 57.0)):
        record = json.loads((folder / f"coda-kdp-first-slda-{seed}.json").read_text())
        record["files"] = {"student": {"accuracy": accuracy, "images": 2000, "bytes": 9_000_000}}
        if seed == 0:
            record["files"]["student.int8"] = {"accuracy": 55.5, "images": 2000, "bytes": 3_000_000}
        (folder / f"coda-kdp-first-slda-{seed}.json").write_text(json.dumps(record))
    bound = {"row": "joint", "role": "student", "accuracy": 53.0}
    (folder / "joint-student.json").write_text(json.dumps(bound))
    for name in ("paper.csv", "heads-photographs.json"):
        (tmp_path / name).write_bytes((report.RESULTS / name).read_bytes())
    return tmp_path


def test_the_table_and_the_gains(results):
    found = records.read_records(results / "evidence", "shortest")
    lines = tables.whole_table(found).splitlines()
    assert lines[2].startswith("| frozen student | none | slda | 50.0 † | 60.0 | 5.0 | 6.0 | 15 |")
    # the exported files' accuracy goes before the runs': 56 and 57
    kdp = next(line for line in lines if line.startswith("| CODA, KDP | first | slda |"))
    cells = ["56.5 ± 0.7", "60.0 ± 0.0", "5.0 ± 0.0", "6.0 ± 0.0", "15 ± 0", "–", "9.0", "55.5", "–", "3.0"]
    assert kdp.strip("| ").split(" | ")[3:] == cells
    assert any(line.startswith("| joint linear probe, frozen student | – | all at once | 53.0 |") for line in lines)
    assert sum(line.startswith("| CODA, teacher") for line in lines) == 1, "a lent teacher is not counted twice"
    # the others have no file, so of the runs: KDP − none 4 and 3, KDP − KD 3 and 4; the paper: 84.31 − 82.18, − 83.03
    assert tables.gains(found, records.read_paper(results)).splitlines()[-1] == (
        "| CODA | first | slda | +3.5 (2 of 2) † | +2.13 | +3.5 (2 of 2) † | +1.28 |"
    )
    assert "| CODA, KDP | first | slda | 56.5 ± 0.7 | 5.0 ± 0.0 | 9.0 | – | 55.5 | 3.0 | – |" in tables.readme_table(
        found
    )


def test_a_run_that_waited_for_others_has_no_training_time(results):
    file = results / "evidence/shortest/coda-kdp-first-slda-0.json"
    record = json.loads(file.read_text())
    row = next(row for row in rows.all_rows(BUDGETS["shortest"]) if row.name == "coda-kdp-first")
    assert tables.seconds(record, "student", row, "slda", None) == 15
    record["training"]["seconds"] = 28.0
    assert tables.seconds(record, "student", row, "slda", None) is None


def test_times_of_another_processor_do_not_stand_in_the_column(results):
    file = results / "evidence/shortest/coda-kdp-first-slda-0.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "processor": "other (avx2)"}))
    found = records.read_records(results / "evidence", "shortest")
    assert found.processor is None
    kdp = next(
        line for line in tables.whole_table(found).splitlines() if line.startswith("| CODA, KDP | first | slda |")
    )
    assert kdp.strip("| ").split(" | ")[3:8] == ["56.5 ± 0.7", "60.0 ± 0.0", "5.0 ± 0.0", "6.0 ± 0.0", "15"]


def test_files_of_some_seeds_and_runs_of_others_are_not_mixed(results):
    file = results / "evidence/shortest/coda-kdp-first-slda-1.json"
    record = json.loads(file.read_text())
    del record["files"]
    file.write_text(json.dumps(record))
    found = records.read_records(results / "evidence", "shortest")
    assert found.best("coda-kdp-first", "slda", "student") == {0: 54.0, 1: 55.0}
    assert "| CODA, KDP | first | slda | 54.5 ± 0.7 † |" in tables.whole_table(found)


def test_aims_say_reached_or_not(results):
    folder = results / "evidence/shortest"
    found = records.read_records(results / "evidence", "shortest")
    teacher, student, forgetting, gap = aims.aims(found, results)
    assert "**not reached**" not in teacher, "the frozen teacher has 60"
    untimed = "coda-kdp-first, slda (of the runs): 54.5 against 59.0, its latency was not measured"
    assert f"{untimed}: **not reached**, 4.5 below" in student
    assert "coda-kdp-first, slda: 5.0 against 7.0, reached" in forgetting
    assert "frozen, slda: 5.0 against 7.0, reached" in forgetting
    assert "coda-kdp-first, slda: 45 %, **not reached**" in gap
    assert "-19 %, **not reached**" in gap

    def times(student: float) -> None:
        found = {"coda-kdp-first-slda": student, "coda-kd-first-slda.teacher": 8.0, "frozen-slda.teacher": 10.0}
        models = {name: {"p50_ms": value} for name, value in found.items()}
        about = {"models": models, "about": "chip, batch 1", "commit": "abc", "notes": ["busy"]}
        (folder / "latency.json").write_text(json.dumps(about))

    times(2.0)
    near = json.loads((folder / "coda-kd-first-slda-0.json").read_text())
    for seed in (0, 1):
        near["teacher"]["final_average_accuracy"], near["seed"] = 55.5, seed
        (folder / f"coda-kd-first-slda-{seed}.json").write_text(json.dumps(near))
    found = records.read_records(results / "evidence", "shortest")
    assert "54.5 against 55.5, at 0.25 of its latency: reached" in aims.aims(found, results)[1]
    readme = tables.readme_table(found)
    assert "| 56.5 ± 0.7 | 5.0 ± 0.0 | 9.0 | 0.20 | 55.5 | 3.0 | – |" in readme
    assert readme.endswith("Latency: share of the frozen teacher's, batch 1, chip.")
    times(2.1)
    found = records.read_records(results / "evidence", "shortest")
    assert "at 0.26 of its latency: **not reached**, too slow" in aims.aims(found, results)[1]
    times(2.0)
    (folder / "latency.json").rename(folder / "latency-other.json")
    found = records.read_records(results / "evidence", "shortest")
    assert "54.5 against 55.5, at 0.25 of its latency (chip): reached" in aims.aims(found, results)[1]
    (folder / "latency-other.json").rename(folder / "latency.json")
    found = records.read_records(results / "evidence", "shortest")
    text = report.report(results)
    assert "* busy" in text.splitlines()
    assert "10 training images a class" in text
    assert "**The budget `shortest`" in text
    assert "evidence-shortest.png" in text
    picture(found, results / "evidence.png")
    assert (results / "evidence.png").stat().st_size > 10_000


def test_a_larger_budget_that_is_not_done_stands_before_the_one_that_is(results):
    """Its rows are counted, and README shows them."""
    write_row(results / "evidence/short", "frozen", "slda", 0, 70.0, 80.0)
    text = report.report(results)
    first, second = text.split("## Split CIFAR-100, ten tasks of ten classes, ")[1:]
    assert first.startswith("100 training images a class\n")
    assert "**1 of its 34 rows have been measured**" in first
    assert "| frozen student | none | slda | 70.0 † |" in first
    assert second.startswith("10 training images a class\n")
    assert "| frozen student | none | slda | 50.0 † |" in second
    assert [records.budget.name for records in report.measured(results)] == ["short", "shortest"]


def test_files_are_named_as_in_the_record(tmp_path):
    place = place_in(tmp_path)
    for file in ("coda-kdp-all-0.files/student.onnx", "coda-kdp-all-slda-0.small/student.int8.onnx",
                 "coda-kd-all-0.small/teacher.onnx"):  # fmt: skip
        (place.runs / file).parent.mkdir(parents=True)
        (place.runs / file).touch()
    assert list(latency.files(place, 0)) == [
        "coda-kdp-all-learned",
        "coda-kdp-all-slda.int8",
        "coda-kd-all-learned.teacher",
    ]


@pytest.mark.parametrize(("known", "written"), [(None, "latency"), ("this", "latency"), ("that", "latency-this")])
def test_latency_of_another_processor_stands_beside_the_tables(known, written, tmp_path, monkeypatch, results):
    place = place_in(tmp_path)
    file = place.runs / "frozen-0.files/student.onnx"
    file.parent.mkdir(parents=True)
    file.touch()
    place.records.mkdir()
    if known:
        place.record("latency").write_text(json.dumps({"about": f"{known}, batch 1, one thread"}))
    one = {"model": "frozen-slda", "p50_ms": 1.5, "low_ms": 1.4, "high_ms": 1.6, "p99_ms": 2.0}
    said = json.dumps({"measurements": [one], "machine": {}, "notes": ["quiet"]})
    monkeypatch.setattr(latency, "about_here", lambda: {"processor": "this", "commit": "abc"})
    monkeypatch.setattr(latency.subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 0, said))
    latency.measure_latency(place, 1.0)
    assert json.loads(place.record(written).read_text())["models"] == {
        "frozen-slda": {"p50_ms": 1.5, "low_ms": 1.4, "high_ms": 1.6, "p99_ms": 2.0}
    }
    (results / "evidence/shortest/latency-this.json").write_bytes(place.record(written).read_bytes())
    write_row(results / "evidence/shortest", "frozen", "slda", 0, 50.0, 60.0)
    (results / "evidence/shortest/latency.json").write_text(
        json.dumps({"models": {}, "about": "chip", "commit": "abc", "notes": []})
    )
    assert "| frozen-slda | 1.5 | 1.4 to 1.6 |" in report.report(results).splitlines()
    found = records.read_records(results / "evidence", "shortest")
    assert list(found.most_timed["models"]) == ["frozen-slda"], "the picture has them, whatever the processor"


def test_one_line_for_what_is_missing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["evidence", "start"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("data/cifar100 has no train and no test: lay CIFAR-100 there")
    assert said.count("\n") == 1
    assert os.listdir(tmp_path) == []
    (tmp_path / "other.tgz").write_bytes(b"other")
    with pytest.raises(SystemExit, match=r"it is not emoji-datasource-google@16\.0\.0"):
        prepare(tmp_path / "drawings", tmp_path / "other.tgz")


def test_a_seed_that_a_budget_does_not_have(tmp_path, monkeypatch, capsys):
    write_photos(tmp_path / "photos")
    words = ["run", "--budget", "short", "--seeds", "0", "7", "--data", str(tmp_path / "photos")]
    monkeypatch.setattr("sys.argv", ["evidence", *words, "--runs", str(tmp_path / "runs")])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    assert capsys.readouterr().err == "--seeds 7 is none of the budget 'short', expected 0, 1\n"
    assert not (tmp_path / "runs").exists()


def test_drawings_are_large_classes_in_an_order_that_is_drawn():
    emoji = [
        {"image": f"{name}-{at}.png", "subcategory": name, "has_img_google": at != 3}
        for name, count in (("tool & die", TRAIN + TEST + 1), ("small", TRAIN + TEST - 1))
        for at in range(count)
    ]
    found = chosen(emoji)
    assert list(found) == ["tool-die"]
    assert len(found["tool-die"]) == TRAIN + TEST
    assert "tool & die-3.png" not in found["tool-die"]
    assert found == chosen(emoji[::-1])
    assert found["tool-die"] != sorted(found["tool-die"])
