"""What the tests of learning on a device share."""

from __future__ import annotations

import contextlib
import io

import numpy as np
import onnx
import pytest

from cdl_deploy.cli import main
from cdl_deploy.closed_form.statistics_file import read_statistics
from cdl_deploy.runtime.bundle import read_bundle
from tests.export.conftest import NAMES

OLD, NEW = NAMES[:2], NAMES[2:]


def images_of(photos, name, split="train"):
    return sorted(str(path) for path in (photos / split / name).iterdir())


def task(photos, names=NEW):
    return {name: images_of(photos, name) for name in names}


def statistics_of(path):
    bundle = read_bundle(path)
    return read_statistics(path.parent / bundle.statistics.file, bundle.features.sha256)


def check_same_model(one, other):
    """The same bytes, but for the last bit of some numbers of the head: solved twice, they are rounded twice."""
    one, other = (onnx.load_from_string(content) for content in (one, other))
    for mine, its in zip(one.graph.initializer, other.graph.initializer, strict=True):
        if mine.name.startswith(("head.", "distance.")):
            values, expected = (onnx.numpy_helper.to_array(it) for it in (mine, its))
            size = np.abs(expected).max()
            np.testing.assert_allclose(
                values, expected, rtol=0, atol=1e-6 * size if "head" in mine.name else 1e-3 * size
            )
            its.raw_data = mine.raw_data
    assert one.SerializeToString(deterministic=True) == other.SerializeToString(deterministic=True)


def run(*arguments):
    with pytest.raises(SystemExit) as stopped:
        main([str(argument) for argument in arguments])
    return stopped.value.code


def error_of(*arguments):
    """The one line of an exit with code 2."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        assert run(*arguments) == 2
    assert said.getvalue().count("\n") == 1
    return said.getvalue()
