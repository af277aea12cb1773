"""Rotary and pooled ViTs compute what timm computes; prompts get no rotation; what is not supported says what it is."""

from __future__ import annotations

from dataclasses import replace

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.layers import apply_rot_embed_cat
from timm.models import list_models, list_pretrained, model_entrypoint

from benchmarks.backbone_families import CLASS_TOKEN, FAMILIES, member
from cdl_deploy.errors import OptionError, WeightsError
from cdl_deploy.export.embedding import fold_embedding
from cdl_deploy.export.graph import ExportGraph
from cdl_deploy.export.selection import fix_selection
from cdl_deploy.run.config import MethodConfig
from cdl_deploy.run.record_parts import BackboneInfo
from cdl_deploy.training.backbones import build_backbone
from cdl_deploy.training.backbones.loading import check_family, load_weights_file
from cdl_deploy.training.backbones.protocol import BlockPrompt, TokenLayout
from cdl_deploy.training.backbones.refusals import OURS
from cdl_deploy.training.distillation.features import TokenMatch
from cdl_deploy.training.models.learner import learner_logits
from cdl_deploy.training.models.teacher_student import build_teacher_student
from cdl_deploy.training.preparation import notes_on
from tests.conftest import no_shape_checks

HALF = (0.5, 0.5, 0.5)


@torch.no_grad()
@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in CLASS_TOKEN])
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


def naive_attention(vit, index, tokens, prefix, suffix):
    """Of one image's tokens [N, D], row by row: only patches turn, by timm's own table; prompts and the token behind
    the patches do not."""
    attention, width, first = vit.blocks[index].attn, tokens.shape[1], vit.num_prefix_tokens
    parts = []
    for number, rows in enumerate((attention.qkv(tokens)).chunk(3, dim=1)):
        apart = getattr(attention, "q_bias", None) is not None  # not in the layer of all three
        parts.append(rows + (attention.q_bias, 0, attention.v_bias)[number] if apart else rows)
    table = vit.rope.get_embed(shape=list(vit.patch_embed.grid_size))
    heads, size = attention.num_heads, width // attention.num_heads
    found = torch.zeros_like(tokens)
    for head in range(heads):
        own = slice(head * size, (head + 1) * size)
        query, key, value = (rows[:, own].clone() for rows in parts)
        for place in range(len(table)):
            for rows in (query, key):
                turned = apply_rot_embed_cat(rows[first + place], table[place], half=attention.rotate_half)
                rows[first + place] = turned
        keys = torch.cat([prefix[0][:, own], key, suffix[0][:, own]])
        values = torch.cat([prefix[1][:, own], value, suffix[1][:, own]])
        for row in range(len(tokens)):
            found[row, own] = ((keys @ query[row]) * size**-0.5).softmax(dim=0) @ values
    return attention.proj(found)


@torch.no_grad()
@pytest.mark.parametrize("name", ["vit_small_patch16_dinov3_qkvb", "vit_small_patch16_rope_224"])
def test_prompts_and_what_is_appended_get_no_rotation(name):
    backbone = build_backbone(member(name), HALF, HALF)
    torch.manual_seed(2)
    tokens = torch.randn(2, backbone.layout.count + 1, 48)
    prefix = (torch.randn(2, 4, 48), torch.randn(2, 4, 48))
    suffix = (torch.randn(1, 2, 48), torch.randn(1, 2, 48))
    found = backbone._attention(1, tokens, BlockPrompt(prefix, suffix))
    for i in range(2):
        own = (prefix[0][i], prefix[1][i])
        wanted = naive_attention(backbone.vit, 1, tokens[i], own, (suffix[0][0], suffix[1][0]))
        torch.testing.assert_close(found[i], wanted, atol=1e-5, rtol=1e-5)


def test_two_appended_tokens_are_not_rotated_either():
    backbone = build_backbone(member("vit_small_patch16_dinov3"), HALF, HALF)
    rows = torch.randn(1, 3, backbone.layout.count + 2, 16)
    turned = backbone.position(0, rows, key=True)
    torch.testing.assert_close(turned[:, :, -2:], rows[:, :, -2:])
    torch.testing.assert_close(turned[:, :, :-2], backbone.position(0, rows[:, :, :-2], key=True))
    picked = backbone.position(0, rows[:, :, [0, 6, -1]], False, (0, 6, -1))
    torch.testing.assert_close(picked, turned[:, :, [0, 6, -1]])


def test_keys_shared_by_queries_are_refused():
    with pytest.raises(WeightsError, match="grouped-query attention"):
        build_backbone(member("vit_base_patch16_sapiens2", num_kv_heads=(3, 1)), HALF, HALF)


def test_where_no_class_token_is_read():
    """APT has nothing to shift, an average has nothing to add, and the KD token begins as an average patch."""
    pooled = build_backbone(member("vit_base_patch16_siglip_224"), HALF, HALF)
    with pytest.raises(OptionError, match="network here has no class token: heads read what its attention pooling"):
        learned(pooled, method="apt", classes=())
    averaged = build_backbone(member("eva02_tiny_patch14_224"), HALF, HALF)
    with pytest.raises(OptionError, match="has a class token, but none is read: heads read the mean of its patches"):
        learned(averaged, method="apt", classes=())
    with pytest.raises(OptionError, match="so class and patches are the same: leave patches out"):
        learned(averaged, method="none", distill="none", head="slda", features="class+patches", classes=())
    pair = learned(averaged, method="none", distill="none", head="slda", classes=())
    assert pair.student.closed_form.features == ("class",)
    start = learned(pooled, classes=()).student.distillation.token
    black = pooled.embed_normalised(torch.zeros(1, 3, 32, 32))[0]
    torch.testing.assert_close(start[0], black.mean(dim=0))


def test_tokens_are_compared_by_patches_where_one_network_has_no_class_token():
    student, teacher = TokenLayout(0, (2, 2), class_token=False), TokenLayout(4, (4, 4))
    match = TokenMatch(student, teacher)
    tokens = torch.randn(1, 21, 8)
    found = match.of_teacher(tokens)
    wanted = tokens[:, 5:].unflatten(1, (2, 2, 2, 2)).mean(dim=(2, 4)).flatten(1, 2)
    torch.testing.assert_close(found, wanted)
    assert match.of_student(torch.randn(1, 5, 8)).shape == (1, 4, 8)  # a token was appended to four patches
    assert match.notes() == [
        "tokens are compared on the student's 2x2 patches: each with the mean of those of the teacher's 4x4 that it "
        "overlaps",
        "tokens are compared by their patches alone: one of the networks has no class token",
    ]
    assert TokenMatch(teacher, teacher).notes() == []


@pytest.mark.parametrize("name", ["vit_small_patch16_dinov3", "vit_small_patch16_rope_ape_224"])
def test_timms_own_files_fit_at_another_image_size(name, tmp_path):
    file, source, target = tmp_path / "a.safetensors", member(name), member(name, seed=1, img_size=64)
    save_file({key: value.contiguous() for key, value in source.state_dict().items()}, file)
    load_weights_file(target, file)
    with torch.no_grad():
        source.set_input_size((64, 64))
        images = torch.randn(1, 3, 64, 64)
        torch.testing.assert_close(target.forward_features(images), source.forward_features(images))


def test_what_is_read_is_said():
    infos = {"student": BackboneInfo("vit_base_patch16_radio_v3", "hub", "", 32, HALF, HALF, "bicubic", 1.0, 1)}
    pair = learned(build_backbone(member("vit_base_patch16_radio_v3"), HALF, HALF), classes=())
    assert notes_on(pair, infos) == [
        "the student vit_base_patch16_radio_v3 has several class tokens: the first is read"
    ]
    infos["student"] = replace(infos["student"], model="vit_base_patch16_siglip_224")
    pair = learned(build_backbone(member("vit_base_patch16_siglip_224"), HALF, HALF), classes=())
    wanted = "query and heads of the student read what its attention pooling makes of all tokens, not a class token"
    assert notes_on(pair, infos) == [wanted]


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
@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in CLASS_TOKEN])
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
def test_pixels_beside_the_patches_are_left_out_as_timm_does():
    """SigLIP SO400M has patches of 14 pixels and its own size is 384, which is no multiple of it."""
    vit = member("vit_base_patch16_siglip_224", img_size=36)
    backbone = build_backbone(vit, HALF, HALF)
    images = torch.randn(2, 3, 36, 36)
    tokens = fold_embedding(backbone, backbone.mean, backbone.std)(images)
    torch.testing.assert_close(tokens, backbone.embed_normalised(images), atol=1e-5, rtol=1e-5)
    found = vit.norm(backbone.run_blocks(backbone.embed_normalised(images), 0, 2))
    torch.testing.assert_close(found, vit.forward_features(images), atol=1e-5, rtol=1e-5)


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


def modules() -> dict[str, list[str]]:
    """timm's models by the module that has them."""
    found: dict[str, list[str]] = {}
    for name in list_models():
        found.setdefault(model_entrypoint(name).__module__.rpartition(".")[2], []).append(name)
    return found


def test_every_family_of_timms_is_supported_or_says_what_it_is():
    """No traceback for any name. Networks of modules that have none of ours are not built at all."""
    weights = set(list_pretrained())
    for module, names in modules().items():
        if module in OURS or not model_entrypoint(names[0]).__module__.startswith("timm."):
            continue
        for name in names:
            with pytest.raises(WeightsError) as error:
                check_family(name, 224)
            text = str(error.value)
            assert text.startswith(f"model '{name}' cannot be a backbone here: ")
            assert text.rpartition(" ")[2] in weights
            assert "\n" not in text


MEMBERS = {
    "vit_small_patch16_rope_mixed_224": "its rotary positions are mixed: .*is vit_small_patch16_rope_224.naver_in1k",
    "eva02_enormous_patch14_clip_224": "its blocks normalise after attention and MLP",
    "vit_small_patch16_18x2_224": r"ParallelThingsBlock \(attention and MLPs side by side\)",
    "vit_base_patch16_xp_224": "ParallelScalingBlock",
    "vit_dwee_patch16_reg1_gap_256": r"Block with DiffAttention \(differential attention\)",
    "vit_dpwee_patch16_reg1_gap_256": "DiffParallelScalingBlock",
    "vit_base_patch16_rpn_224": "ResPostBlock",
    "deit_tiny_distilled_patch16_224": "is a VisionTransformerDistilled",
    "naflexvit_base_patch16_siglip": "NaFlex.*is vit_base_patch16_siglip_256.v2_webli",
    "swin_tiny_patch4_window7_224": "in windows.*is vit_tiny_patch16_dinov3",
    "convnext_large": "a convolutional network.*is vit_large_patch16_dinov3.lvd1689m",
    "beitv2_base_patch16_224": "relative positions.*is vit_base_patch16_dinov3.lvd1689m",
}


@pytest.mark.parametrize("name", MEMBERS)
def test_what_no_family_takes_is_one_line(name):
    with pytest.raises(WeightsError, match=MEMBERS[name]):
        check_family(name, timm.get_pretrained_cfg(name).input_size[-1])


@pytest.mark.parametrize("name", [
    "vit_small_patch16_dinov3", "vit_small_patch16_lingbot", "vit_small_patch16_rope_224", "eva02_tiny_patch14_224",
    "vit_pe_core_tiny_patch16_384", "vit_base_patch16_siglip_224", "vit_base_patch16_radio_v3",
    "deit3_small_patch16_224", "test_vit", "vit_so400m_patch14_siglip_384",
])  # fmt: skip
def test_a_family_is_taken_by_its_name(name):
    check_family(name, timm.get_pretrained_cfg(name).input_size[-1])


def test_an_image_that_is_no_whole_number_of_patches_is_refused():
    with pytest.raises(WeightsError, match="its patches are 16x16, so take 96 or 112 pixels"):
        check_family("vit_small_patch16_dinov3", 100)
