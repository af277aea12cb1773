"""Rows in a file: whole or to be continued. An uninterrupted run is the oracle for one cut at any byte."""

from __future__ import annotations

import csv
import json
import os
import resource
import subprocess
import sys
from contextlib import closing, contextmanager
from pathlib import Path

import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from cdl_deploy import Classifier
from cdl_deploy.errors import DataError, OptionError
from cdl_deploy.rows.file import RowFile
from cdl_deploy.rows.formats import row_format
from cdl_deploy.runtime.classifier import Prediction
from cdl_deploy.runtime.predict import Row, predict_rows

PROJECT = Path(__file__).resolve().parents[2]
TOP_K = 2
KINDS = ("jsonl", "csv", "parquet")


@pytest.fixture
def classifier(model_path):
    return Classifier(model_path, threads=1)


@pytest.fixture
def paths(photos, tmp_path):
    """Good and bad ones; a name with a line break, a quote and a comma, and one that is no UTF-8."""
    odd = tmp_path / 'photos/a "b",\nc.png'
    odd.write_bytes(photos["red"].read_bytes())
    bad = tmp_path / "photos/bad,\n.png"
    bad.write_text("no image")
    bytes_name = os.fsdecode(bytes(tmp_path) + b"/photos/caf\xe9.png")
    Path(bytes_name).write_bytes(photos["blue"].read_bytes())
    return [str(photos["green"]), str(odd), str(bad), str(photos["blue"]), bytes_name, str(photos["red"]), str(odd)]


def write(path, classifier, paths, kind="jsonl", resume=False, stop=None, top_k=TOP_K):
    """Rows of `paths` into `path`; interrupted after `stop` rows."""
    # Closed here: its threads are waited for now, and not whenever a traceback that holds it is collected.
    with (
        RowFile(path, kind, top_k, resume) as file,
        closing(predict_rows(classifier, file.remaining(paths, classifier), 2, top_k, workers=2)) as rows,
    ):
        for count, row in enumerate(rows):
            if count == stop:
                raise KeyboardInterrupt
            file.write(row)
    return file


def content(path):
    """Bytes; of Parquet, which may be packed otherwise, the rows."""
    return pyarrow.parquet.read_table(path).to_pylist() if path.suffix == ".parquet" else path.read_bytes()


@pytest.mark.parametrize("kind", KINDS)
def test_interrupted_after_any_row(classifier, paths, tmp_path, kind):
    whole, file = tmp_path / f"whole.{kind}", tmp_path / f"rows.{kind}"
    assert write(whole, classifier, paths, kind).failed == 1
    for stop in range(len(paths)):
        with pytest.raises(KeyboardInterrupt):
            write(file, classifier, paths, kind, stop=stop)
        assert not file.exists()
        assert file.with_name(f"rows.{kind}.part").exists() == (stop > 0)
        done = write(file, classifier, paths, kind, resume=True)
        assert (done.done, done.failed) == (len(paths), 1)
        assert content(file) == content(whole)
        file.unlink()
    assert sorted(path.name for path in tmp_path.iterdir() if ".part" in path.name) == []


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
@pytest.mark.parametrize("name", ["rows", "rows.part"])
def test_cut_at_any_byte(classifier, paths, tmp_path, kind, name):
    """As SIGKILL in the middle of a write leaves it; also a file under its own name, cut short by something else."""
    whole, file = tmp_path / f"whole.{kind}", tmp_path / f"rows.{kind}"
    write(whole, classifier, paths, kind)
    data = whole.read_bytes()
    for cut in range(0, len(data) + 1, 13):
        file.unlink(missing_ok=True)
        (file if name == "rows" else file.with_name(file.name + ".part")).write_bytes(data[:cut])
        write(file, classifier, paths, kind, resume=True)
        assert file.read_bytes() == data, cut


@pytest.mark.parametrize("kind", KINDS)
def test_a_complete_file_is_continued_with_new_images(classifier, photos, tmp_path, kind):
    paths = [str(path) for path in photos.values()]
    whole, file = tmp_path / f"whole.{kind}", tmp_path / f"rows.{kind}"
    write(whole, classifier, paths, kind)
    write(file, classifier, paths[:1], kind)
    for count in (1, 3, 3):
        write(file, classifier, paths[:count], kind, resume=True)
    assert content(file) == content(whole)
    write(file, classifier, paths[:2], kind)  # without --resume: anew
    write(whole, classifier, paths[:2], kind)
    assert content(file) == content(whole)


def test_the_three_kinds_say_the_same(classifier, paths, tmp_path):
    paths = [path for path in paths if path.isprintable() or "\n" in path]  # Parquet has no bytes in its texts
    for kind in KINDS:
        write(tmp_path / f"rows.{kind}", classifier, paths, kind)
    lines = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    with (tmp_path / "rows.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    columns = pyarrow.parquet.read_table(tmp_path / "rows.parquet").to_pylist()
    for line, row, record in zip(lines, table, columns, strict=True):
        assert line["path"] == row["path"] == record["path"]
        assert line.get("error", "") == row["error"] == (record["error"] or "")
        assert {key: value for key, value in record.items() if value is not None} == line
        if "error" not in line:
            best, second = line["top_k"]
            assert (row["label"], row["task"], row["index"]) == (line["label"], str(line["task"]), str(line["index"]))
            assert [(row["label"], float(row["probability"])), (row["label_2"], float(row["probability_2"]))] == [
                (best["label"], best["probability"]),
                (second["label"], second["probability"]),
            ]


texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=12)
shares = st.integers(0, 10**6).map(lambda n: n / 10**6)
predictions = st.builds(
    lambda pairs, task, index: Prediction(pairs[0][0], pairs[0][1], tuple(pairs), task, index),
    st.lists(st.tuples(texts, shares), min_size=TOP_K, max_size=TOP_K),
    st.integers(1, 9),
    st.integers(0, 99),
)
any_rows = st.lists(st.builds(Row, texts, predictions, st.none()) | st.builds(Row, texts, st.none(), texts), max_size=5)


@given(rows=any_rows, kind=st.sampled_from(["jsonl", "csv"]), cut=st.floats(0, 1))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_rows_come_back_up_to_the_cut(tmp_path, rows, kind, cut):
    """Whatever the texts: what is read of a file cut anywhere are its first rows, and where the last of them ends."""
    wanted = row_format(kind, TOP_K)
    parts = [wanted.header(), *map(wanted.encode, rows)]
    data = b"".join(parts)
    (tmp_path / "rows").write_bytes(data[: int(cut * len(data))])
    with (tmp_path / "rows").open("rb") as file:
        stored = list(wanted.decode(file))
    ends = [sum(map(len, parts[: i + 2])) for i in range(len(rows))]
    count = sum(end <= int(cut * len(data)) for end in ends)
    assert [item.row for item in stored] == rows[:count]
    assert [item.end for item in stored] == ends[:count]


def test_what_cannot_be_continued(classifier, photos, make_model, tiny, tmp_path):
    paths = [str(path) for path in photos.values()]
    file, part = tmp_path / "rows.csv", tmp_path / "rows.csv.part"
    with pytest.raises(KeyboardInterrupt):
        write(file, classifier, paths, "csv", stop=2)
    before = part.read_bytes()

    def refusal(kind=DataError, **changes):
        with pytest.raises(kind) as caught:
            write(**({"path": file, "classifier": classifier, "paths": paths, "kind": "csv", "resume": True} | changes))
        assert part.read_bytes() == before
        return str(caught.value)

    assert refusal(OptionError, resume=False) == (
        f"{part} holds the rows of an interrupted run: add --resume to continue it, or delete it"
    )
    assert refusal(paths=paths[1:]) == (
        f"{part}: row 1 is {paths[0]}, but image 1 is now {paths[1]}: give the same images, or start anew"
    )
    assert refusal(paths=paths[:1]).endswith(
        f"has more rows than there are images now (row 2 is {paths[1]}): give the same ones"
    )
    assert "its columns are path,label,probability,task,index,error,label_2,probability_2, expected" in refusal(top_k=1)
    other = make_model("other.onnx", classes=("red", "blue", "green", "x"), tasks=(("red", "blue"), ("green", "x")))
    assert "row 2 names class 1 'green', which" in refusal(classifier=Classifier(other))
    Image.new("RGB", (9, 9), tiny.colours["blue"]).save(paths[0])
    assert f"its row for {paths[0]} says red 0.9" in (message := refusal())
    assert message.endswith("give the same model and images, or start anew")
    Path(paths[0]).unlink()  # it cannot be compared any more; its row stays
    write(file, classifier, paths, "csv", resume=True)


def test_a_refused_file_keeps_its_name(classifier, photos, tmp_path):
    for kind in KINDS:
        file = tmp_path / f"rows.{kind}"
        write(file, classifier, [str(photos["red"])], kind)
        before = file.read_bytes()
        with pytest.raises(DataError, match=r"row 1 is .*, but image 1 is now"):
            write(file, classifier, [str(photos["blue"])], kind, resume=True)
        assert file.read_bytes() == before
    assert not list(tmp_path.glob("*.part"))
    (tmp_path / "rows.parquet").write_bytes(before[:100])
    with pytest.raises(DataError, match=r"rows\.parquet: not a whole Parquet file"):
        write(tmp_path / "rows.parquet", classifier, [str(photos["red"])], "parquet", resume=True)
    for line in (b"{}\n", b"[1, 2]\n", b"\x00\x00\n", b'{"path": 3}\n'):
        (tmp_path / "odd.jsonl").write_bytes(line)
        with pytest.raises(DataError, match=r"odd\.jsonl: line 1 is no row of cdl predict: "):
            write(tmp_path / "odd.jsonl", classifier, [str(photos["red"])], resume=True)


def test_one_writer_at_a_time(tmp_path):
    message = r"another program is writing .*rows\.jsonl\.part: choose another --output"
    with RowFile(tmp_path / "rows.jsonl", "jsonl", TOP_K), pytest.raises(OptionError, match=message):
        RowFile(tmp_path / "rows.jsonl", "jsonl", TOP_K)


def test_a_writer_at_work_is_not_called_interrupted(classifier, paths, tmp_path):
    with RowFile(tmp_path / "rows.jsonl", "jsonl", TOP_K) as first:
        list(first.remaining([], classifier))
        first.write(next(predict_rows(classifier, paths[:1])))
        first.flush()
        with pytest.raises(OptionError, match="another program is writing"):
            RowFile(tmp_path / "rows.jsonl", "jsonl", TOP_K)


def test_devices_are_written_as_they_are(classifier, paths):
    assert write(Path("/dev/null"), classifier, paths).done == len(paths)
    assert not Path("/dev/null.part").exists()
    with pytest.raises(OptionError, match="--output /dev/full: No space left on device"):
        write(Path("/dev/full"), classifier, paths)
    with pytest.raises(OptionError, match="/dev/null is a device or a folder, so it cannot be continued: name a file"):
        write(Path("/dev/null"), classifier, paths, resume=True)


@contextmanager
def disk_with(size):
    """The system's limit on the size of a file ends a write as a full disk does, in the middle of a row."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_promises_no_file_that_is_gone(classifier, paths, tmp_path):
    with disk_with(0), pytest.raises(OptionError) as caught:
        write(tmp_path / "rows.jsonl", classifier, paths)
    assert str(caught.value) == f"--output {tmp_path / 'rows.jsonl'}: File too large"
    assert not list(tmp_path.glob("rows*"))


@pytest.mark.parametrize("kind", KINDS)
def test_full_disk(classifier, paths, tmp_path, monkeypatch, kind):
    monkeypatch.setattr("cdl_deploy.rows.file.FLUSH_BYTES", 500)
    file, part = tmp_path / f"rows.{kind}", tmp_path / f"rows.{kind}.part"
    with disk_with(1234), pytest.raises(OptionError) as caught:
        write(file, classifier, paths * 5, kind)
    left = f"the rows so far are in {part}, and --resume continues them"
    assert str(caught.value) == f"--output {file}: File too large; {left}"
    assert part.stat().st_size == 1234
    assert not file.exists()
    write(file, classifier, paths * 5, kind, resume=True)
    write(tmp_path / f"whole.{kind}", classifier, paths * 5, kind)
    assert content(file) == content(tmp_path / f"whole.{kind}")


def test_killed_at_random_moments(model_path, paths, tmp_path):
    """In a process that forks, since this one has threads. By hand, the same program makes hundreds of runs."""
    command = [
        sys.executable,
        "-m",
        "tests.runtime.killed_predictions",
        model_path,
        tmp_path / "photos",
        "--runs",
        "16",
    ]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, cwd=PROJECT)
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout)
    assert told["kills"] >= 14  # of 48 attempts: those that no moment, which may come after the end, goes before
    assert (told["differing"], told["leftovers"]) == (0, [])


@given(row=any_rows.filter(bool).map(lambda rows: rows[0]))
def test_a_record_and_back(row):
    from cdl_deploy.rows.parquet import SCHEMA
    from cdl_deploy.runtime.columns import COLUMNS, from_record, to_record

    record = to_record(row)
    assert from_record(record) == from_record(json.loads(json.dumps(record))) == row
    assert list(record) == [column.name for column in COLUMNS] == SCHEMA.names
    assert row_format("csv", 1).header().decode().strip().split(",") == SCHEMA.names[:-1]
