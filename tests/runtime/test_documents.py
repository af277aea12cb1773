"""JSON, YAML and files of others: what is too deep, too much or endless is refused before it costs anything."""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdl_deploy.documents import MAX_DEPTH, MAX_NODES, parse_json, parse_yaml
from cdl_deploy.errors import DataError, OptionError, RunError
from cdl_deploy.regular_file import open_regular, read_regular
from cdl_deploy.run.config_file import read_config_file
from cdl_deploy.run.record import read_record
from cdl_deploy.typed_json import short

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(JSON)
def test_json_is_what_python_reads(value):
    assert parse_json(json.dumps(value)) == value
    assert parse_json(json.dumps(value, ensure_ascii=False).encode()) == value


@pytest.mark.parametrize("shape", ["[{}]", '{{"a": {}}}', '[1, "[[[", {}]'])
def test_json_is_nested_up_to_a_depth(shape):
    def nested(depth: int) -> str:
        text = "1"
        for _ in range(depth):
            text = shape.format(text)
        return text

    parse_json(nested(MAX_DEPTH))
    with pytest.raises(ValueError, match=f"nested deeper than {MAX_DEPTH} levels"):
        parse_json(nested(MAX_DEPTH + 1))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("NaN", "NaN is not JSON"),
        ("[-Infinity]", "-Infinity is not JSON"),
        ("9" * 101, "a whole number of 101 digits, expected at most 100"),
        ('{"a"', "Expecting"),
        (b"\xff\xfe\xfa", "codec can't decode"),
    ],
)
def test_what_is_no_json(text, why):
    with pytest.raises(ValueError, match=why):
        parse_json(text)


def test_brackets_in_a_string_without_an_end_cost_no_more_than_others():
    began = time.process_time()
    with pytest.raises(ValueError, match="nested"):
        parse_json("[" * (MAX_DEPTH + 1) + '"' + '\\"' * 200_000)
    with pytest.raises(ValueError, match="Unterminated"):
        parse_json("[[]," * (MAX_DEPTH - 1) + '"' + '[\\"' * 200_000)
    assert time.process_time() - began < 2


def aliases(levels: int, each: int) -> str:
    """Each line is a list that names the one before `each` times: the last stands for each ** levels values."""
    lines = ["a0: &a0 [x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * each)}]" for i in range(1, levels + 1)]
    return "\n".join(lines)


def test_yaml_aliases_count_as_what_they_stand_for(tmp_path):
    assert parse_yaml("a: &a [1, 2]\nb: *a") == {"a": [1, 2], "b": [1, 2]}
    assert parse_yaml("a: &a 5\nb: *a") == {"a": 5, "b": 5}
    assert len(parse_yaml(aliases(2, 9))) == 3
    with pytest.raises(ValueError, match=f"more than {MAX_NODES:,} values"):
        parse_yaml(aliases(6, 11))
    with pytest.raises(ValueError, match=f"nested deeper than {MAX_DEPTH} levels"):
        parse_yaml(aliases(MAX_DEPTH, 1))
    with pytest.raises(ValueError, match="alias 'a' stands for what it is in"):
        parse_yaml("&a [*a]")
    for depth, fits in ((MAX_DEPTH, True), (MAX_DEPTH + 1, False)):
        text = "[" * depth + "]" * depth
        if fits:
            parse_yaml(text)
        else:
            with pytest.raises(ValueError, match="nested deeper"):
                parse_yaml(text)


def test_a_config_of_aliases_is_one_line(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("optim: &a {epochs: &b [1, 1, 1, 1, 1, 1, 1, 1], lr: [*b, *b, *b, *b, *b, *b, *b, *b, *b, *b]}")
    with pytest.raises(OptionError) as caught:
        read_config_file(file)
    assert str(caught.value).startswith(f"--config {file}: optim.epochs is [1, 1, 1, 1, 1, 1, 1, 1], expected a whole")
    file.write_text(aliases(6, 11))
    with pytest.raises(OptionError, match="is not YAML: more than 1,000,000 values"):
        read_config_file(file)
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(OptionError, match=f"cannot read --config {file}: it is a pipe, expected a regular file"):
        read_config_file(file)
    file.unlink()
    file.write_bytes(b"#" * (1 << 20) + b"\n")
    with pytest.raises(OptionError, match="it has 1,048,577 bytes, expected at most 1,048,576"):
        read_config_file(file)


def test_a_task_file_is_read_with_the_same_care(tmp_path):
    from cdl_deploy.training.data.tasks import read_task_file

    file = tmp_path / "t.yaml"
    file.write_text(aliases(6, 11))
    with pytest.raises(DataError, match="is not YAML: more than"):
        read_task_file(file, ("a", "b"))
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(DataError, match="it is a pipe"):
        read_task_file(file, ("a", "b"))


def test_values_are_quoted_short():
    shared = [[["x"] * 1000] * 1000] * 1000  # a gigabyte, written out
    began = time.process_time()
    assert len(short(shared)) <= 160
    assert len(short("x" * 10_000_000)) <= 160
    assert short(10**5000) == "a number of thousands of digits" or len(short(10**5000)) <= 160
    assert short("a\x1b[2J\nb") == "a\\x1b[2J b"
    assert time.process_time() - began < 0.5


def test_only_regular_files_are_opened(tmp_path):
    file, pipe, link, unix = (tmp_path / name for name in ("file", "pipe", "link", "socket"))
    file.write_bytes(b"12345")
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(unix))
    assert read_regular(file, 5) == b"12345"
    with pytest.raises(OSError, match="it has 5 bytes, expected at most 4"):
        read_regular(file, 4)
    for path, what in (
        (pipe, "it is a pipe, expected a regular file"),
        (link, "it is a pipe"),
        (unix, "it is a socket"),
        (Path("/dev/zero"), "it is a device"),
        (tmp_path, "Is a directory"),
        (tmp_path / "none", "No such file"),
    ):
        with pytest.raises(OSError, match=what):
            open_regular(path)
    server.close()


def test_a_record_nested_deep_is_one_line(tmp_path):
    (tmp_path / "run.json").write_text("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1))
    with pytest.raises(RunError, match=rf"cannot read {tmp_path}/run.json: nested deeper than {MAX_DEPTH} levels"):
        read_record(tmp_path)
