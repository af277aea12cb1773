"""The table of benchmarks/split_cifar.py, on records whose means and gains can be worked out by hand."""

from __future__ import annotations

import json

import pytest

from benchmarks import split_cifar


@pytest.fixture
def folder(tmp_path):
    def record(distill: str, seed: int, accuracy: float, teacher: float | None) -> None:
        metrics = dict.fromkeys(split_cifar.METRICS, 10.0)
        content = {
            "method": "coda", "distillation": distill, "seed": seed, "epochs": 3, "options": [], "seconds": 1800,
            "commit": "abc", "machine": "2 cores", "versions": {"torch": "1", "timm": "2"},
            "backbones": {"student": {"model": "s", "parameters": 1_200_000}},
            "student": {**metrics, "final_average_accuracy": accuracy},
        }  # fmt: skip
        if teacher is not None:
            content["teacher"] = {**metrics, "final_average_accuracy": teacher}
            content["backbones"]["teacher"] = {"model": "t", "parameters": 4_000_000}
        (tmp_path / f"coda-{distill}-{seed}.json").write_text(json.dumps(content))

    for seed, (none, kd, kdp) in enumerate([(50.0, 52.0, 51.0), (52.0, 51.0, 55.0)]):
        record("none", seed, none, None)
        record("kd", seed, kd, 60.0 + 2 * seed)
        record("kdp", seed, kdp, 60.0 + 2 * seed)
    (tmp_path / "paper.csv").write_text((split_cifar.RESULTS / "paper.csv").read_text())
    return tmp_path


def test_means_gains_and_the_papers_figures(folder):
    rows = {line.split("|")[1].strip(): line for line in split_cifar.report(folder).splitlines() if "|" in line}
    assert set(rows) == {"", "---", "none", "kd", "**kdp**", "teacher"}, "what has no record has no row"
    assert rows["none"].startswith("| none | 51.00 ± 1.41 |  | -0.50 (1 of 2) | 10.00 ± 0.00 |")
    assert rows["**kdp**"].startswith("| **kdp** | 53.00 ± 2.83 | +2.00 (2 of 2) | +1.50 (1 of 2) |")
    # the paper's ViT-S: 82.18 alone, 83.03 with KD, 84.31 with KDP
    assert rows["**kdp**"].endswith("| 84.31 | +2.13 | +1.28 |")
    assert rows["teacher"].startswith("| teacher | 61.00 ± 1.41 |")


def test_the_report_says_what_it_is_made_of(folder):
    text = split_cifar.report(folder)
    assert "Seeds [0, 1], 3 epochs a task" in text
    assert "student `s`, 1.2 M parameters; teacher `t`, 4.0 M parameters" in text
    assert "3.0 hours of runs" in text
    split_cifar.picture(split_cifar.read_records(folder), folder / "accuracy.png")
    assert (folder / "accuracy.png").stat().st_size > 10_000


def test_the_grids_are_the_tables(tmp_path):
    assert len(split_cifar.GRIDS["full"]) == 28
    assert len(split_cifar.GRIDS["small"]) == 6
    paper = split_cifar.read_paper(split_cifar.RESULTS)
    assert paper.keys() == split_cifar.GRIDS["full"]
