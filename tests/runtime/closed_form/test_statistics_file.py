"""The file gives back every bit, is what the safetensors package reads and writes, and whatever is wrong is said."""

from __future__ import annotations

import contextlib
import json
import re

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from cdl_deploy.closed_form.errors import StatisticsError
from cdl_deploy.closed_form.features import FeatureMap, RandomProjection
from cdl_deploy.closed_form.head_rule import HeadRule, solve_head
from cdl_deploy.closed_form.history import History
from cdl_deploy.closed_form.safetensors_file import decode
from cdl_deploy.closed_form.statistics import gather
from cdl_deploy.closed_form.statistics_file import KEY, StoredStatistics, read_statistics, write_statistics
from tests.runtime.closed_form.worlds import assert_same, classes, draw

MODEL = "ab" * 32


def example(teacher=False, keep=1):
    features, labels = draw(0, 4, 6, 50)
    outputs = np.random.default_rng(0).normal(size=(50, 4)) if teacher else None
    names = ("grün ✓", "a/b", *classes(2))

    def part(rows):
        return gather(features[rows], labels[rows], names, outputs[rows] if teacher else None)

    history = History(part(slice(0, 20)), keep=keep).add(part(slice(20, 40))).add(part(slice(40, 50)))
    features_map = FeatureMap(("class", "kd"), normalise=True, projection=RandomProjection(6, 2**53 - 1))
    return StoredStatistics(history, features_map, HeadRule("ridge", penalty=0.1), MODEL)


@pytest.mark.parametrize("teacher", [False, True])
@pytest.mark.parametrize("keep", [0, 1, 5])
def test_every_bit_comes_back(tmp_path, teacher, keep):
    stored, path = example(teacher, keep), tmp_path / "a.safetensors"
    digest = write_statistics(path, stored)
    back = read_statistics(path, MODEL)
    assert (back.features, back.rule, back.model, back.history.keep) == (stored.features, stored.rule, MODEL, keep)
    assert len(back.history.additions) == min(keep, 2)
    assert_same(back.history.total, stored.history.total)
    assert_same(back.history.base, stored.history.base)
    if keep:
        assert_same(back.history.undo().total, stored.history.undo().total)
    assert write_statistics(tmp_path / "b.safetensors", back) == digest
    assert [item.name for item in tmp_path.iterdir() if item.name.startswith(".")] == []


def test_half_the_size(tmp_path):
    stored, path = example(), tmp_path / "a.safetensors"
    write_statistics(path, stored, single=True)
    back = read_statistics(path)
    assert_same(back.history.total, stored.history.total, rtol=1e-6)
    a, b = (solve_head(item.history.total, HeadRule(), calibrate=False).layer for item in (stored, back))
    np.testing.assert_allclose(a.weight, b.weight, rtol=1e-3, atol=1e-4)


def test_the_size_of_a_small_student(tmp_path):
    features, labels = draw(1, 100, 384, 400)
    stored = StoredStatistics(History(gather(features, labels, classes(100))), FeatureMap(), HeadRule(), MODEL)
    sizes = []
    for single in (False, True):
        write_statistics(tmp_path / "a", stored, single)
        sizes.append((tmp_path / "a").stat().st_size)
    assert sizes[0] < 910_000
    assert sizes[1] < 460_000


def test_the_safetensors_package_reads_it(tmp_path):
    path = tmp_path / "a.safetensors"
    write_statistics(path, example(teacher=True))
    arrays = load_file(path)
    own, metadata, _ = decode(path.read_bytes())
    assert arrays.keys() == own.keys()
    for name, array in arrays.items():
        assert array.dtype == own[name].dtype
        np.testing.assert_array_equal(array, own[name])
    assert json.loads(metadata[KEY])["model"] == MODEL


def test_it_reads_what_the_safetensors_package_writes(tmp_path):
    path, again = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    write_statistics(path, example())
    arrays, metadata, _ = decode(path.read_bytes())
    save_file({name: array.copy() for name, array in arrays.items()}, again, metadata)
    own, _, _ = decode(again.read_bytes())
    for name, array in own.items():
        np.testing.assert_array_equal(array, arrays[name])


def refused(path, model=None):
    with pytest.raises(StatisticsError) as caught:
        read_statistics(path, model)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message.replace(str(path), "FILE")


def rewritten(path, change):
    """The file with its metadata changed by `change`."""
    content = path.read_bytes()
    count = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + count])
    values = json.loads(header["__metadata__"][KEY])
    change(header, values)
    if "__metadata__" in header:
        header["__metadata__"][KEY] = json.dumps(values)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + count :])


def test_another_model(tmp_path):
    path = tmp_path / "a.safetensors"
    write_statistics(path, example())
    assert refused(path, "cd" * 32) == (
        "FILE holds statistics of model abababababab, expected those of cdcdcdcdcdcd: use the file that was exported "
        "with this model, or gather the statistics anew"
    )


def test_no_file(tmp_path):
    assert refused(tmp_path / "x") == "FILE: No such file or directory; expected a file of statistics"
    assert "expected a file of statistics" in refused(tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04" + b"x" * 50, b"\x89PNG\r\n\x1a\n" * 9, b"\x10" + b"\0" * 7 + b"{" * 40]
)
def test_another_kind_of_file(tmp_path, content):
    path = tmp_path / "a"
    path.write_bytes(content)
    assert refused(path).startswith("FILE holds no statistics that can be used: it is no safetensors file")


def test_other_safetensors(tmp_path):
    path = tmp_path / "a"
    save_file({"weight": np.ones(3)}, path)
    assert refused(path) == (
        "FILE holds no statistics that can be used: its metadata have no cdl.statistics; get it again from where it "
        "was exported, or gather the statistics anew"
    )


def test_every_truncation_and_every_flipped_byte(tmp_path):
    path = tmp_path / "a"
    write_statistics(path, example())
    content = path.read_bytes()
    for length in range(0, len(content), 37):
        path.write_bytes(content[:length])
        refused(path)
    path.write_bytes(content + b"\0")
    assert "the file is not complete, or not as it was written" in refused(path)
    count = int.from_bytes(content[:8], "little")
    for place in range(8 + count, len(content), 23):
        path.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        assert "its arrays do not fit their digest: the file is damaged" in refused(path)


def test_damage_in_the_header_never_escapes_as_another_error(tmp_path):
    path = tmp_path / "a"
    write_statistics(path, example())
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    for place in rng.integers(0, 8 + int.from_bytes(content[:8], "little"), 300):
        path.write_bytes(content[:place] + bytes([rng.integers(256)]) + content[place + 1 :])
        with contextlib.suppress(StatisticsError):
            read_statistics(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h, v: v.update(format_version=2), r"FILE has statistics of format 2, this cdl-deploy .* reads up to 1"),
        (lambda h, v: v.update(format_version=0), "its format is 0"),
        (lambda h, v: v.update(dimension=5), r"array 'base.scatter' has shape \[21\], expected shape \[15\]"),
        (lambda h, v: v.update(dimension=1 << 40), "array 'base.scatter' has shape"),
        (lambda h, v: v.update(parts=[]), "of 0 parts"),
        (lambda h, v: v.update(keep=0), "1 additions are kept apart, expected at most 0"),
        (lambda h, v: v.pop("model"), "cdl.statistics.model is missing; get it again"),
        (lambda h, v: v["rule"].update(kind="mlp"), "head is 'mlp', expected slda or ridge or ncm"),
        (lambda h, v: v["features"].update(parts=["cls"]), "the features are 'cls', expected some of"),
        (lambda h, v: v["parts"][0].update(classes=["a"] * 4), "base names a class twice"),
        (
            lambda h, v: v["parts"][0].update(classes=["a"]),
            r"array 'base.counts' has shape \[4\], expected shape \[1\]",
        ),
        (
            lambda h, v: v["parts"][0].update(noise_images=3),
            "base.counts are not numbers of images, at most 3 together",
        ),
        (lambda h, v: v["parts"][0].update(teacher=True), r"array 'base.teacher.means' is missing, expected shape"),
        (lambda h, v: v["parts"].pop(), "it has array 'additions.0.counts', which no part of it names"),
        (lambda h, v: h["base.means"].update(dtype="BF16"), "array 'base.means' is .* expected F64, F32, I64"),
        (
            lambda h, v: h["base.means"].update(shape=[5, 6]),
            "array 'base.means' of shape .* has bytes 32 to 224, expected",
        ),
        (lambda h, v: h["base.means"].update(data_offsets=[0, 192]), "array 'base.means' of shape"),
        (lambda h, v: h.pop("__metadata__"), "its metadata have no cdl.statistics"),
    ],
)
def test_headers_that_do_not_fit(tmp_path, change, message):
    path = tmp_path / "a"
    write_statistics(path, example())
    rewritten(path, change)
    found = refused(path)
    assert re.search(message, found), found


def test_values_that_are_no_numbers(tmp_path):
    path = tmp_path / "a"
    stored = example()
    stored.history.base.means[1, 2] = np.nan
    write_statistics(path, stored)
    assert "array 'base.means' holds values that are no finite numbers" in refused(path)


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a"
    write_statistics(path, example())
    before = path.read_bytes()

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        write_statistics(path, example(keep=3))
    assert path.read_bytes() == before
    assert [item.name for item in tmp_path.iterdir()] == ["a"]
