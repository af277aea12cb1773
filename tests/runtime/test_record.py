"""The record of a run: read as it was written, migrated from format 1, and one line for whatever is wrong with it."""

from __future__ import annotations

import hashlib
import json
import os

import pytest

from cdl_deploy.errors import RunError
from cdl_deploy.run.migrations import first_config
from cdl_deploy.run.record import LARGEST, parse_record, read_json, read_record, write_record
from tests.records import METRICS, run_json

FORMAT_1_METHOD = {
    "method": "dualprompt", "distill": "kdp", "prompt_rows": 7, "pull_weight": 2, "shared_prompt_rows": 2,
    "kd_prompt_rows": 4, "alpha": 0.25,
}  # fmt: skip
"""As version 0.1.0 wrote it, with the whole number that a file may have had for a number."""


@pytest.fixture
def write(tmp_path):
    def written(values):
        (tmp_path / "run.json").write_text(values if isinstance(values, str) else json.dumps(values))
        return tmp_path

    return written


def format_1(**changes):
    config = {"data": {"data": "digits"}, "models": {}, "method": FORMAT_1_METHOD, "optim": {"seed": 3, "lr": 1}}
    return run_json(format_version=1, config=config, **changes)


def test_a_record_is_written_as_it_was_read(write, tmp_path):
    """But for the producer, and the metrics: they follow from the matrix."""
    values = run_json()
    record = read_record(write(values))
    (tmp_path / "again").mkdir()
    write_record(tmp_path / "again", record)
    again = json.loads((tmp_path / "again/run.json").read_text())
    for role in ("student", "teacher"):
        assert again[role].pop("accuracy_matrix") == values[role]["accuracy_matrix"]
        assert again[role].keys() == set(METRICS)
    for name in ("student", "teacher", "producer"):
        values.pop(name), again.pop(name)
    assert again == values
    assert read_record(tmp_path / "again") == record


def test_what_it_says_are_attributes(write):
    record = read_record(write(run_json()))
    assert (record.config.optim.seed, record.config.method.method, record.config.data.data) == (0, "coda", "digits")
    assert (record.tasks[1].classes, record.tasks[1].optim.batch_size) == (["2", "3"], 4)
    assert record.backbones["teacher"].mean == (0.5, 0.5, 0.5)
    assert (record.preprocessing.size, record.plans[0].classes) == (32, ("0", "1"))
    assert (record.finished, record.status, record.classes) == (True, "finished", ["0", "1", "2", "3"])
    assert record.matrices["student"] == [[80.0], [80.0, 80.0]]
    results = record.results("student")
    assert results is not None
    assert results.forgetting == 80 + 1.7 * 2, "as the file says, which another version may have counted otherwise"
    assert read_record(write(run_json(has_teacher=False))).results("teacher") is None


def test_format_1_is_read_by_renaming(write):
    record = read_record(write(format_1()))
    method = record.config.method
    assert (method.prompt_length, method.key_loss_weight, method.shared_prompt_length) == (7, 2, 2)
    assert (method.kd_prompt_length, method.alpha, method.pool_size) == (4, 0.25, 30)
    assert record.to_dict()["format_version"] == 2
    assert record.to_dict()["config"]["method"]["prompt_length"] == 7
    assert "prompt_rows" not in record.to_dict()["config"]["method"]


def test_classes_of_earlier_versions_are_spelt_as_folders_are_now(write):
    """0.1.0 took names as the file system spelt them, which is decomposed on some."""
    decomposed = "cafe\u0301"
    values = json.loads(json.dumps(run_json(forgotten=["2"])).replace('"2"', json.dumps(decomposed)))
    record = read_record(write(values))
    assert (record.classes[2], record.plans[1].classes[0], record.forgotten) == ("caf\u00e9",) * 2 + (["caf\u00e9"],)
    both = json.loads(json.dumps(values).replace('"3"', '"caf\u00e9"'))
    assert read_record(write(both)).classes[2:] == [decomposed, "caf\u00e9"], "which of them would it be?"


def test_a_fingerprint_does_not_depend_on_the_version_that_reads_the_record(write):
    """Options that were not recorded stay out, whole numbers stay whole, names are the first ones."""
    values = format_1()
    record = read_record(write(values))
    stored = [first_config(record.recorded_config()), record.recorded_backbones()]
    expected = [values["config"], values["backbones"]]
    assert [hashlib.sha256(json.dumps(it, sort_keys=True).encode()).hexdigest() for it in (stored, expected)] == [
        hashlib.sha256(json.dumps(expected, sort_keys=True).encode()).hexdigest()
    ] * 2
    assert parse_record(record.to_dict(), write("") / "run.json") == record


def test_a_run_of_a_plug_in_that_is_not_installed_can_be_looked_at(write):
    config = {"data": {}, "models": {}, "method": {"method": "soft", "softness": 2.5}, "optim": {}}
    record = read_record(write(run_json(config=config)))
    assert record.config.method.method == "soft"
    assert record.config.method.value("softness") == 2.5
    assert record.to_dict()["config"]["method"] == {"method": "soft", "softness": 2.5}


def without(*path):
    def change(values):
        for name in path[:-1]:
            values = values[name]
        values.pop(path[-1])

    return change


def with_(value, *path):
    def change(values):
        for name in path[:-1]:
            values = values[name]
        values[path[-1]] = value

    return change


DAMAGED = [
    (without("preprocessing"), "is damaged: 'preprocessing' is missing"),
    (without("preprocessing", "size"), "is damaged: 'size' is missing in preprocessing"),
    (without("backbones", "student", "sha256"), "is damaged: 'sha256' is missing in backbones.student"),
    (without("tasks", 1, "classes"), "is damaged: 'classes' is missing in tasks[1]"),
    (without("tasks", 0, "optim", "lr"), "is damaged: 'lr' is missing in tasks[0].optim"),
    (without("plans", 0, "data"), "is damaged: 'data' is missing in plans[0]"),
    (without("student", "accuracy_matrix"), "is damaged: 'accuracy_matrix' is missing in student"),
    (with_("0", "format_version"), "is no run record: it has no format_version"),
    (with_(True, "format_version"), "is no run record: it has no format_version"),
    (with_(3, "format_version"), "has format version 3, this cdl-deploy"),
    (with_([], "config"), "is damaged: config is [], expected an object"),
    (with_([], "config", "optim"), "is damaged: config.optim is [], expected an object"),
    (with_("7", "config", "optim", "seed"), "is damaged: config.optim.seed is 7, expected a whole number"),
    (with_(True, "config", "optim", "lr"), "is damaged: config.optim.lr is True, expected a number"),
    (with_(0, "config", "optim", "epochs"), "is damaged: --epochs is 0, expected at least 1"),
    (with_(1, "config", "optim", "epoch"), "is damaged: configuration section 'optim' has the unknown key 'epoch'"),
    (with_({}, "config", "optimm"), "is damaged: configuration has the unknown key 'optimm'"),
    (with_(3, "config", "method", "softness"), "is damaged: configuration section 'method' has the unknown key"),
    (with_([0.5], "backbones", "student", "mean"), "is damaged: backbones.student.mean is [0.5], expected a list of 3"),
    (with_({}, "backbones", "pupil"), "is damaged: a name in backbones is pupil, expected one of teacher, student"),
    (with_("x", "tasks"), "is damaged: tasks is x, expected a list, each an object"),
    (with_(1.5, "tasks", 0, "number"), "is damaged: tasks[0].number is 1.5, expected a whole number"),
    (with_([1], "tasks", 0, "classes"), "is damaged: tasks[0].classes[0] is 1, expected a string"),
    (with_({"lr": "x"}, "plans", 1, "optim"), "is damaged: plans[1].optim.lr is x, expected a number"),
    (with_({"lrr": 1}, "plans", 1, "optim"), "is damaged: configuration section 'optim' has the unknown key 'lrr'"),
    (without("plans", 1), "is damaged: it has 2 tasks, but 1 plans"),
    (with_([[1.0]], "student", "accuracy_matrix"), "is damaged: student.accuracy_matrix is no triangle of 2 tasks"),
    (with_([[1.0], [1.0]], "student", "accuracy_matrix"), "is damaged: student.accuracy_matrix is no triangle"),
    (
        with_(1 << 64, "student", "forgetting"),
        "is damaged: student.forgetting is 18446744073709551616, expected a num",
    ),
    (with_("no", "skipped_images"), "is damaged: skipped_images is no, expected a list, each a string"),
]


@pytest.mark.parametrize(("change", "message"), DAMAGED)
def test_a_damaged_record_is_one_line_that_names_file_and_key(write, change, message):
    values = run_json()
    change(values)
    root = write(values)
    with pytest.raises(RunError) as raised:
        read_record(root)
    assert f"{root / 'run.json'} {message}" in str(raised.value)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 500


@pytest.mark.parametrize("text", ["", "{", "\x00", "[" * 100_000, '{"a":' * 100_000, "1" * 5000, "[]", "null", '"x"'])
def test_what_is_no_record_is_one_line(write, text):
    root = write(text)
    with pytest.raises(RunError, match=r"run\.json") as raised:
        read_record(root)
    assert "\n" not in str(raised.value)


def test_every_value_may_be_of_any_other_type(write):
    """Each entry of a whole record replaced by each kind of JSON value: read, or one line."""

    def places(value, path=()):
        yield path
        inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for name, item in inside:
            yield from places(item, (*path, name))

    root, refused, lines = write(""), 0, set()
    for path in list(places(run_json()))[1:]:
        for value in (None, True, -1, 1.5, "x", [], {}, [[]], [{}]):
            values = run_json()
            with_(value, *path)(values)
            try:
                parse_record(values, root / "run.json")
            except RunError as error:
                refused += 1
                lines.add(str(error).count("\n"))
    assert refused > 500
    assert lines == {0}


def test_what_is_no_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "run.json")
    with pytest.raises(RunError, match=r"cannot read .*run\.json: it is a pipe, expected a regular file"):
        read_record(tmp_path)
    with (tmp_path / "large").open("wb") as file:
        file.truncate(LARGEST + 1)
    with pytest.raises(RunError, match=r"has 134,217,729 bytes, expected at most 134,217,728"):
        read_json(tmp_path / "large", "")
