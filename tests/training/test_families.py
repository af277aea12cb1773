"""Rotary and pooled ViTs compute what timm computes; prompts get no rotation; what is not supported says what it is."""

from __future__ import annotations

import pytest
import torch

from cdl_deploy.export.graph import ExportGraph
from cdl_deploy.export.selection import fix_selection
from cdl_deploy.run.config import MethodConfig
from cdl_deploy.training.backbones import build_backbone
from cdl_deploy.training.backbones.protocol import BlockPrompt
from cdl_deploy.training.models.learner import learner_logits
from cdl_deploy.training.models.teacher_student import build_teacher_student
from tests.conftest import no_shape_checks
from tests.training.families import FAMILIES, member

HALF = (0.5, 0.5, 0.5)


@torch.no_grad()
@pytest.mark.parametrize("name", FAMILIES)
def test_unprompted_pass_and_pooling_are_timms(name):
    vit = member(name)
    backbone = build_backbone(vit, HALF, HALF)
    images = torch.randn(2, 3, *backbone.image_size)
    tokens = backbone.run_blocks(backbone.embed_normalised(images), 0, 2, dict.fromkeys(range(2), BlockPrompt()))
    torch.testing.assert_close(vit.norm(tokens), vit.forward_features(images), atol=1e-5, rtol=1e-5)
    plain = backbone.run_blocks(backbone.embed_normalised(images), 0, 2)
    torch.testing.assert_close(plain, tokens, atol=1e-5, rtol=1e-5)
    read = backbone.pool(
        backbone.run_blocks(backbone.embed_normalised(images), 0, 2, output_tokens=backbone.output_tokens(("class",))),
        ("class",),
    )[:, 0]
    if backbone.pooling is None:
        wanted = vit.fc_norm(vit.forward_features(images)[:, 0])
    else:
        wanted = vit.forward_head(vit.forward_features(images), pre_logits=True)
    torch.testing.assert_close(read, wanted, atol=1e-5, rtol=1e-5)


def learned(backbone, method="l2p", classes=(2, 3), **options):
    """A pair whose student has random values everywhere; zero heads would hide what feeds them."""
    pair = build_teacher_student({"student": backbone}, MethodConfig(method=method, pool_size=6, **options), seed=0)
    torch.manual_seed(1)
    for count in classes:
        pair.begin_task(count, seed=0)
        for name, value in pair.student.named_parameters():
            if value.requires_grad:
                torch.nn.init.normal_(value, std=1.0 if "head" in name else 0.2)
        pair.student.end_task()
    return pair


@torch.no_grad()
@pytest.mark.parametrize("name", FAMILIES)
def test_what_export_folds_is_what_was_trained(name):
    backbone = build_backbone(member(name), HALF, HALF)
    pair = learned(backbone)
    images = torch.randint(0, 256, (3, 3, *backbone.image_size), dtype=torch.uint8)
    with no_shape_checks():
        found = ExportGraph(pair, pair.student)((images / 255 - backbone.mean) / backbone.std)[0]
        wanted = learner_logits(pair.encoder, pair.student, images)
    assert float(wanted.std()) > 0.1
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("name", ["vit_small_patch16_dinov3", "vit_pe_core_tiny_patch16_384", "test_vit3"])
def test_an_early_query_and_a_fixed_selection_are_folded(name):
    backbone = build_backbone(member(name, depth=3), HALF, HALF)
    pair = learned(backbone, query="block:1")
    images = torch.randint(0, 256, (3, 3, *backbone.image_size), dtype=torch.uint8)
    fixed = fix_selection(pair.student, pair.encoder, None, [images])
    for choice, prompts in ((None, None), (fixed, fixed.prompts)):
        with no_shape_checks():
            graph = ExportGraph(pair, pair.student, fixed=choice)
            found = graph((images / 255 - backbone.mean) / backbone.std)[0]
            wanted = learner_logits(pair.encoder, pair.student, images, prompts=prompts)
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-5)
