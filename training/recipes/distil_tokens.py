"""Distil a student towards the tokens that a frozen teacher gives after its final norm, which are computed once.

The tokens lie on disk in half precision, in shards that are written whole, no more of them than is allowed: an
interrupted run computes only those that are missing. The loss is the share of the tokens' variance that the student
does not explain, of class token, patches, and mean of the patches alike. Images are seen as they are, without
augmentation: the tokens are those of the very image.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from cdl_deploy.data.folder import images_below, split_by_name
from cdl_deploy.data.labelled import LabelledImages, from_files
from cdl_deploy.data.preprocessing import ResizeCrop
from cdl_deploy.data.sources import fingerprint
from cdl_deploy.errors import DataError, OptionError
from cdl_deploy.files import discard_abandoned, write_atomic, write_json
from cdl_deploy.training.backbones import Backbone
from cdl_deploy.training.backbones.packed import can_pack
from cdl_deploy.training.recipes.backbone_probes import decode
from cdl_deploy.training.recipes.pretraining import State, learning_rate, save_tensors, update_average
from cdl_deploy.training.seeds import derive_seed

SHARD = 500
"""Images in a file of tokens: 19 MB of a ViT-S with 49 patches."""
BATCH = 100
HELD_OUT = 500
"""Images that nothing is learned from."""
Say = Callable[[str], None]


@dataclass(frozen=True)
class Recipe:
    """What decides the result, beside images, teacher, and the student's first weights."""

    student: str
    """timm name of a plain ViT."""
    epochs: int = 4
    """How often every image is seen."""
    batch_size: int = 64
    """Images a step."""
    lr: float = 3e-4
    """Largest learning rate of AdamW."""
    gigabytes: float = 4.0
    """Most that the teacher's tokens may take on disk; as many images are used as that is enough for."""
    images: int | None = None
    """Most images that are used."""
    seed: int = 0
    """Which images, and their order."""

    def __post_init__(self) -> None:
        for name, value, least in (
            ("epochs", self.epochs, 1),
            ("batch-size", self.batch_size, 1),
            ("tune-images", self.batch_size if self.images is None else self.images, self.batch_size),
        ):
            if value < least:
                raise OptionError(f"--{name} is {value}, expected at least {least}")


def images_below_folder(option: str, folder: Path) -> tuple[LabelledImages, LabelledImages]:
    """Images to learn from without labels, and others to measure on: those below train/ and below val/ or test/, or of
    a folder without train/ all below it, one in twenty of them to measure on, chosen by name. They are not decoded yet.

    Raises DataError where there are none.
    """
    train = folder / "train"
    held = next((it for it in (folder / "val", folder / "test") if it.is_dir()), None) if train.is_dir() else None
    paths = images_below(train if held else folder)
    if not paths:
        raise DataError(f"{option} {folder}: no image below {train if held else folder}, expected a folder of images")
    if held:
        learned, others = paths, images_below(held)
    else:
        parts = split_by_name({"": paths}, 1 / 20, folder)
        learned, others = (files[""] for files in parts)
    return from_files(str(folder), {"": learned}), from_files(str(folder), {"": others})


class TeacherTokens:
    """The tokens of the first images of a shuffled data set, as the teacher gives them; a folder of shards."""

    what = "tokens"
    """In words."""

    def __init__(
        self,
        folder: Path,
        teacher: Backbone,
        teacher_sha256: str,
        images: LabelledImages,
        preprocessing: ResizeCrop,
        recipe: Recipe,
        blocks: int | None = None,
    ) -> None:
        """`blocks`: the tokens after the teacher's first so many blocks, as they are, instead of those after its norm.

        Raises OptionError where the folder holds tokens of something else, or no shard is allowed.
        """
        self.folder, self.teacher, self.preprocessing, self.blocks = folder, teacher, preprocessing, blocks
        order = torch.randperm(
            len(images.items), generator=torch.Generator().manual_seed(derive_seed(recipe.seed, "tokens"))
        )
        tokens = teacher.layout.count
        allowed = int(recipe.gigabytes * 1e9 / (2 * tokens * teacher.width)) // SHARD * SHARD
        if len(order) < recipe.batch_size:
            raise OptionError(
                f"{images.source} has {len(order)} images to learn from, expected at least a batch of "
                f"{recipe.batch_size} (--batch-size)"
            )
        count = min(len(order), allowed, recipe.images or len(order))
        if count < recipe.batch_size:
            raise OptionError(
                f"--tokens-gigabytes is {recipe.gigabytes}, which is enough for {count} images, "
                f"expected at least a batch of {recipe.batch_size}: allow more"
            )
        self.items = [images.items[place] for place in order[:count].tolist()]
        self.labels = torch.from_numpy(images.labels)[order[:count]]
        self.about = {
            "teacher_sha256": teacher_sha256,
            "seed": recipe.seed,
            "images_in_all": fingerprint(images.items),
            "preprocessing": asdict(preprocessing),
            **({} if blocks is None else {"blocks": blocks}),
        }

    def __len__(self) -> int:
        return len(self.items)

    @torch.no_grad()
    def compute(self, pixels: Tensor) -> Tensor:
        """The tokens of these images, on the teacher's device."""
        tokens = self.teacher.embed(pixels.to(self.teacher.mean.device))
        if self.blocks is not None:
            return self.teacher.run_blocks(tokens, 0, self.blocks)
        return self.teacher.final_norm(self.teacher.run_blocks(tokens, 0, self.teacher.depth))

    def fill(self, say: Say) -> None:
        """Compute the shards that are not there."""
        record = self.folder / "tokens.json"
        try:
            known = json.loads(record.read_text(encoding="utf-8")) if record.exists() else self.about
        except ValueError:
            known = None
        if known != self.about:
            raise OptionError(f"{self.folder} holds {self.what} of another teacher, seed, or data set: remove it")
        write_json(record, self.about)
        missing = [number for number in range(-(-len(self) // SHARD)) if not self._has(number)]
        device = self.teacher.mean.device
        with ThreadPoolExecutor() as pool, self.teacher.packed_layers() if can_pack(device) else nullcontext():
            for done, number in enumerate(missing):
                say(f"the teacher's {self.what}: shard {done + 1}/{len(missing)}")
                items, parts = self.items[number * SHARD : (number + 1) * SHARD], []
                for start in range(0, len(items), BATCH):
                    pixels = decode(items[start : start + BATCH], self.preprocessing, pool)
                    parts.append(self.compute(pixels).half().cpu())
                discard_abandoned(self._shard(number))
                content = torch.cat(parts).numpy()
                write_atomic(self._shard(number), lambda path, content=content: np.save(path, content))  # type: ignore[misc]

    def read(self, places: list[int]) -> Tensor:
        """The tokens [B, N, D] of those images."""
        shards = {place // SHARD for place in places}
        content = {number: np.load(self._shard(number), mmap_mode="r") for number in shards}
        return torch.from_numpy(np.stack([content[place // SHARD][place % SHARD] for place in places])).float()

    def _shard(self, number: int) -> Path:
        return self.folder / f"tokens-{number:05d}.npy"

    def _has(self, number: int) -> bool:
        """Whether a shard is there, whole, and long enough: the last one may have been written for fewer images."""
        try:
            found = len(np.load(self._shard(number), mmap_mode="r"))
        except (OSError, ValueError):
            return False
        return found >= len(self.items[number * SHARD : (number + 1) * SHARD])


class Distillation:
    """One student on its way to its teacher's tokens."""

    decay = 0.998
    """Of the average over steps, which is what the student becomes."""

    def __init__(self, recipe: Recipe, student: VisionTransformer, tokens: TeacherTokens, file: Path) -> None:
        """`student` begins as it is given; `file` is where its weights go, and beside it what a later run needs."""
        self.recipe, self.tokens, self.file = recipe, tokens, file
        self.device, self.pool = tokens.teacher.mean.device, ThreadPoolExecutor()
        side = student.patch_embed.img_size[0]
        self.view = ResizeCrop.square(side, side, tokens.preprocessing.interpolation)
        torch.manual_seed(derive_seed(recipe.seed, "head"))
        self.model = nn.ModuleDict({"vit": student, "head": self.make_head(student)})
        self.model.to(self.device).requires_grad_(True).train()
        self.average = copy.deepcopy(self.model).eval()
        self.first = tokens.teacher.layout.first_patch
        # Not of layer scales, norms, biases, tokens and positions: decay would only pull them from where they began.
        decayed = [value for value in self.model.parameters() if value.ndim == 2]
        rest = [value for value in self.model.parameters() if value.ndim != 2]
        groups = [{"params": decayed, "weight_decay": 0.02}, {"params": rest, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=recipe.lr, betas=(0.9, 0.98))
        begun_as = json.dumps({**asdict(recipe), "images": len(tokens), **tokens.about})
        self.state = State(file.with_suffix(".state.safetensors"), begun_as, self.model, self.average, [self.optimizer])
        self.steps_an_epoch = len(tokens) // recipe.batch_size
        self.steps = recipe.epochs * self.steps_an_epoch

    def make_head(self, student: VisionTransformer) -> nn.Module:
        """From the student's tokens to the teacher's."""
        width = self.tokens.teacher.width
        return nn.Identity() if student.embed_dim == width else nn.Linear(student.embed_dim, width)

    def parts(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Class token [B, D], patches [B, P, D], mean of the patches [B, D]."""
        patches = tokens[:, self.first :]
        return tokens[:, 0], patches, patches.mean(dim=1)

    def measured(self) -> list[Tensor]:
        """What the loss must know of the teacher's tokens: each part's variance, summed over the widths; by the first
        shard."""
        tokens = self.tokens.read(list(range(min(SHARD, len(self.tokens)))))
        return [part.flatten(0, -2).var(dim=0).sum().to(self.device) for part in self.parts(tokens)]

    def loss(self, model: nn.ModuleDict, pixels: Tensor, wanted: Tensor, measured: list[Tensor]) -> Tensor:
        """The share of variance that is not explained, the mean of the three parts'."""
        teacher = self.tokens.teacher
        images = (pixels.to(self.device).float() / 255 - teacher.mean) / teacher.std
        found = model["head"](cast(VisionTransformer, model["vit"]).forward_features(images))
        losses = [
            (ours - theirs).square().sum(dim=-1).mean() / variance
            for ours, theirs, variance in zip(self.parts(found), self.parts(wanted), measured, strict=True)
        ]
        return torch.stack(losses).mean()

    def step(self, step: int, measured: list[Tensor]) -> Tensor:
        """One step; returns its loss."""
        recipe = self.recipe
        epoch, place = divmod(step, self.steps_an_epoch)
        order = torch.randperm(
            len(self.tokens), generator=torch.Generator().manual_seed(derive_seed(recipe.seed, "order", epoch))
        )
        places = order[place * recipe.batch_size : (place + 1) * recipe.batch_size].tolist()
        pixels = decode([self.tokens.items[i] for i in places], self.view, self.pool)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(step, self.steps, recipe.lr)
        loss = self.loss(self.model, pixels, self.tokens.read(places).to(self.device), measured)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        update_average(self.average, self.model, step, self.decay)
        return loss.detach()

    @torch.no_grad()
    def unexplained(self, images: LabelledImages, measured: list[Tensor]) -> float:
        """The averaged student's loss on up to HELD_OUT other images, chosen by the seed."""
        generator = torch.Generator().manual_seed(derive_seed(self.recipe.seed, "held out"))
        order = torch.randperm(len(images.items), generator=generator)[:HELD_OUT]
        losses = []
        for places in order.split(BATCH):
            items = [images.items[i] for i in places.tolist()]
            wanted = self.tokens.compute(decode(items, self.tokens.preprocessing, self.pool))
            pixels = decode(items, self.view, self.pool)
            losses.append(float(self.loss(self.average, pixels, wanted, measured)) * len(items))
        return sum(losses) / len(order)

    def go(self, held_out: LabelledImages, say: Say, save_seconds: float = 120.0) -> dict[str, Any]:
        """To the end, saving every `save_seconds`; returns what it came to."""
        start, spent = self.state.load()
        if start:
            say(f"goes on after step {start}/{self.steps}")
        began = saved = time.perf_counter()
        measured, losses = self.measured(), []
        for step in range(start, self.steps):
            losses.append(float(self.step(step, measured)))
            now = time.perf_counter()
            if now - saved > save_seconds or step + 1 == self.steps:
                self.state.save(step + 1, spent + now - began)
                saved = now
            if (step + 1) % 20 == 0 or step + 1 == self.steps:
                share = sum(losses[-20:]) / len(losses[-20:])
                say(f"step {step + 1}/{self.steps}  unexplained in training {share:.3f}  {spent + now - began:.0f} s")
        record = {**asdict(self.recipe), "images": len(self.tokens), "steps": self.steps}
        record["seconds"] = round(spent + time.perf_counter() - began)
        record["unexplained_variance"] = round(self.unexplained(held_out, measured), 4)
        if record["unexplained_variance"] >= 1:
            say("of images that it has not seen, the student says no more than their mean would: it wants more images")
        vit = cast(VisionTransformer, self.average["vit"])
        save_tensors({name: value.cpu().contiguous() for name, value in vit.state_dict().items()}, self.file)
        return record
