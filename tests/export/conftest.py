"""Shape checks off: tracing uses symbolic shapes. No pictures of runs: nothing here looks at them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from cdl_deploy.cli import main
from cdl_deploy.export import ExportOptions, Shrink, export_run, vendor_int8
from cdl_deploy.export import export as export_module
from cdl_deploy.run.config import DataConfig, MethodConfig, ModelConfig, OptimConfig, RunConfig
from cdl_deploy.runtime.bundle import Bundle
from cdl_deploy.targets import checking
from cdl_deploy.training.loop import train
from tests.conftest import no_shape_checks
from tests.tiny_models import tiny_pair, write_tiny_weights
from tests.training.conftest import COLOURS, no_pictures_drawn, write_images

NAMES = sorted(COLOURS)


@pytest.fixture(autouse=True)
def _no_shape_checks():
    with no_shape_checks(), no_pictures_drawn():
        yield


def code_of(arguments):
    """What `cdl` exits with."""
    with pytest.raises(SystemExit) as stopped:
        main([str(argument) for argument in arguments])
    return stopped.value.code


def trace_of(bundle_folder: Path) -> Callable[..., onnx.ModelProto]:
    """Stands in for `export_onnx`: the graph that is in the folder, as it was before its description came into it."""

    def traced(graph: object, bundle: Bundle, opset: int = 0, labels: bool = True) -> onnx.ModelProto:
        model = onnx.load(bundle_folder / f"{bundle.role}.onnx")
        del model.metadata_props[:]
        return model

    return traced


@pytest.fixture
def traced(small_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`small_run` is not traced again. For tests of what comes after tracing, which takes most of an export's time."""
    monkeypatch.setattr(export_module, "export_onnx", trace_of(small_bundle))


@pytest.fixture(autouse=True)
def _timed_briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is proved in its runtime is timed once, not for a second."""
    for module in (checking, vendor_int8):
        monkeypatch.setattr(module, "BURST", 0.001)


DEEP = ("coda", "dualprompt")
"""What needs five blocks."""


@pytest.fixture(scope="session")
def photos(made_once):
    def make(root):
        write_images(root / "train", dict.fromkeys(COLOURS, 8))
        write_images(root / "test", dict.fromkeys(COLOURS, 4), seed=1)

    return made_once("closed_form_photos", make)


@pytest.fixture(scope="session")
def tiny_weights(made_once):
    return made_once("tiny_weights", lambda root: write_tiny_weights(root / "weights")) / "weights"


@pytest.fixture(scope="session")
def trained(photos, tiny_weights, made_once):
    """A run of some options, learned once; `packaged`: of the package's pair, not of a tiny one."""

    def run(packaged=False, **method):
        plan = MethodConfig(**{"method": "none", "distill": "none", "head": "slda", **method})
        data = DataConfig(str(photos), tasks=len(NAMES) // 2, class_order="natural")
        optim = OptimConfig(epochs=1, batch_size=8, device="cpu", seed=0)
        models = ModelConfig() if packaged else tiny_pair(tiny_weights, 5 if method.get("method") in DEEP else 2)

        def make(root):
            with no_pictures_drawn():
                train(RunConfig(data, models, plan, optim), root / "run")

        return made_once(f"closed_form_run{name_of(packaged=packaged, **method)}", make) / "run"

    return run


@pytest.fixture(scope="session")
def tiny_run(photos, tiny_weights, made_once):
    """Learned heads, L2P, KDP, two blocks: what does not depend on size or method is exported from it in a third of the
    time that `small_run` takes. Only to be read."""

    def make(root):
        data = DataConfig(str(photos), tasks=len(NAMES) // 2, class_order="natural")
        optim = OptimConfig(epochs=1, batch_size=8, device="cpu", seed=0)
        with no_pictures_drawn():
            train(RunConfig(data, tiny_pair(tiny_weights, 2), MethodConfig("l2p"), optim), root / "run")

    return made_once("tiny_run", make) / "run"


@pytest.fixture(scope="session")
def after_each_task(small_run, tiny_weights, made_once):
    """`run`: two blocks that learned the two tasks of `small_run`; `1` and `2`: what was exported after each of them.

    Only to be read."""

    def make(root):
        data = DataConfig(str(small_run.parent / "photos"), tasks=2, class_order="natural")
        optim = OptimConfig(epochs=4, batch_size=4, device="cpu", seed=0)
        method = MethodConfig("l2p", pool_size=6, top_k=2)
        with no_shape_checks(), no_pictures_drawn():
            train(RunConfig(data, tiny_pair(tiny_weights, 2), method, optim), root / "run")
            for tasks in (1, 2):
                export_run(root / "run", root / str(tasks), ExportOptions(latency=False), after=tasks)

    return made_once("after_each_task", make)


def name_of(**options):
    return "".join(f"-{key}={options[key]}" for key in sorted(options))


def exported(run, out, **options):
    """Parity to 1e-4 with the same top-1 is what `export_run` itself demands."""
    return export_run(run, out, ExportOptions(**{"latency": False, **options}))


@pytest.fixture(scope="session")
def bundles(trained, made_once):
    """`bundles(**method)`: the folder with such a run's student, its file exported once. Only to be read."""

    def folder(packaged=False, **method):
        run = trained(packaged=packaged, **method)
        shrink = Shrink(("int8", "fp16"), max_drop=100) if packaged else Shrink(())

        def make(root):
            exported(run, root / "out", teacher=False, shrink=shrink)

        return made_once(f"closed_form_bundle{name_of(packaged=packaged, **method)}", make) / "out"

    return folder


@pytest.fixture(scope="session")
def first_task(trained, made_once):
    """`first_task(**method)`: the folder of a model that has learned the first of two tasks."""

    def folder(**method):
        name = "".join(f"-{key}={method[key]}" for key in sorted(method))

        def make(root):
            export_run(trained(**method), root / "out", ExportOptions(teacher=False, latency=False), after=1)

        return made_once(f"learn_first{name}", make) / "out"

    return folder


@pytest.fixture
def model(first_task, tmp_path):
    """A copy of one, to write to."""

    def copy(**method):
        shutil.copytree(first_task(**method), tmp_path / "device")
        return tmp_path / "device" / "student.onnx"

    return copy
