"""Which ViTs of timm's can be teacher and student: docs/backbones.md, from one small random member of every family.

    python benchmarks/backbones_table.py                        # all families, about 20 minutes on 2 cores
    python benchmarks/backbones_table.py --only dinov3,siglip   # those with such a word, again; the others stay
    python benchmarks/backbones_table.py --missing              # what an interrupted one has left
    python benchmarks/backbones_table.py --page                 # the page alone, from what was measured before

A member has the family's architecture, 48 numbers a token, two blocks and few patches, every parameter random. It
learns two tasks of two digits with L2P and KDP, as student of a plain ViT, through `cdl_deploy.train`, and is exported
through `cdl_deploy.export` with `--quantize int8`, which compares the files with the trained model. Random features
tell digits apart well enough to see what int8 costs. What is measured stands in docs/results/backbones.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file
from timm.models import generate_default_cfgs, list_pretrained, register_model

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

from benchmarks.backbone_families import FAMILIES, SMALL, member  # noqa: E402
from cdl_deploy.errors import CdlError  # noqa: E402
from cdl_deploy.export import ExportOptions, Shrink, export_run  # noqa: E402
from cdl_deploy.run.config import DataConfig, MethodConfig, ModelConfig, OptimConfig, RunConfig  # noqa: E402
from cdl_deploy.training.backbones import build_backbone  # noqa: E402
from cdl_deploy.training.backbones.loading import check_family  # noqa: E402
from cdl_deploy.training.backbones.protocol import POOLED  # noqa: E402
from cdl_deploy.training.backbones.registering import model_cfg  # noqa: E402
from cdl_deploy.training.loop import train  # noqa: E402

FOUND = PROJECT / "docs/results/backbones.json"
PAGE = PROJECT / "docs/backbones.md"
TITLES = {
    "vit_small_patch16_dinov3": "DINOv3",
    "vit_small_patch16_dinov3_qkvb": "DINOv3 with biases of query, key and value",
    "vit_small_plus_patch16_dinov3": "DINOv3 with SwiGLU",
    "vit_small_patch16_lingbot": "LingBot-Vision",
    "vit_base_patch16_sapiens2": "Sapiens2, where every query has a key of its own",
    "vit_small_patch16_rope_224": "RoPE ViT, axial",
    "vit_small_patch16_rope_ape_224": "RoPE ViT, axial, with learned positions",
    "eva02_tiny_patch14_224": "EVA-02, tiny and small",
    "eva02_base_patch14_224": "EVA-02, base and large",
    "eva02_base_patch16_clip_224": "EVA-02 CLIP",
    "eva_giant_patch14_clip_224": "EVA CLIP",
    "vit_pe_core_tiny_patch16_384": "Perception Encoder, core",
    "vit_pe_spatial_tiny_patch16_512": "Perception Encoder, spatial and lang",
    "vit_base_patch16_rope_reg1_gap_256": "averaged RoPE ViT with registers",
    "vit_base_patch16_siglip_224": "SigLIP, SigLIP 2",
    "vit_base_patch16_siglip_gap_224": "SigLIP, SigLIP 2, averaged",
    "vit_medium_patch16_reg1_gap_256": "averaged ViT with registers",
    "vit_so150m_patch16_reg4_map_256": "SO150M, attention pooling",
    "eva_large_patch14_196": "EVA",
    "aimv2_large_patch14_224": "AIMv2",
    "vit_base_patch16_radio_v3": "RADIO v3",
    "vit_huge_patch16_radio_v4": "RADIO v4",
    "vit_intern300m_patch14_448": "InternViT",
    "beit3_base_patch16_224": "BEiT-3",
    "vit_small_patch16_224": "augreg, DINO, MAE, SAM-trained",
    "vit_small_patch32_224": "augreg, patches of 32",
    "vit_small_patch14_dinov2": "DINOv2",
    "vit_small_patch14_reg4_dinov2": "DINOv2 with registers",
    "vit_giant_patch14_dinov2": "DINOv2 giant (SwiGLU)",
    "vit_base_patch16_clip_224": "CLIP",
    "vit_base_patch16_clip_quickgelu_224": "CLIP with quick GELU",
    "vit_base_patch14_reg1_tipsv2": "TIPSv2",
    "flexivit_small": "FlexiViT",
    "deit_small_patch16_224": "DeiT",
    "deit3_small_patch16_224": "DeiT III",
}
"""How families are called; those of `FAMILIES` that have no name here are not in the table."""
REFUSED = {
    "RoPE ViT, mixed": "vit_small_patch16_rope_mixed_224",
    "EVA-02 CLIP, enormous": "eva02_enormous_patch14_clip_224",
    "BEiT, BEiT v2": "beitv2_base_patch16_224",
    "ViT with relative positions": "vit_relpos_small_patch16_224",
    "parallel blocks": "vit_small_patch16_18x2_224",
    "parallel scaling blocks": "vit_base_patch16_xp_224",
    "differential attention": "vit_dwee_patch16_reg1_gap_256",
    "normalised after attention": "vit_base_patch16_rpn_224",
    "DeiT, distilled": "deit_tiny_distilled_patch16_224",
    "hybrid": "vit_tiny_r_s16_p8_224",
    "SAM": "samvit_base_patch16",
    "NaFlex": "naflexvit_base_patch16_siglip",
    "Swin": "swin_tiny_patch4_window7_224",
    "Hiera": "hiera_tiny_224",
    "CaiT": "cait_s24_224",
    "XCiT": "xcit_small_12_p16_224",
    "ViTamin": "vitamin_small_224",
    "Qwen3 vision": "qwen3_vit_88m",
    "TinyViT": "tiny_vit_5m_224",
    "MLP-Mixer": "mixer_b16_224",
    "ConvNeXt": "convnext_tiny",
    "DINOv3 ConvNeXt, ResNet and other convolutional networks": "resnet50",
}
TEACHER = "vit_small_patch16_224"


def small_name(name: str) -> str:
    return f"small_{name}"


def register(name: str) -> None:
    """A small member, known to timm by a name of its own."""

    def build(pretrained: bool = False, **given: Any) -> Any:
        shape = {"img_size": 32, **SMALL, **FAMILIES[name], **given}
        shape.pop("pretrained_cfg", None), shape.pop("pretrained_cfg_overlay", None)
        network = timm.create_model(name, pretrained=False, **shape)
        config = timm.get_pretrained_cfg(small_name(name))
        assert config is not None
        network.pretrained_cfg = config.to_dict()
        return network

    build.__name__, build.__module__ = small_name(name), __name__
    size = FAMILIES[name].get("img_size", 32)
    half = (0.5, 0.5, 0.5)
    configs = generate_default_cfgs({small_name(name): model_cfg(half, half, input_size=(3, size, size))})
    sys.modules[__name__].__dict__.setdefault("default_cfgs", {}).update(configs)
    register_model(build)


def measure(name: str, folder: Path) -> dict[str, Any]:
    """Train, export, int8: what came of it."""
    files = {it: folder / f"{it}.safetensors" for it in (TEACHER, name)}
    for it, file in files.items():
        save_file({key: value.contiguous() for key, value in member(it).state_dict().items()}, file)
    tasks = folder / "tasks.yaml"
    tasks.write_text("- ['0', '1']\n- ['2', '3']\n", encoding="utf-8")
    size = FAMILIES[name].get("img_size", 32)
    config = RunConfig(
        DataConfig("digits", task_file=str(tasks), image_size=size),
        ModelConfig(
            small_name(TEACHER), small_name(name), str(files[TEACHER]), str(files[name]),
            teacher_image_size=None if size == 32 else 32,
        ),
        MethodConfig(method="l2p", distill="kdp"),
        OptimConfig(epochs=4, batch_size=16, lr=0.01, device="cpu"),
    )  # fmt: skip
    found: dict[str, Any] = {"pooling": build_backbone(member(name), (0.5,) * 3, (0.5,) * 3).pooling}
    record = train(config, folder / "run")
    results = record.results("student")
    assert results is not None
    found["accuracy"] = results.final_average_accuracy
    options = ExportOptions(teacher=False, latency=False, shrink=Shrink(kinds=("int8",), max_drop=100))
    float_, int8 = export_run(folder / "run", folder / "out", options)
    parity, quantised = float_.bundle.parity, int8.bundle.quantization
    assert parity is not None and quantised is not None
    found["parity"], found["same_answers"] = parity.max_abs_logit_difference, parity.top1_agreement
    assert quantised.accuracy_before is not None and quantised.accuracy_after is not None
    found["int8_drop"] = quantised.accuracy_before - quantised.accuracy_after
    return found


def example_of(name: str) -> str:
    """With a tag that has weights, where there is one."""
    tags = [full for full in list_pretrained(f"{name}*") if full.split(".")[0] == name]
    return tags[0] if tags else name


def page(found: dict[str, Any]) -> str:
    lines = [
        "# Backbones",
        "",
        "Which ViTs of timm's can be teacher and student, written by benchmarks/backbones_table.py "
        f"(timm {timm.__version__}, PyTorch {torch.__version__.split('+')[0]}). One small random member of each family "
        "learned two tasks of two digits with L2P and KDP, and was exported: **parity** is the largest difference of a "
        "logit between file and trained model, with the same answers for every image; **int8** what `--quantize int8` "
        "cost, in points of accuracy: 146 test images, so that one is 0.7 points, and less than nothing is luck.",
        "",
        "| family | example | query and heads read | trains | exports | parity | int8 |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, title in TITLES.items():
        row = found.get(name)
        if row is None:
            continue
        if "error" in row:
            lines.append(f"| {title} | `{example_of(name)}` | | no: {row['error']} | | | |")
            continue
        reads = POOLED.get(row["pooling"], "the class token")
        drop = f"{row['int8_drop']:+.1f}".replace("+0.0", "0").replace("-0.0", "0")
        parity = f"{row['parity']:.0e}" if row["same_answers"] == 1 else f"{row['parity']:.0e}, other answers"
        lines.append(f"| {title} | `{example_of(name)}` | {reads} | yes | yes | {parity} | {drop} |")
    lines += [
        "",
        "Where no class token is read, the token of a distillation is appended as ever and takes no part in the "
        "pooling; `--method apt`, which shifts the class token, is refused. RADIO has several class tokens: the first "
        "is read. Rotary positions turn queries and keys of patches alone: prompts, and what is appended, stand still.",
        "",
        "## Refused",
        "",
        "| family | example | why |",
        "|---|---|---|",
    ]
    for title, name in REFUSED.items():
        try:
            config = timm.get_pretrained_cfg(name)
            assert config is not None
            check_family(name, config.input_size[-1])
            raise SystemExit(f"{name} is not refused any more: move it into the first table")
        except CdlError as error:
            reason = str(error).partition("cannot be a backbone here: ")[2].partition("; the nearest")[0]
        lines.append(f"| {title} | `{example_of(name)}` | {reason} |")
    lines += ["", "The message names the nearest model that can be a backbone and has weights.", ""]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="families with one of these words, comma-separated")
    parser.add_argument("--page", action="store_true", help="measure nothing")
    parser.add_argument("--missing", action="store_true", help="only those that were never measured")
    given = parser.parse_args()
    found = json.loads(FOUND.read_text(encoding="utf-8")) if FOUND.exists() else {}
    known: set[str] = set()
    words = given.only.split(",") if given.only else [""]
    chosen = [name for name in TITLES if any(word in name for word in words)]
    chosen = [name for name in chosen if not (given.missing and name in found)]
    for name in [] if given.page else chosen:
        began = time.perf_counter()
        with tempfile.TemporaryDirectory(prefix="cdl-backbones-") as folder:
            for it in {TEACHER, name} - known:
                register(it)
                known.add(it)
            try:
                found[name] = measure(name, Path(folder))
            except CdlError as error:
                found[name] = {"error": str(error)}
        print(f"{name}: {found[name]}, {time.perf_counter() - began:.0f} s", flush=True)
        FOUND.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    PAGE.write_text(page(found), encoding="utf-8")


if __name__ == "__main__":
    main()
