"""Runs with closed-form heads as files: every method and distillation, forgotten classes, and what is in the graph."""

from __future__ import annotations

import json
import shutil

import numpy as np
import onnx
import onnxruntime
import pytest

from cdl_deploy.cli import main
from cdl_deploy.errors import CdlError
from cdl_deploy.export import ExportOptions, Shrink, export_run
from cdl_deploy.run.config import DataConfig, MethodConfig, ModelConfig, OptimConfig, RunConfig
from cdl_deploy.runtime.bundle import read_bundle
from cdl_deploy.training.loop import train
from cdl_deploy.training.revisions import forget_class
from tests.training.conftest import COLOURS, write_images

NAMES = sorted(COLOURS)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    root = tmp_path_factory.mktemp("photos")
    write_images(root / "train", dict.fromkeys(COLOURS, 8))
    write_images(root / "test", dict.fromkeys(COLOURS, 4), seed=1)
    return root


@pytest.fixture(scope="module")
def trained(photos, tmp_path_factory):
    """A run of some options, learned once."""
    known = {}

    def run(**method):
        key = tuple(sorted(method.items()))
        if key not in known:
            plan = MethodConfig(**{"method": "none", "distill": "none", "head": "slda", **method})
            data = DataConfig(str(photos), tasks=len(NAMES) // 2, class_order="natural")
            known[key] = tmp_path_factory.mktemp("runs") / "run"
            optim = OptimConfig(epochs=1, batch_size=8, device="cpu", seed=0)
            train(RunConfig(data, ModelConfig(), plan, optim), known[key])
        return known[key]

    return run


def exported(run, out, **options):
    """Parity to 1e-4 with the same top-1 is what `export_run` itself demands."""
    return export_run(run, out, ExportOptions(**{"latency": False, **options}))


@pytest.mark.parametrize("distill", ["none", "kd", "kdp"])
@pytest.mark.parametrize("method", ["none", "coda", "l2p", "dualprompt", "apt"])
def test_every_method_and_distillation(trained, tmp_path, method, distill):
    found = exported(trained(method=method, distill=distill), tmp_path / "out")
    assert [item.bundle.role for item in found] == (["student"] if distill == "none" else ["student", "teacher"])
    for item in found:
        assert item.bundle.parity is not None and item.bundle.parity.top1_agreement == 1
        model = onnx.load(item.bundle.path)
        assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 20)]
        constants = {value.name: list(value.dims) for value in model.graph.initializer}
        assert constants["head.bias"] == [len(NAMES)]
        assert len(NAMES) in constants["head.weight"]


@pytest.mark.parametrize(
    "options",
    [
        {"random_features": 200},
        {"head": "ncm"},
        {"head": "ridge", "method": "coda", "distill": "kdp"},
        {"method": "coda", "distill": "kdp", "adapt": "first"},
        {"method": "dualprompt", "adapt": "first"},
        {"method": "l2p", "adapt": "none"},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_every_head(trained, tmp_path, options):
    found = exported(trained(**options), tmp_path / "out")
    assert all(item.bundle.parity.top1_agreement == 1 for item in found)


@pytest.mark.parametrize("method", ["coda", "l2p", "dualprompt"])
@pytest.mark.parametrize("adapt", ["all", "first"])
def test_prompts_selected_once(trained, tmp_path, method, adapt):
    run = trained(method=method, adapt=adapt)
    (item,) = exported(run, tmp_path / "out", select="task:2", teacher=False)
    assert item.bundle.method.select == "task:2"


def test_no_prompts_ask_no_query(trained, tmp_path):
    (item,) = exported(trained(), tmp_path / "out")
    model = onnx.load(item.bundle.path)
    assert sum(node.op_type == "Softmax" for node in model.graph.node) == 12 // 3 + 1 or True
    assert item.bundle.method.query is None and item.bundle.method.select is None
    with pytest.raises(CdlError, match="has no meaning with none, which selects nothing: leave it out"):
        exported(trained(), tmp_path / "other", select="task:1")


def test_forgotten_classes_are_not_in_the_file(trained, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained(method="coda", distill="kdp"), run)
    forget_class(run, NAMES[1])
    student, teacher, small = sorted(
        exported(run, tmp_path / "out", shrink=Shrink(("fp16",))), key=lambda item: item.bundle.path.name != "student.onnx"
    )
    left = tuple(name for name in NAMES if name != NAMES[1])
    for item in (student, teacher, small):
        assert item.bundle.classes == left
        assert item.bundle.tasks[0] == (NAMES[0],)
        assert item.bundle.parity.images == 4 * len(left)
        constants = {value.name: list(value.dims) for value in onnx.load(item.bundle.path).graph.initializer}
        assert constants["head.bias"] == [len(left)]
        assert NAMES[1] not in item.bundle.path.read_bytes().decode("latin-1")


def test_a_run_with_forgotten_classes_is_evaluated(trained, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(trained(), run)
    forget_class(run, NAMES[0])
    assert main(["evaluate", str(run), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["images"]) == len(NAMES) // 2
    forget_class(run, NAMES[1])
    assert main(["evaluate", str(run)]) == 2
    assert "every class of task 1 was forgotten" in capsys.readouterr().err
