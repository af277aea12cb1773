"""Students with random weights, exported in every way that `export_graphs.py` measures; no training is needed for that.

Nothing here depends on what a weight is, only on how many there are: CODA-Prompt and KDP on a ViT-S/16 at 224, ten
classes and ten components a task, as a run of `cdl train` would have them.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import timm
import torch
from torch import Tensor, nn

from cdl_deploy.data.preprocessing import Preprocessing
from cdl_deploy.export.calibration import calibrated
from cdl_deploy.export.fp16 import to_fp16
from cdl_deploy.export.graph import ExportGraph
from cdl_deploy.export.onnx_file import export_onnx, save_onnx
from cdl_deploy.export.parity import trained_logits
from cdl_deploy.export.preprocessing import PIXELS_NAME
from cdl_deploy.export.quantise import prepare, quantise_dynamic, quantise_static
from cdl_deploy.export.selection import Select, fix_selection
from cdl_deploy.run.config import MethodConfig
from cdl_deploy.runtime.bundle import Bundle, encode_metadata
from cdl_deploy.runtime.bundle_parts import Method, RunOrigin, Weights
from cdl_deploy.training.backbones import build_backbone
from cdl_deploy.training.backbones.loading import create_vit
from cdl_deploy.training.backbones.protocol import Backbone
from cdl_deploy.training.distillation.kdp import KDPrompts
from cdl_deploy.training.methods.coda import CodaPrompt
from cdl_deploy.training.methods.folded import FixedSelection
from cdl_deploy.training.models.learner import Learner
from cdl_deploy.training.models.teacher_student import TeacherStudent, build_teacher_student

SIZE, CLASSES = 224, 10
MODEL = "vit_small_patch16_224"
ROTARY = "vit_small_patch16_dinov3"
HALF = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class Recipe:
    """One graph. `kind`: `plain`, `reference` (the student, exported as is) or `export` (as `cdl export` does)."""

    kind: str = "export"
    query: str = "full"
    tasks: int = 10
    select: str = "in-graph"
    quantise: str | None = None
    model: str = MODEL


RECIPES = {
    "plain": Recipe("plain"),
    "reference": Recipe("reference"),
    "full": Recipe(),
    "task": Recipe(select="task:3"),
    "block4": Recipe(query="block:4"),
    "full-int8": Recipe(quantise="int8"),
    "full-int8-dynamic": Recipe(quantise="int8-dynamic"),
    "task-int8": Recipe(select="task:3", quantise="int8"),
    "block4-int8": Recipe(query="block:4", quantise="int8"),
    "block4-int8-dynamic": Recipe(query="block:4", quantise="int8-dynamic"),
    "block4-fp16": Recipe(query="block:4", quantise="fp16"),
    "full-100-tasks": Recipe(tasks=100),
    "block4-100-tasks": Recipe(query="block:4", tasks=100),
    "dinov3-plain": Recipe("plain", model=ROTARY),
    "dinov3-full": Recipe(model=ROTARY),
    "dinov3-task": Recipe(select="task:3", model=ROTARY),
    "dinov3-block4": Recipe(query="block:4", model=ROTARY),
    "dinov3-block4-int8": Recipe(query="block:4", quantise="int8", model=ROTARY),
}


def build(name: str, folder: Path, seed: int = 0) -> Path:
    """The file of that graph below `folder`; it is made where there is none."""
    path = folder / f"{name}.onnx"
    if path.exists():
        return path
    print(f"building {path}", file=sys.stderr, flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    recipe = RECIPES[name]
    if recipe.kind == "plain":
        export_as_is(plain_vit(recipe.model, seed), path)
    elif recipe.kind == "reference":
        pair = random_pair(recipe.query, recipe.tasks, MODEL, seed)
        export_as_is(AsTheReference(pair).eval(), path)
        images = random_images(2, seed)
        check(path, pair, pair.student, None, images, ((images.float() / 255 - 0.5) / 0.5).numpy())
    else:
        export_student(recipe, path, recipe.model, seed)
    return path


def random_backbone(model: str, seed: int) -> Backbone:
    """A frozen ViT; biases and scales, which start as zeros and ones, are moved as well."""
    torch.manual_seed(seed)
    backbone = build_backbone(create_vit(model, SIZE), HALF, HALF)
    for parameter in backbone.parameters():
        parameter.data.add_(0.02 * torch.randn_like(parameter))
    return backbone.requires_grad_(False)


def random_pair(query: str, tasks: int, model: str, seed: int) -> TeacherStudent:
    """A student after so many tasks of ten classes."""
    pair = build_teacher_student({"student": random_backbone(model, seed)}, MethodConfig(query=query), seed)
    for _ in range(tasks):
        pair.begin_task(CLASSES, seed)
        for parameter in pair.student.parameters():
            if parameter.requires_grad:
                parameter.data.add_(0.02 * torch.randn_like(parameter))
        pair.student.end_task()
    return pair


def export_student(recipe: Recipe, path: Path, model: str, seed: int) -> None:
    """As `cdl export` does it. The float file's logits are compared with the trained model's."""
    pair = random_pair(recipe.query, recipe.tasks, model, seed)
    learner, select = pair.student, Select.parse(recipe.select)
    images = random_images(16, seed)
    fixed = None if select.in_graph else fix_selection(learner, pair.encoder, select.task, [images])
    network = ExportGraph(pair, learner, pixels=True, fixed=fixed)
    bundle = describe(pair, learner, recipe, path, model, seed)
    graph = export_onnx(network, bundle)
    if recipe.quantise is None:
        save_onnx(graph, path, encode_metadata(bundle))
        check(path, pair, learner, fixed, images[:2], as_pixels(images[:2]))
        return
    prepared = prepare(graph, static=recipe.quantise == "int8")
    if recipe.quantise == "int8":
        prepared, ranges, rounding = calibrated(prepared, [{"image": image[None]} for image in as_pixels(images)])
        graph = quantise_static(prepared, ranges, exact=(PIXELS_NAME,), rounding=rounding)
    else:
        graph = (to_fp16 if recipe.quantise == "fp16" else quantise_dynamic)(prepared)
    save_onnx(graph, path, encode_metadata(bundle))


def describe(pair: TeacherStudent, learner: Learner, recipe: Recipe, path: Path, model: str, seed: int) -> Bundle:
    """What the file of a real run would say, as far as a graph or its size depends on it."""
    classes = tuple(f"a class with a name {i}" for i in range(CLASSES * recipe.tasks))
    tasks = tuple(classes[i : i + CLASSES] for i in range(0, len(classes), CLASSES))
    bundle = Bundle(
        path=path,
        role="student",
        classes=classes,
        tasks=tasks,
        preprocessing=Preprocessing(SIZE, SIZE, SIZE, "bicubic", HALF, HALF, "image"),
        method=Method("coda", "kdp", recipe.query, recipe.select, "selected"),
        weights=Weights(model),
        run=RunOrigin(seed=seed, tasks=recipe.tasks, fingerprint="random"),
        parameters=sum(value.numel() for value in learner.parameters()),
        top_k=5,
    )
    return bundle if recipe.select == "in-graph" else replace(bundle, method=replace(bundle.method, query=None))


def check(
    path: Path,
    pair: TeacherStudent,
    learner: Learner,
    fixed: FixedSelection | None,
    images: Tensor,
    feed: np.ndarray,
) -> None:
    """Raise SystemExit where a logit for `images`, fed as `feed`, is off by more than 1e-4."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    with torch.no_grad():
        expected = trained_logits(pair.encoder, learner, images, fixed.prompts if fixed else None).numpy()
    difference = float(np.abs(session.run(["logits"], {"image": feed})[0] - expected).max())
    print(f"  logits within {difference:.1e} of the trained model's", file=sys.stderr)
    if difference > 1e-4:
        raise SystemExit(f"{path.name} differs from the trained model by {difference:.1e}")


def random_images(count: int, seed: int) -> Tensor:
    """Images [n, 3, 224, 224] of smooth colours."""
    noise = torch.rand(count, 3, 14, 14, generator=torch.Generator().manual_seed(seed))
    smooth = nn.functional.interpolate(noise, SIZE, mode="bicubic").clamp(0, 1)
    return (255 * smooth).round().to(torch.uint8)


def as_pixels(images: Tensor) -> np.ndarray:
    """[n, height, width, 3]"""
    return images.permute(0, 2, 3, 1).contiguous().numpy()


# ---- the two that nothing was done for -------------------------------------------------------------------------------


def plain_vit(model: str, seed: int) -> nn.Module:
    """The classifier somebody would use who learns nothing continually: timm's, with 100 classes."""
    torch.manual_seed(seed)
    return timm.create_model(model, pretrained=False, num_classes=10 * CLASSES, img_size=SIZE).eval()


def export_as_is(module: nn.Module, path: Path) -> None:
    """The ordinary way, from a normalised tensor."""
    batch = torch.export.Dim("batch")
    with torch.no_grad():
        torch.onnx.export(
            module,
            (torch.zeros(2, 3, SIZE, SIZE),),
            str(path),
            dynamo=True,
            input_names=["image"],
            output_names=["logits"],
            dynamic_shapes=({0: batch},),
            external_data=False,
            opset_version=20,
            verbose=False,
        )


class AsTheReference(nn.Module):
    """The student as the paper's code computes it: nothing shared, skipped or folded, whatever it costs.

    The query is a pass of timm's own to the last token. In each prompted block

        w = Σ_d normalise(q ∘ A)_d · normalise(K)_d        by elementwise products [B, K, D]

    and every block of the prompted pass computes every token; class head and KD head stand apart.
    """

    def __init__(self, pair: TeacherStudent) -> None:
        super().__init__()
        student = pair.student
        assert isinstance(student.method, CodaPrompt)
        assert isinstance(student.distillation, KDPrompts)
        self.backbone, self.class_head = student.backbone, student.class_head
        self.method, self.distillation = student.method, student.distillation

    def forward(self, image: Tensor) -> Tensor:
        backbone = self.backbone
        query = backbone.vit.forward_features(image)[:, 0]
        tokens = self.distillation.append_token(backbone.embed_normalised(image))
        constant = self.distillation.block_prompts()
        for index in range(backbone.depth):
            prompt = constant.get(index)
            own = self.method.own_blocks().get(index)
            tokens = self.run_block(index, tokens, None if own is None else self.prompt(own, query), prompt)
        tokens = backbone.final_norm(tokens)
        return self.distillation.predict(self.class_head(tokens[:, 0]), self.distillation.extra_logits(tokens))

    def prompt(self, block: Any, query: Tensor) -> Tensor:
        """[B, 2p, D]"""
        asked = torch.einsum("bd,kd->bkd", query, block.attentions.all())
        asked = nn.functional.normalize(asked, dim=2)
        keys = nn.functional.normalize(block.keys.all(), dim=1)
        weights = torch.einsum("bkd,kd->bk", asked, keys)
        return torch.einsum("bk,kld->bld", weights, block.prompts.all())

    def run_block(self, index: int, tokens: Tensor, before: Tensor | None, constant: Any) -> Tensor:
        """timm's block with prefix rows; every token comes out."""
        backbone = self.backbone
        block, attention = backbone.vit.blocks[index], backbone.vit.blocks[index].attn
        batch, count, width = tokens.shape
        qkv = attention.qkv(block.norm1(tokens)).reshape(batch, count, 3, backbone.heads, -1).permute(2, 0, 3, 1, 4)
        query, key, value = qkv.unbind(0)

        def by_head(rows: Tensor) -> Tensor:
            return rows.reshape(rows.shape[0], rows.shape[1], backbone.heads, -1).permute(0, 2, 1, 3)

        if before is not None:
            rows = before.shape[1] // 2
            key = torch.cat([by_head(before[:, :rows]), key], dim=2)
            value = torch.cat([by_head(before[:, rows:]), value], dim=2)
        if constant is not None and constant.suffix is not None:
            size = (batch, -1, -1, -1)
            key = torch.cat([key, by_head(constant.suffix[0]).expand(size)], dim=2)
            value = torch.cat([value, by_head(constant.suffix[1]).expand(size)], dim=2)
        scores = (query @ key.transpose(-2, -1)) * attention.scale
        mixed = (scores.softmax(dim=-1) @ value).transpose(1, 2).reshape(batch, count, width)
        tokens = tokens + attention.proj(mixed)
        added: Tensor = block.mlp(block.norm2(tokens))
        return tokens + added
