"""docs/extending.md does what it says: its examples are run as they stand there, in the registry and as a plug-in."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import onnxruntime
import pytest
import timm
import torch

from cdl_deploy.cli import main
from cdl_deploy.errors import OptionError, RunError, WeightsError
from cdl_deploy.export.graph import ExportGraph
from cdl_deploy.run.config import MethodConfig
from cdl_deploy.training.backbones import BACKBONES, build_backbone
from cdl_deploy.training.checkpoint import load_heldout, load_run, rebuild_teacher_student
from cdl_deploy.training.distillation import DISTILLATIONS
from cdl_deploy.training.heads import HEADS
from cdl_deploy.training.methods import METHODS
from cdl_deploy.training.models.learner import learner_logits
from cdl_deploy.training.models.teacher_student import build_teacher_student
from cdl_deploy.training.run_directory import RunDirectory
from cdl_deploy.training.step import make_optimizer, stage_losses
from tests.children import Child
from tests.conftest import no_shape_checks
from tests.tiny_models import write_tiny_weights
from tests.training.conftest import COLOURS, write_images
from tests.training.naive_methods import cosine
from tests.training.test_learner import make_pair, pixels

PROJECT = Path(__file__).resolve().parents[2]
PAGE = PROJECT / "docs/extending.md"
IMAGES, LABELS = pixels(4), torch.tensor([2, 3, 4, 2])
REGISTRIES = {"METHODS": METHODS, "DISTILLATIONS": DISTILLATIONS, "HEADS": HEADS, "BACKBONES": BACKBONES}


def examples() -> list[str]:
    """The page's Python, file by file."""
    return re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture
def added():
    """The page's code, registry lines included, undone after the test."""
    before = [(registry, dict(registry.own)) for registry in REGISTRIES.values()]
    for number, block in enumerate(examples()):
        module = sys.modules[f"example_{number}"] = ModuleType(f"example_{number}")  # dataclasses look it up
        vars(module).update(REGISTRIES)
        exec(compile(block, str(PAGE), "exec"), vars(module))
    yield
    for registry, entries in before:
        registry.own = entries


@pytest.mark.usefixtures("added")
def test_the_method_learns_with_any_query_and_keeps_earlier_tasks():
    for query, weight in (("full", 0.0), ("block:2", 0.5)):
        pair = make_pair(method="soft", query=query, query_regulariser=weight)
        kept = {name: value.clone() for name, value in pair.trained_state().items()}
        optimizer = make_optimizer(pair.student, 0.05)
        sum(stage_losses(pair, "student", IMAGES, LABELS).values()).backward()
        optimizer.step()
        for name, value in pair.student.method.state_dict().items():
            if not value.numel():  # no known class learns on
                continue
            assert torch.equal(value, kept[f"student/method.{name}"]) == name.endswith("frozen"), name


@pytest.mark.usefixtures("added")
@torch.no_grad()
def test_the_method_is_what_the_page_says():
    method = make_pair(method="soft").student.method
    query = torch.randn(1, 24)
    weights = torch.softmax(torch.tensor([cosine(query[0], key) for key in method.keys.all()]), 0)
    expected = weights[0] * method.prompts.all()[0] + weights[1] * method.prompts.all()[1]
    for part, rows in enumerate(method(query, "test").prompts[0].prefix):
        torch.testing.assert_close(rows[0], expected[part])


@pytest.mark.usefixtures("added")
@torch.no_grad()
def test_the_method_exports_as_it_is():
    with no_shape_checks():
        for query in ("full", "block:2"):
            pair = make_pair(method="soft", query=query)
            backbone = pair.student.backbone
            logits = ExportGraph(pair, pair.student)((IMAGES / 255 - backbone.mean) / backbone.std)[0]
            expected = learner_logits(pair.encoder, pair.student, IMAGES)
            torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)


@pytest.mark.usefixtures("added")
def test_the_distillation_is_what_the_page_says():
    pair = make_pair("logits")
    terms = stage_losses(pair, "student", IMAGES, LABELS)
    with torch.no_grad():
        teacher, student = (learner_logits(pair.encoder, learner, IMAGES) for learner in pair.learners.values())
    gap = (teacher - student)[:, 2:]  # the second task's three classes
    torch.testing.assert_close(terms["distillation"].detach(), 0.5 * (gap**2).sum() / (4 * 3), atol=1e-4, rtol=1e-4)
    sum(terms.values()).backward()
    assert all(value.grad is None for value in pair.teacher.parameters())


@pytest.mark.usefixtures("added")
def test_the_head_is_what_the_page_says_and_keeps_earlier_classes():
    pair = make_pair(student_head="unit")
    student = pair.student
    for head in (student.class_head, student.distillation.head):
        features = torch.randn(3, 24)
        for image, logits in zip(features, head(features).detach(), strict=True):
            for row, logit in zip(head.weight.all().detach(), logits, strict=True):
                assert float(logit) == pytest.approx(10 * float(image @ row) / float(row.norm()), abs=1e-4)
    kept = student.class_head.weight.all()[:2].detach().clone()
    optimizer = make_optimizer(student, 0.05)
    sum(stage_losses(pair, "student", IMAGES, LABELS).values()).backward()
    optimizer.step()
    assert torch.equal(student.class_head.weight.all()[:2], kept)
    with torch.no_grad(), no_shape_checks():
        logits = ExportGraph(pair, student)((IMAGES / 255 - student.backbone.mean) / student.backbone.std)[0]
        torch.testing.assert_close(logits, learner_logits(pair.encoder, student, IMAGES), atol=1e-4, rtol=0)


def test_an_unknown_head_is_refused():
    with pytest.raises(OptionError, match="--student-head 'cosin' is unknown, expected one of method, linear, cosine"):
        make_pair(student_head="cosin")


@torch.no_grad()
def test_the_backbone_is_timms_and_exports(request):
    torch.manual_seed(0)
    vit = timm.create_model("deit_tiny_distilled_patch16_224", img_size=32, depth=6, num_classes=0)
    half = (0.5, 0.5, 0.5)
    with pytest.raises(WeightsError, match="VisionTransformerDistilled, expected a plain"):
        build_backbone(vit, half, half)
    request.getfixturevalue("added")
    backbone = build_backbone(vit, half, half)
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    ours = backbone.final_norm(backbone.run_blocks(backbone.embed(images), 0, 6))
    torch.testing.assert_close(ours, vit.forward_features(images / 127.5 - 1), atol=1e-5, rtol=1e-5)
    pair = build_teacher_student({"student": backbone}, MethodConfig(distill="none"), seed=0)
    pair.begin_task(2, seed=0)
    student = pair.student
    with no_shape_checks():
        logits = ExportGraph(pair, student)((images / 255 - backbone.mean) / backbone.std)[0]
        torch.testing.assert_close(logits, learner_logits(pair.encoder, student, images), atol=1e-4, rtol=0)


@pytest.mark.parametrize("option", ["method", "distill", "student_head"])
def test_a_run_says_that_its_package_is_gone(option, small_run):
    directory = RunDirectory(small_run)
    record = directory.latest_record()
    method = replace(record.config.method, **{option: "gone"})
    gone = replace(record, config=replace(record.config, method=method))
    flag = f"--{option.replace('_', '-')}"
    with pytest.raises(RunError, match=f"was trained with {flag} gone, which no package here has: install the one"):
        rebuild_teacher_student(directory, gone)


def test_every_name_the_page_points_to_exists():
    for target in re.findall(r"\]\(([^)]+)\)", PAGE.read_text(encoding="utf-8")):
        assert (PAGE.parent / target).exists(), target


def test_a_package_of_its_own_brings_all_of_them(tmp_path):
    """Installed beside this one, without touching it: trained and exported by the command line."""
    site = tmp_path / "site"
    info = site / "my_package-1.0.dist-info"
    (site / "my_package").mkdir(parents=True)
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n")
    page = PAGE.read_text(encoding="utf-8")
    points = re.sub(r'project\.entry-points\."(.*?)"', r"\1", re.findall(r"```toml\n(.*?)```", page, re.DOTALL)[0])
    points = re.sub(r'"(.*?)"\s*#.*', r"\1", points)
    (info / "entry_points.txt").write_text(points)
    (site / "my_package/__init__.py").touch()
    for name, source in zip(re.findall(r"^`(\w+\.py)`:", page, re.MULTILINE), examples(), strict=True):
        lines = [line for line in source.splitlines() if not re.match(r"[A-Z]+\[", line)]
        (site / "my_package" / name).write_text("\n".join(lines) + "\n")

    write_images(tmp_path / "photos/train", dict.fromkeys(COLOURS, 4))
    write_images(tmp_path / "photos/test", dict.fromkeys(COLOURS, 2), seed=1)
    chosen = ["--method", "soft", "--soft-length", "3", "--distill", "logits", "--student-head", "unit"]
    write_tiny_weights(tmp_path / "weights")
    for role in ("student", "teacher"):
        name = f"tiny_{role}_2"
        chosen += [f"--{role}", name, f"--{role}-weights", f"weights/{name}.safetensors"]
    learn = ["--data", "photos", "--tasks", "2", "--epochs", "1", "--device", "cpu", *chosen]
    export = ["export", "run", "--onnx", "--no-teacher", "--out", "out"]
    done = Child(run_with_package, site, [["train", *learn, "--out", "run"], export], cwd=tmp_path).finished()
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("all of it\n")


def run_with_package(site: Path, commands: list[list[str]]) -> None:
    """In a process of its own, which finds the package that was installed into `site`."""
    sys.path.insert(0, str(site))
    for command in commands:
        with pytest.raises(SystemExit) as end:
            main(command)
        assert not end.value.code, command
    exported_like("run", "out/student.onnx")
    print("all of it")


def exported_like(run: str, file: str) -> None:
    """The file's logits are those of the run's student, whose parts are the plug-in's."""
    record, pair = load_run(Path(run))
    student = pair.student
    names = [type(part).__name__ for part in (student.method, student.distillation, student.class_head)]
    assert names == ["SoftPrompt", "LogitMatch", "UnitHead"], names
    assert record.config.method.value("soft_length") == 3 == student.method.prompts.shape[1]
    images = load_heldout(Path(run), record)[0][:4]
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    found = session.run(["logits"], {"image": images.permute(0, 2, 3, 1).numpy()})[0]
    with torch.no_grad():
        expected = learner_logits(pair.encoder, student, images).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-4)
