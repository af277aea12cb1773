"""The table of benchmarks/split_cifar_report.py, on records whose means and gains can be worked out by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import split_cifar, split_cifar_pictures, split_cifar_report
from cdl_deploy.run.record import parse_record
from tests.records import finished_task, run_json


@pytest.fixture
def folder(tmp_path):
    def record(distill: str, seed: int, accuracy: float, teacher: float | None) -> None:
        metrics = dict.fromkeys(split_cifar.METRICS, 10.0)
        content = {
            "method": "coda", "distillation": distill, "seed": seed, "epochs": 3, "options": [],
            "seconds": 1800, "stage_seconds": {"student": 700 + seed, "evaluation": 90},
            "commit": "abc", "machine": "2 cores", "versions": {"torch": "1", "timm": "2"},
            "backbones": {"student": {"model": "s", "sha256": "1a", "parameters": 1_200_000}},
            "student": {**metrics, "final_average_accuracy": accuracy},
        }  # fmt: skip
        if teacher is not None:
            content["teacher"] = {**metrics, "final_average_accuracy": teacher}
            content["backbones"]["teacher"] = {"model": "t", "sha256": "2b", "parameters": 4_000_000}
        (tmp_path / f"coda-{distill}-{seed}.json").write_text(json.dumps(content))

    for seed, (none, kd, kdp) in enumerate([(50.0, 52.0, 51.0), (52.0, 51.0, 55.0)]):
        record("none", seed, none, None)
        record("kd", seed, kd, 60.0 + 2 * seed)
        record("kdp", seed, kdp, 60.0 + 2 * seed)
    (tmp_path / "paper.csv").write_text((split_cifar.RESULTS / "paper.csv").read_text())
    return tmp_path


def test_means_gains_and_the_papers_figures(folder):
    text = split_cifar_report.report(folder).partition("### Where the time went")[0]
    rows = {line.split("|")[1].strip(): line for line in text.splitlines() if "|" in line}
    assert set(rows) == {"", "---", "none", "kd", "**kdp**", "teacher"}, "what has no record has no row"
    assert rows["none"].startswith("| none | 51.00 ± 1.41 |  | -0.50 (1 of 2) | 10.00 ± 0.00 |")
    assert rows["**kdp**"].startswith("| **kdp** | 53.00 ± 2.83 | +2.00 (2 of 2) | +1.50 (1 of 2) |")
    # the paper's ViT-S: 82.18 alone, 83.03 with KD, 84.31 with KDP
    assert rows["**kdp**"].endswith("| 84.31 | +2.13 | +1.28 |")
    assert rows["teacher"].startswith("| teacher | 61.00 ± 1.41 |")


def test_the_report_says_what_it_is_made_of(folder):
    text = split_cifar_report.report(folder)
    assert "Seeds [0, 1], 3 epochs a task" in text
    assert "student `s`, 1.2 M parameters; teacher `t`, 4.0 M parameters" in text
    assert "3.0 hours of runs" in text
    split_cifar_pictures.picture(split_cifar.read_records(folder), folder / "accuracy.png")
    assert (folder / "accuracy.png").stat().st_size > 10_000


def test_where_the_time_went(folder):
    assert "| coda + kdp | 0 | 700 | 90 |" in split_cifar_report.report(folder).splitlines()
    spent = [{"student": 1.4, "evaluation": 2.0}, {"student": 1.4}]
    tasks = [finished_task(number, ["a", "b"], seconds=seconds) for number, seconds in enumerate(spent, start=1)]
    record = parse_record(run_json(tasks=tasks), Path("run.json"))
    assert split_cifar.stage_seconds(record) == {"student": 3, "evaluation": 2}


def test_variants_answers_and_costs(folder):
    record = json.loads((folder / "coda-kdp-0.json").read_text())
    (folder / "variants").mkdir()
    record["student"]["final_average_accuracy"] = 53.5  # kdp has 51 with this seed
    (folder / "variants/all-seen-0.json").write_text(json.dumps(record))
    (folder / "variants/alpha-0.25-0.json").write_text(json.dumps(record))
    (folder / "answers").mkdir()
    for seed, (plain, better) in enumerate([(50.0, 52.0), (52.0, 55.0)]):
        answers = {
            name: {"final_average_accuracy": value, "forgetting": value / 10}
            for name, value in (("as trained", plain), ("calibrated", better))
        }
        (folder / f"answers/coda-kd-{seed}.json").write_text(json.dumps({"answers": answers}))
    (folder / "answers/all-seen-0.json").write_text(json.dumps({"answers": answers}))
    latency = {"1": {"p50_ms": 0.5, "speedup": 4.0}, "32": {"p50_ms": 10.0, "speedup": 3.0}}
    models = {
        "kdp": {"accuracy": 51.0, "bytes": 2_000_000, "update_bytes": 30_000, "latency": latency},
        "teacher": {
            "accuracy": 60.0, "bytes": 9_000_000, "update_bytes": None,
            "latency": {"1": {"p50_ms": 2.0}, "32": {"p50_ms": 30.0}},
        },
    }  # fmt: skip
    cost = {
        "seed": 0, "commit": "abc", "threads": [2], "notes": ["busy"], "models": models,
        "machine": {"cpu": "chip", "instructions": ["avx2"], "versions": {"onnxruntime": "1"}},
        "backbones": {"teacher": "2b", "student": "1a"},
    }  # fmt: skip
    (folder / "cost.json").write_text(json.dumps(cost))
    lines = split_cifar_report.report(folder).splitlines()
    assert "| all-seen | `--kd-classes seen` | 53.50 | +2.50 (1 of 1) | 10.00 | 60.00 |" in lines
    assert "| alpha-0.25 | `--alpha 0.25` | 53.50 | +2.50 (1 of 1) | 10.00 | 60.00 |" in lines
    assert "| coda + kd | 2 | 51.00 (5.1) | 53.50 (5.3) |" in lines
    assert "| coda + kdp, all-seen | 1 | 52.00 (5.2) | 55.00 (5.5) |" in lines
    assert "| kdp | 51.00 % | 0.5 | 4.00 | 10 | 3.00 | 2.00 | 30 |" in lines
    assert "| teacher | 60.00 % | 2 |  | 30 |  | 9.00 | – |" in lines
    assert "* busy" in lines
    assert any("the runs of the table, seed 0: exported ONNX files on chip (avx2)" in line for line in lines)
    split_cifar_pictures.cost_picture(cost, folder / "cost.png")
    assert (folder / "cost.png").stat().st_size > 10_000


def test_a_longer_schedule_is_a_section_of_its_own(folder):
    (folder / "longer").mkdir()
    for distill, accuracy in (("none", 58.0), ("kdp", 59.5)):
        record = json.loads((folder / f"coda-{distill}-0.json").read_text())
        record["epochs"], record["student"]["final_average_accuracy"] = 9, accuracy
        (folder / f"longer/coda-{distill}-0.json").write_text(json.dumps(record))
    (folder / "longer/variants").mkdir()
    record["student"]["final_average_accuracy"] = 59.0
    (folder / "longer/variants/all-seen-0.json").write_text(json.dumps(record))
    before, _, longer = split_cifar_report.report(folder).partition("## A longer schedule")
    assert "| **kdp** | 53.00 ± 2.83 |" in before
    assert "9 epochs a task, seeds [0], commit abc" in longer
    assert "| **kdp** | 59.50 | +1.50 (1 of 1) | – | 10.00 |" in longer
    assert "| all-seen | `--kd-classes seen` | 59.00 | -0.50 (0 of 1) | 10.00 | 60.00 |" in longer


def test_a_second_pair_is_a_section_and_costs_say_which_pair_they_are_of(folder):
    other = folder / "second-pair"
    (other / "backbones").mkdir(parents=True)
    record = json.loads((folder / "coda-kdp-0.json").read_text())
    record["student"]["final_average_accuracy"] = 49.0
    record["backbones"]["student"]["sha256"] = "3c"
    (other / "coda-kdp-0.json").write_text(json.dumps(record))
    made = {
        "model": "s", "parameters": 1_200_000, "epochs": 4, "seconds": 600, "machine": "chip", "seed": 0,
        "batch_size": 256, "commit": "def", "validation_top1": 25.0, "classes": 200, "validation_images": 10_000,
        "bf16": False, "augment": False,
    }  # fmt: skip
    (other / "backbones/s.json").write_text(json.dumps(made))
    before, _, second = split_cifar_report.report(folder).partition("## A second pair")
    assert "| **kdp** | 53.00 ± 2.83 |" in before
    assert "`s`: 1.2 M parameters, 4 epochs in 10 minutes" in second
    assert "batch 256, float32, crops and flips only, commit def" in second
    assert "### coda, second pair" in second
    assert "| **kdp** | 49.00 | – | – | 10.00 |" in second
    in_words = split_cifar_report.pair_in_words
    assert in_words({"backbones": {"student": "1a", "teacher": "2b"}}, folder) == "the table"
    assert in_words({"backbones": {"student": "3c", "teacher": "2b"}}, folder) == "the second pair"
    with pytest.raises(SystemExit, match=r"are those of no record: measure it again"):
        in_words({"backbones": {"student": "3c", "teacher": "4d"}}, folder)


def test_the_pair_on_the_digits_beside_the_packages_own(folder, monkeypatch):
    def record(commit: str, *accuracies: float) -> str:
        names = ((run, role) for run, role in (("kdp", "student"), ("none", "student"), ("kdp", "teacher")))
        rows = [
            {"run": run, role: {"final_average_accuracy": accuracy}}
            for (run, role), accuracy in zip(names, accuracies, strict=True)
        ]
        rows[0] |= rows.pop()
        return json.dumps({"commit": commit, "rows": rows})

    (folder / "digits.json").write_text(record("abc", 70.0, 71.0, 80.0))
    (folder / "mini.json").write_text(record("def", 85.0, 84.0, 93.0))
    monkeypatch.setattr(split_cifar_report, "MINI", folder / "mini.json")
    (line,) = split_cifar_report.digits_lines(folder)
    assert "student of this pair has 70.00 %, the student alone 71.00 %, the teacher 80.00 %" in line
    assert "85.00, 84.00 and 93.00 %. Commits abc, def." in line


def test_the_grids_are_the_tables(tmp_path):
    assert len(split_cifar.GRIDS["full"]) == 28
    assert len(split_cifar.GRIDS["small"]) == 6
    assert split_cifar.GRIDS["coda"] < split_cifar.GRIDS["small"] < split_cifar.GRIDS["full"]
    paper = split_cifar_report.read_paper(split_cifar.RESULTS)
    assert paper.keys() == split_cifar.GRIDS["full"]
