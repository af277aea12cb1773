"""Shape checks off: tracing uses symbolic shapes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from cdl_deploy.export import export as export_module
from cdl_deploy.runtime.bundle import Bundle
from tests.conftest import no_shape_checks


@pytest.fixture(autouse=True)
def _no_shape_checks():
    with no_shape_checks():
        yield


def trace_of(bundle_folder: Path) -> Callable[..., onnx.ModelProto]:
    """Stands in for `export_onnx`: the graph that is in the folder, as it was before its description came into it."""

    def traced(graph: object, bundle: Bundle, opset: int = 0) -> onnx.ModelProto:
        model = onnx.load(bundle_folder / f"{bundle.role}.onnx")
        del model.metadata_props[:]
        return model

    return traced


@pytest.fixture
def traced(small_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`small_run` is not traced again. For tests of what comes after tracing, which takes most of an export's time."""
    monkeypatch.setattr(export_module, "export_onnx", trace_of(small_bundle))
