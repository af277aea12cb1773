"""`cdl compare`: grouping by what differs, means and deviations against numpy, and tables that fit."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from cdl_deploy.cli import main
from cdl_deploy.cli.run_groups import METRICS, group_runs, preset_of
from cdl_deploy.version import __version__
from tests.records import backbone, finished_task


def write_run(
    root: Path, seed: int = 0, accuracy: float = 80.0, teacher: float | None = 90.0, done=2, **changes
) -> Path:
    """A finished run of two tasks; `changes` are settings by name. Every metric is another function of `accuracy`."""
    config: dict[str, dict] = {
        "data": {"data": "digits", "tasks": 2},
        "models": {"teacher": "large", "student": "small"},
        "method": {"method": "coda", "distill": "kdp" if teacher is not None else "none", "alpha": 0.5},
        "optim": {"epochs": 20, "seed": seed, "device": "cpu", "workers": 0, "precision": "fp32", "log": "none"},
    }
    weights = changes.pop("weights", "abc")
    for section in config.values():
        section.update({name: changes.pop(name) for name in list(changes) if name in section})
    assert not changes

    def metrics(value: float) -> dict[str, object]:
        return {
            **{name: value + 1.7 * i for i, name in enumerate(METRICS)},
            "accuracy_matrix": [[value] * (row + 1) for row in range(done)],
        }

    order = ["a", "b", "c", "d"] if seed % 2 else ["d", "c", "b", "a"]  # drawn from the seed
    plan = {"data": config["data"]["data"], "holdout": None, "skip_bad": False, "known_classes": [], "optim": {}}
    record = {
        "format_version": 1,
        "status": "finished" if done == 2 else "unfinished",
        "student": metrics(accuracy),
        "teacher": metrics(teacher) if teacher is not None else None,
        "tasks": [finished_task(i + 1, order[2 * i : 2 * i + 2]) for i in range(done)],
        "plans": [{**plan, "classes": order[:2]}, {**plan, "classes": order[2:]}],
        "config": config,
        "backbones": {role: backbone(sha256=weights) for role in ("student", "teacher")[: 2 if teacher else 1]},
        "preprocessing": {"size": 32, "resize": 32, "interpolation": "bicubic", "augmentation": "gentle"},
        "skipped_images": [],
    }
    root.mkdir(parents=True)
    (root / "run.json").write_text(json.dumps(record))
    return root


def cdl(capsys, *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        main(["compare", *map(str, arguments)])
    printed = capsys.readouterr()
    return int(end.value.code or 0), printed.out, printed.err


@pytest.fixture
def three_and_two(tmp_path):
    kdp = [write_run(tmp_path / f"kdp-{i}", seed=i, accuracy=80 + 3 * i, teacher=90 + i) for i in range(3)]
    return kdp + [write_run(tmp_path / f"none-{i}", seed=i, accuracy=70 + i, teacher=None) for i in range(2)]


def test_mean_and_deviation_over_seeds(three_and_two, capsys):
    code, out, err = cdl(capsys, *three_and_two, "--json")
    assert (code, err) == (0, "")
    kdp, none = json.loads(out)
    assert (kdp["name"], kdp["seeds"]) == ("coda + kdp", [0, 1, 2])
    assert (none["name"], none["seeds"], none["teacher"]) == ("coda + none", [0, 1], None)
    for i, metric in enumerate(METRICS):
        for role, values in (("student", [80, 83, 86]), ("teacher", [90, 91, 92])):
            expected = np.array(values) + 1.7 * i
            assert kdp[role][metric]["mean"] == pytest.approx(expected.mean())
            assert kdp[role][metric]["std"] == pytest.approx(expected.std(ddof=1))
            assert [run[role][metric] for run in kdp["runs"]] == pytest.approx(list(expected))
    assert [run["path"] for run in none["runs"]] == [str(path) for path in three_and_two[3:]]


def test_the_table_has_every_number_and_fits_100_columns(three_and_two, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    code, out, _ = cdl(capsys, *three_and_two)
    assert code == 0
    assert max(map(len, out.splitlines())) <= 100
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines() if "±" in line]
    rows = [row for row in rows if row]
    assert rows == [
        ["coda + kdp", "0–2", "student", "83.0 ± 3.0", "84.7 ± 3.0", "86.4 ± 3.0", "88.1 ± 3.0"],
        ["", "", "teacher", "91.0 ± 1.0", "92.7 ± 1.0", "94.4 ± 1.0", "96.1 ± 1.0"],
        ["coda + none", "0, 1", "student", "70.5 ± 0.7", "72.2 ± 0.7", "73.9 ± 0.7", "75.6 ± 0.7"],
    ]


def test_csv_has_what_json_has(three_and_two, tmp_path, capsys):
    _, out, _ = cdl(capsys, *three_and_two, "--json", "--csv", tmp_path / "new/table.csv")
    groups = {group["name"]: group for group in json.loads(out)}
    with (tmp_path / "new/table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["runs"], row["learner"], row["seeds"]) for row in rows] == [
        ("coda + kdp", "student", "0 1 2"),
        ("coda + kdp", "teacher", "0 1 2"),
        ("coda + none", "student", "0 1"),
    ]
    for row in rows:
        for metric in METRICS:
            for part in ("mean", "std"):
                value = groups[row["runs"]][row["learner"]][metric][part]
                assert float(row[f"{metric}_{part}"]) == pytest.approx(value, abs=1e-4)
        assert len(row["paths"].split()) == len(row["seeds"].split())


def test_one_run_has_no_deviation(tmp_path, capsys):
    write_run(tmp_path / "a")
    _, out, _ = cdl(capsys, tmp_path / "a", "--json", "--csv", tmp_path / "table.csv")
    assert json.loads(out)[0]["student"]["forgetting"]["std"] is None
    assert ",," in (tmp_path / "table.csv").read_text().splitlines()[1]
    _, out, _ = cdl(capsys, tmp_path / "a")
    assert "±" not in out.split("seeds")[-1].splitlines()[3]


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"seed": 1}, ["coda + kdp"]),
        ({"seed": 1, "device": "cuda", "workers": 8, "log": "wandb"}, ["coda + kdp"]),
        ({"seed": 1, "epochs": 5}, ["coda + kdp, epochs 20", "coda + kdp, epochs 5"]),
        ({"seed": 1, "alpha": 0.25}, ["coda + kdp, alpha 0.5", "coda + kdp, alpha 0.25"]),
        ({"method": "l2p"}, ["coda + kdp", "l2p + kdp"]),
        ({"seed": 1, "student": "tiny"}, ["coda + kdp, student small", "coda + kdp, student tiny"]),
        ({"seed": 1, "done": 1}, ["coda + kdp, finished tasks 2", "coda + kdp, finished tasks 1 of 2"]),
        ({"seed": 1, "data": "photos"}, ["coda + kdp, data digits", "coda + kdp, data photos"]),
        ({"seed": 1, "weights": "other"}, ["coda + kdp, {a}", "coda + kdp, {b}"]),
        ({"seed": 0}, ["coda + kdp, {a}", "coda + kdp, {b}"]),  # the same seed twice is no second seed
    ],
)
def test_what_is_one_group_and_what_tells_groups_apart(tmp_path, changes, names):
    runs = {"a": write_run(tmp_path / "a"), "b": write_run(tmp_path / "b", **changes)}
    assert [group.name for group in group_runs(runs.values())] == [name.format(**runs) for name in names]


def test_epochs_tell_no_frozen_backbones_apart(tmp_path):
    """Nothing trains there: neither from one that was given fewer, nor from a run that trains."""
    runs = [
        write_run(tmp_path / name, seed, teacher=None, method=method, epochs=epochs)
        for name, seed, method, epochs in (("a", 0, "none", 20), ("b", 1, "none", 5), ("c", 0, "coda", 5))
    ]
    for run in runs[:2]:
        damage(run, lambda record: record["config"]["method"].update(head="slda"))
    frozen, trained = group_runs(runs)
    assert frozen.seeds == [0, 1]
    assert frozen.name == "frozen, head slda"
    assert trained.name == "coda + none, head learned"


def test_a_preset_stands_for_the_settings_it_brings():
    """Where groups differ in three of them or more; one that a user has changed makes them all worth telling."""
    paper = {"class_order": "natural", "last_batch": "drop", "key_loss_weight": 2.0, "head_start": "linear"}
    plain = {"class_order": "shuffled", "last_batch": "keep", "key_loss_weight": 1.0, "head_start": "zeros"}
    assert preset_of({**paper, "method": "l2p", "epochs": 5}) == ("paper", set(paper))
    assert preset_of(plain) == ("default", set(plain))
    assert preset_of({**paper, "key_loss_weight": 1.5}) == (None, set())
    assert preset_of({"class_order": "natural", "last_batch": "drop"}) == (None, set())


def test_a_run_named_twice_counts_once(tmp_path, monkeypatch):
    write_run(tmp_path / "a")
    monkeypatch.chdir(tmp_path)
    (group,) = group_runs([Path("a"), Path("./a"), tmp_path / "a"])
    assert group.seeds == [0]


def test_long_names_fold_and_no_number_is_cut(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    long = "vit_base_patch16_224.augreg_in21k_ft_in1k"
    write_run(tmp_path / "a", accuracy=100.0, seed=10)
    for seed in range(0, 40, 2):
        write_run(tmp_path / f"b{seed}", seed=seed, teacher=100.0 - seed, accuracy=seed, student=long, data="/x/" * 30)
    _, out, _ = cdl(capsys, *sorted(tmp_path.iterdir()))
    assert max(map(len, out.splitlines())) <= 100
    assert "…" not in out
    assert "19.0 ± 11.8" in out
    assert "".join(long) in "".join(line.split("│")[1].strip() for line in out.splitlines() if line.count("│") > 2)


def damage(run: Path, change) -> None:
    record = json.loads((run / "run.json").read_text())
    change(record)
    (run / "run.json").write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda r: r.update(format_version=9),
            f"has format version 9, this cdl-deploy {__version__} reads up to 2: upgrade cdl-deploy",
        ),
        (lambda r: r.update(tasks=[]), "has no finished task yet: finish it with cdl train"),
        (lambda r: r.pop("config"), "run.json is damaged: 'config' is missing"),
        (lambda r: r["student"].pop("forgetting"), "run.json is damaged: 'forgetting' is missing"),
        (lambda r: r["config"]["optim"].update(seed="x"), "run.json is damaged: "),
        (lambda r: r.pop("format_version"), "is no run record: it has no format_version"),
    ],
)
def test_what_cannot_be_compared_is_one_line(tmp_path, capsys, change, message):
    good, bad = write_run(tmp_path / "good"), write_run(tmp_path / "bad")
    damage(bad, change)
    code, out, err = cdl(capsys, good, bad, "--csv", tmp_path / "table.csv")
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err
    assert str(bad) in err
    assert not (tmp_path / "table.csv").exists()


def test_what_is_no_run(tmp_path, capsys):
    code, _, err = cdl(capsys, tmp_path / "nowhere")
    assert code == 2
    assert f"{tmp_path / 'nowhere'} is no run directory: it does not exist; make one with cdl train" in err
    (tmp_path / "nowhere").mkdir()
    _, _, err = cdl(capsys, tmp_path / "nowhere")
    assert f"{tmp_path / 'nowhere'} is no run directory: it has no run.json; make one with cdl train" in err
