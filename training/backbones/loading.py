"""Any plain timm ViT by its full tag, with the hub's weights, a file's, or the package's own."""

from __future__ import annotations

import hashlib
import warnings
from functools import cache
from pathlib import Path
from typing import Any, cast

import safetensors.torch
import timm
import torch
from timm.models import is_model, is_model_pretrained, list_models
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from cdl_deploy.errors import OptionError, WeightsError, nearest
from cdl_deploy.regular_file import open_regular
from cdl_deploy.run.record_parts import BackboneInfo
from cdl_deploy.training.backbones import BACKBONES, Backbone, build_backbone, hub, mini, patch14, small
from cdl_deploy.training.backbones.refusals import refusal, refuse_others
from cdl_deploy.training.backbones.weights_files.described import differences
from cdl_deploy.training.backbones.weights_files.filling import fill
from cdl_deploy.training.backbones.weights_files.fits import find_fits
from cdl_deploy.training.backbones.weights_files.weights import Weights, read_weights

ViT = VisionTransformer | Eva
OWN_MODELS = (*mini.MINI_MODELS, *small.SMALL_MODELS, *patch14.PATCH14_MODELS)
"""Names that this package registers with timm."""


def load_backbone(
    model: str,
    weights: str | None,
    image_size: int | None,
    pixel_range: str = "model",
    blocks: int | None = None,
) -> tuple[Backbone, BackboneInfo]:
    """Build and fill a frozen backbone. With the pixel range `unit` its pixel statistics are mean 0 and std 1.

    `weights`: a file, a folder, or a name on the hub such as `timm/MODEL`; see docs/weights.md. `blocks`: the first so
    many and the final norm, the rest of the weights is left out. Raises WeightsError for an unknown name, no weights,
    or shapes that don't fit; OptionError for more blocks than there are.
    """
    model = known_model(model)
    if weights is not None:
        check_family(model, image_size or _default_size(model))  # before gigabytes are fetched and read
    said = read_weights(hub.located(weights)) if weights is not None else None
    size = image_size or (said.pixels["input_size"][-1] if said and "input_size" in said.pixels else None)
    size = int(size or _default_size(model))
    if weights is None or size != (image_size or _default_size(model)):
        check_family(model, size)
    if said is not None and weights is not None:
        vit = create_vit(model, size)
        _fill_or_name_another(vit, said, model)
        how_read = _how_read(said, vit)
        source = weights if hub.is_name(weights) else Path(weights).name
    else:
        vit = _with_pretrained(model, size)
        how_read = None
        source = "package" if model.split(".")[0] in mini.MINI_MODELS else "hub"
    if blocks is not None:
        cut(vit, blocks, model)
    data = timm.data.resolve_model_data_config(vit)
    pixels: str | None = None
    if said is not None:
        data |= {name: said.pixels[name] for name in ("mean", "std", "interpolation") if name in said.pixels}
        ours = model.partition(".")[0] in OWN_MODELS
        pixels = "file" if {"mean", "std"} <= set(said.pixels) else "model" if ours or "." in model else "assumed"
    if pixel_range == "unit":
        data |= {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    backbone = build_backbone(vit, data["mean"], data["std"])
    tag = cast(dict[str, Any], vit.pretrained_cfg).get("tag")
    full_name = model if "." in model or not tag else f"{model}.{tag}"
    if said is not None:
        full_name = model.partition(".")[0]  # a tag names weights, and these are others
    info = BackboneInfo(
        model=full_name,
        source=source,
        sha256=weights_hash(vit),
        image_size=size,
        mean=tuple(data["mean"]),
        std=tuple(data["std"]),
        interpolation=data["interpolation"] if data["interpolation"] != "random" else "bicubic",
        crop_pct=float(data["crop_pct"]),
        parameters=sum(value.numel() for value in vit.parameters()),
        pixels=pixels,
        weights=how_read,
        blocks=blocks,
    )
    return backbone, info


def cut(vit: ViT, blocks: int, model: str) -> None:
    """Leave the first so many blocks, and the norm after the last. Raises OptionError where there are fewer."""
    if not hasattr(vit, "blocks"):  # a network of another package's family
        raise OptionError(f"--student-blocks {blocks}: {model} keeps its blocks under a name of its own: leave it out")
    depth = len(vit.blocks)
    if not 1 <= blocks <= depth:
        raise OptionError(f"--student-blocks is {blocks}, but {model} has {depth} blocks: give 1 to {depth}")
    vit.blocks = vit.blocks[:blocks]


def rebuild_backbone(info: BackboneInfo, file: Path) -> Backbone:
    """The backbone that a run stored, without hub or package weights."""
    known_model(info.model)
    vit = create_vit(info.model, info.image_size)
    if info.blocks is not None:
        cut(vit, info.blocks, info.model)
    open_regular(file).close()  # a pipe would wait for ever
    vit.load_state_dict(safetensors.torch.load_file(file))
    if weights_hash(vit) != info.sha256:
        raise WeightsError(
            f"{file} does not hold the weights the run was trained on: its hash differs from the record's"
        )
    return build_backbone(vit, info.mean, info.std)


def known_model(model: str, with_weights: bool = True) -> str:
    """The name without a hub's address before it. Raises WeightsError unless timm knows it.

    The error has the nearest ViT, of those that have weights, or of this package's that are to be trained.
    """
    model = model.removeprefix("hf_hub:").removeprefix("hf-hub:").removeprefix("timm/")
    name, _, tag = model.partition(".")
    if not is_model(name):
        plain = [*list_models("vit_*", module="vision_transformer", pretrained=True), *mini.MINI_MODELS]
        known = {full if tag else full.partition(".")[0] for full in plain} if with_weights else set(OWN_MODELS)
        raise WeightsError(f"model '{model}' is unknown to timm{nearest(model, sorted(known))}")
    tags = [full.partition(".")[2] for full in list_models(f"{name}*", pretrained=True) if full.split(".")[0] == name]
    if tag and tag not in tags:
        raise WeightsError(f"model '{name}' has no weights tagged '{tag}'{nearest(tag, tags)}")
    return model


def check_family(model: str, image_size: int) -> None:
    """Raise WeightsError for a network that no family takes, or that cannot be so large, before weights are fetched."""
    if not BACKBONES.others():  # a family of another package may take what ours do not
        refuse_others(model)
    _build_once(model, image_size, tuple(BACKBONES))


@cache
def _build_once(model: str, image_size: int, families: tuple[str, ...]) -> None:
    """`check_family`'s own look at a network: timm takes a tenth of a second to build one, even without memory."""
    with torch.device("meta"):  # no memory, and no time for random values
        network = _create(model, image_size)
    try:
        build_backbone(network, (0.0,) * 3, (1.0,) * 3)
    except WeightsError as error:
        raise WeightsError(refusal(model, str(error))) from None


def create_vit(model: str, image_size: int) -> ViT:
    """The bare network without a classifier, randomly initialised. Raises WeightsError where the size cannot be."""
    return cast(ViT, _create(model, image_size))  # `build_backbone` refuses what is none


def _create(model: str, image_size: int) -> nn.Module:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # timm's remarks on overridden sizes; ours is deliberate
            network: nn.Module = timm.create_model(model, pretrained=False, num_classes=0, **_size(model, image_size))
    except Exception as error:  # noqa: BLE001  timm's models refuse arguments in ways of their own
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise WeightsError(f"model '{model}' cannot be built for {image_size}x{image_size} images: {reason}") from None
    patch = getattr(getattr(network, "patch_embed", None), "patch_size", None)
    own = image_size == _default_size(model)  # SigLIP SO400M/14 at 384 leaves six pixels out, as it was trained
    if isinstance(patch, tuple) and isinstance(network, ViT) and image_size % patch[0] and not own:
        near = sorted({max(1, image_size // patch[0]) * patch[0], -(-image_size // patch[0]) * patch[0]})
        raise WeightsError(
            f"model '{model}' cannot be built for {image_size}x{image_size} images: its patches are "
            f"{patch[0]}x{patch[0]}, so take {' or '.join(map(str, near))} pixels"
        )
    return network


def load_weights_file(vit: ViT, file: Path) -> None:
    """Fill `vit` from a safetensors or timm-format checkpoint; a classifier in the file is left out.

    Position embeddings of another image size are resampled, as timm does. Raises WeightsError naming the first few
    tensors that have the wrong shape or are missing.
    """
    fill(vit, read_weights(file).tensors, file)


def _fill_or_name_another(vit: ViT, weights: Weights, model: str) -> None:
    """Fill the network; where the weights do not fit, the error names the timm model that they are of."""
    try:
        fill(vit, weights.tensors, weights.file)
    except WeightsError as error:
        fits = [fit.model for fit in find_fits(weights).found[:1] if fit.model != model.partition(".")[0]]
        hint = f"; they are of {fits[0]}: choose that model" if fits else ""
        raise WeightsError(f"{error}{hint}") from None
    wrong, _ = differences(weights, vit)
    if wrong:
        raise WeightsError(f"weights {weights.file} are of another network than {model}: {'; '.join(wrong)}")


def _how_read(weights: Weights, vit: ViT) -> str | None:
    """What a user has to know of how the weights were read, and how they differ from timm's."""
    _, slight = differences(weights, vit)
    return "; ".join(filter(None, (weights.words(), *slight))) or None


def weights_hash(vit: ViT) -> str:
    """SHA-256 over names and float32 values of every tensor of the network, in the order of their names."""
    digest = hashlib.sha256()
    for name, value in sorted(vit.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _with_pretrained(model: str, image_size: int) -> ViT:
    options: dict[str, Any] = {"num_classes": 0, **_size(model, image_size)}
    if not is_model_pretrained(model):
        raise WeightsError(
            f"there are no pretrained weights of '{model}' to fetch: give a file with --teacher-weights or "
            "--student-weights"
        )
    if hub.on_the_hub(model) and (reason := hub.unreachable()):
        cached = hub.cached_weights(model)
        if cached is None:
            raise WeightsError(
                f"cannot get pretrained weights of '{model}': the hub cannot be reached ({reason}) and no earlier "
                "download is here; check the network, or give a file with --teacher-weights or --student-weights"
            )
        options["pretrained_cfg_overlay"] = {"file": cached, "custom_load": False}
    try:
        with warnings.catch_warnings(), hub.quiet():
            warnings.simplefilter("ignore")
            network = timm.create_model(model, pretrained=True, **options)
            return cast(ViT, network)  # `build_backbone` refuses what is none
    except Exception as error:  # noqa: BLE001  hub, network and disk errors have no common base
        reason = " ".join(str(error).split())[:200]
        raise WeightsError(
            f"cannot get pretrained weights of '{model}' from the hub ({type(error).__name__}: {reason}): "
            "check the network, or give a file with --teacher-weights or --student-weights"
        ) from None


def _default_size(model: str) -> int:
    config = timm.get_pretrained_cfg(model, allow_unregistered=True)
    return int(config.input_size[-1]) if config is not None else 224


def _size(model: str, image_size: int) -> dict[str, Any]:
    return {} if image_size == _default_size(model) else {"img_size": image_size}
