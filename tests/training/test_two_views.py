"""Teacher and student see the same image at sizes of their own: `--teacher-image-size`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image

from cdl_deploy.data.labelled import LabelledImages
from cdl_deploy.data.preprocessing import Preprocessing, ResizeCrop
from cdl_deploy.data.sources import ImageSource
from cdl_deploy.errors import OptionError
from cdl_deploy.export.graph import ExportGraph
from cdl_deploy.export.onnx_file import export_onnx
from cdl_deploy.export.two_views import behind_preprocessing
from cdl_deploy.run.config import MethodConfig, ModelConfig, RunConfig
from cdl_deploy.run.record_parts import BackboneInfo, RecordedPreprocessing, TeacherView
from cdl_deploy.runtime.bundle import Bundle
from cdl_deploy.runtime.bundle_parts import Method, RunOrigin, Weights
from cdl_deploy.training.backbones.plain import PlainViT
from cdl_deploy.training.data.resident import ResidentImages
from cdl_deploy.training.data.task_data import TaskImages
from cdl_deploy.training.data.transforms import evaluation_transform, in_views, training_transform
from cdl_deploy.training.frozen import as_rows, compute_frozen, from_rows, row_bytes
from cdl_deploy.training.models.learner import learner_logits
from cdl_deploy.training.models.teacher_student import build_teacher_student
from cdl_deploy.training.preparation import load_backbones, resolve_preprocessing
from tests.conftest import no_shape_checks
from tests.training.conftest import make_backbone, make_vit

HALF = (0.5, 0.5, 0.5)
STUDENT, TEACHER = ResizeCrop.square(16, 18, "bicubic"), ResizeCrop.square(24, 24, "bilinear")
VIEWS = (STUDENT, TEACHER)


def photo(seed=0):
    pixels = torch.randint(0, 256, (40, 30, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    return Image.fromarray(pixels.numpy())


@pytest.mark.parametrize("augmentation", ["photo", "gentle", "none"])
def test_each_view_is_what_it_would_be_alone(augmentation):
    """The same part of the image, flipped alike, resized with each one's own filter."""
    for seed in range(6):
        torch.manual_seed(seed)
        both = in_views(training_transform(VIEWS, augmentation)(photo())[None], VIEWS)
        for found, view in zip(both, VIEWS, strict=True):
            torch.manual_seed(seed)
            assert torch.equal(found[0], training_transform(view, augmentation)(photo()))


def test_images_that_stay_on_the_device_are_augmented_alike():
    images = TaskImages([np.asarray(photo(i)) for i in range(3)], [0, 1, 1])
    device = torch.device("cpu")
    (pixels, _), *_ = ResidentImages(images, VIEWS, device, "photo").batches(3, 0, ("x",))
    for view, found in zip(VIEWS, in_views(pixels, VIEWS), strict=True):
        (alone, _), *_ = ResidentImages(images, view, device, "photo").batches(3, 0, ("x",))
        assert torch.equal(found, alone)


def make_pair(depth=6, **options):
    """A teacher at 24 pixels with statistics of its own, a student at 16."""
    teacher = PlainViT(make_vit(32, depth, 4, seed=1, img_size=24), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    backbones = {"student": make_backbone(depth=depth), "teacher": teacher}
    pair = build_teacher_student(backbones, MethodConfig(method="l2p", pool_size=6, **options), seed=0)
    for classes in (2, 3):
        pair.begin_task(classes, seed=0)
    torch.manual_seed(5)
    for learner in pair.learners.values():
        for name, value in learner.named_parameters():
            if "head" in name and value.requires_grad:
                torch.nn.init.normal_(value)
    return pair


def batch(count=3):
    """Pixels of both views, and each alone."""
    pixels = torch.stack([evaluation_transform(VIEWS)(photo(i)) for i in range(count)])
    return pixels, *in_views(pixels, VIEWS)


@torch.no_grad()
@pytest.mark.parametrize("distill", ["kdp", "fitnets"])
def test_a_learner_sees_its_own_pixels_and_the_query_the_students(distill):
    pair, (both, small, large) = make_pair(distill=distill), batch()
    teacher, query = pair.teacher, pair.encoder(small).query
    wanted = teacher(teacher.backbone.embed(large), query, "test")
    torch.testing.assert_close(learner_logits(pair.encoder, teacher, both), teacher.predict(wanted))
    torch.testing.assert_close(
        learner_logits(pair.encoder, pair.student, both), learner_logits(pair.encoder, pair.student, small)
    )
    for role in pair.learners:
        rows, frozen = as_rows(pair, role, both), compute_frozen(pair, role, both)
        kept = from_rows(pair, role, rows)
        assert torch.equal(kept.tokens, frozen.tokens)
        assert sum(value.nbytes for value in rows.values()) == len(both) * row_bytes(pair, role, 5)
        if role == "student":
            assert torch.equal(kept.teacher.class_logits, frozen.teacher.class_logits)


@torch.no_grad()
def test_the_exported_teacher_sees_both_sizes():
    """Also as a file, which makes both from one photograph; the query's own filter and resizing are kept."""
    pair, (both, small, large) = make_pair(distill="kd", depth=1), batch()
    with no_shape_checks():
        graph = ExportGraph(pair, pair.teacher, pixels=True)
        found = graph(large.float(), small.float())[0]
        wanted = learner_logits(pair.encoder, pair.teacher, both)
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-5)
        model = export_onnx(graph, described(pair.teacher), query_view=STUDENT)
    behind = behind_preprocessing(model, pair.encoder, pair.teacher, both)(["logits"])[0]
    np.testing.assert_allclose(behind, wanted.numpy(), atol=1e-4)
    assert {node.domain for node in model.graph.node} == {""}
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for i in range(len(both)):
        seen = session.run(["logits"], {"image": np.asarray(photo(i))[None]})[0]
        np.testing.assert_allclose(seen[0], wanted[i].numpy(), atol=2e-3)  # PIL's pixels but for ties


def described(learner):
    preprocessing = Preprocessing(24, 24, 24, "bilinear", HALF, HALF, "image")
    classes = tuple("abcde")
    return Bundle(
        path=Path("teacher.onnx"),
        role="teacher",
        classes=classes,
        tasks=(classes[:2], classes[2:]),
        preprocessing=preprocessing,
        method=Method("l2p", None, "full", None, None),
        weights=Weights("a teacher"),
        run=RunOrigin(seed=0, tasks=2, fingerprint="random"),
        parameters=1,
        top_k=5,
    )


def test_what_each_sees_is_recorded():
    info = BackboneInfo("m", "hub", "", 16, (0.5,) * 3, (0.5,) * 3, "bicubic", 0.875, 1)
    other = BackboneInfo("m", "hub", "", 24, (0.5,) * 3, (0.5,) * 3, "bilinear", 1.0, 1)

    none = LabelledImages("x", [], [])
    source = ImageSource("x", (), none, none, photographs=False)
    found = resolve_preprocessing(RunConfig(), {"student": info, "teacher": other}, source)
    assert found == RecordedPreprocessing(16, 18, "bicubic", "gentle", TeacherView(24, 24, "bilinear"))
    assert found.views == (STUDENT, TEACHER)
    assert found.of("teacher") == TEACHER
    alike = resolve_preprocessing(RunConfig(), {"student": info, "teacher": info}, source)
    assert alike.views == alike.of("teacher") == STUDENT
    assert "teacher" not in alike.to_dict()


def test_without_a_teacher_its_size_is_refused():
    config = RunConfig(models=ModelConfig(teacher_image_size=48), method=MethodConfig(distill="none"))
    with pytest.raises(OptionError, match="--teacher-image-size 48: there is no teacher with --distill none"):
        load_backbones(config)
