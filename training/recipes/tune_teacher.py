"""Tune a teacher's last blocks on labelled images; the tokens that they read are computed once.

The blocks before stay as they are: their tokens lie on disk in half precision (`distil_tokens.TeacherTokens`), and an
epoch costs what the last blocks cost. The loss is the cross-entropy of a linear layer on class token and mean of the
patches, which is thrown away afterwards. Images are seen as they are, without augmentation: the tokens are those of the
very image, so few epochs are enough, and more would learn the images by heart.
"""

from __future__ import annotations

import copy
import json
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from cdl_deploy.data.labelled import LabelledImages
from cdl_deploy.errors import OptionError
from cdl_deploy.training.recipes.backbone_probes import decode
from cdl_deploy.training.recipes.distil_tokens import BATCH, HELD_OUT, Recipe, Say, TeacherTokens
from cdl_deploy.training.recipes.pretraining import State, learning_rate, update_average
from cdl_deploy.training.seeds import derive_seed


class Tuning:
    """A teacher whose last blocks are on their way."""

    def __init__(self, recipe: Recipe, vit: VisionTransformer, tokens: TeacherTokens, file: Path) -> None:
        """`vit` is the teacher, whose last blocks begin as they are; `file` is where its weights go, and beside it what
        a later run needs. Raises OptionError where no block is left to tune."""
        blocks = tokens.blocks or 0
        if not 0 < blocks < len(vit.blocks):
            raise OptionError(f"--frozen-blocks is {blocks}, expected 1 to {len(vit.blocks) - 1}: the rest is tuned")
        self.recipe, self.tokens, self.file, self.vit = recipe, tokens, file, vit
        self.device, self.first = tokens.teacher.mean.device, 1 + tokens.teacher.layout.registers
        classes = int(tokens.labels.max()) + 1
        torch.manual_seed(derive_seed(recipe.seed, "tuned head"))
        own = nn.ModuleDict({"blocks": nn.Sequential(*list(vit.blocks)[blocks:]), "norm": vit.norm})
        self.model = copy.deepcopy(own)
        self.model["head"] = nn.Linear(2 * vit.embed_dim, classes)
        self.model.to(self.device).requires_grad_(True).train()
        self.average = copy.deepcopy(self.model).eval()
        head = list(self.model["head"].parameters())
        rest = [value for name, value in self.model.named_parameters() if not name.startswith("head.")]
        groups = [{"params": rest, "scale": 0.1}, {"params": head, "scale": 1.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=recipe.lr, betas=(0.9, 0.98), weight_decay=0.02)
        begun_as = json.dumps({**asdict(recipe), "images": len(tokens), **tokens.about})
        self.state = State(file.with_suffix(".state.safetensors"), begun_as, self.model, self.average, [self.optimizer])
        self.steps_an_epoch = len(tokens) // recipe.batch_size
        self.steps = recipe.epochs * self.steps_an_epoch

    def logits(self, model: nn.ModuleDict, tokens: Tensor) -> Tensor:
        """Of images whose tokens [B, N, D] after the frozen blocks these are."""
        found = model["norm"](model["blocks"](tokens.to(self.device)))
        return cast(Tensor, model["head"](torch.cat([found[:, 0], found[:, self.first :].mean(dim=1)], dim=1)))

    def step(self, step: int) -> float:
        """One step; returns its loss."""
        epoch, place = divmod(step, self.steps_an_epoch)
        generator = torch.Generator().manual_seed(derive_seed(self.recipe.seed, "tuning", epoch))
        order = torch.randperm(len(self.tokens), generator=generator)
        places = order[place * self.recipe.batch_size : (place + 1) * self.recipe.batch_size]
        for group in self.optimizer.param_groups:
            group["lr"] = group["scale"] * learning_rate(step, self.steps, self.recipe.lr)
        labels = self.tokens.labels[places].to(self.device)
        loss = F.cross_entropy(self.logits(self.model, self.tokens.read(places.tolist())), labels)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        update_average(self.average, self.model, step)
        return float(loss.detach())

    @torch.no_grad()
    def top1(self, images: LabelledImages) -> float:
        """Percent of up to HELD_OUT other images, chosen by the seed, that the averaged model names right."""
        generator = torch.Generator().manual_seed(derive_seed(self.recipe.seed, "held out"))
        order = torch.randperm(len(images.items), generator=generator)[:HELD_OUT]
        labels, right = torch.from_numpy(images.labels), 0
        with ThreadPoolExecutor() as pool:
            for places in order.split(BATCH):
                pixels = decode([images.items[i] for i in places.tolist()], self.tokens.preprocessing, pool)
                found = self.logits(self.average, self.tokens.compute(pixels)).argmax(dim=1).cpu()
                right += int((found == labels[places]).sum())
        return 100 * right / len(order)

    def go(self, held_out: LabelledImages, say: Say, save_seconds: float = 120.0) -> dict[str, Any]:
        """To the end, saving every `save_seconds`; the teacher gets its tuned blocks, averaged. Returns the record."""
        start, spent = self.state.load()
        began = saved = time.perf_counter()
        losses = list[float]()
        for step in range(start, self.steps):
            losses.append(self.step(step))
            now = time.perf_counter()
            if now - saved > save_seconds or step + 1 == self.steps:
                self.state.save(step + 1, spent + now - began)
                saved = now
            if (step + 1) % 20 == 0 or step + 1 == self.steps:
                recent = losses[-20:]
                say(f"step {step + 1}/{self.steps}  loss {sum(recent) / len(recent):.3f}  {spent + now - began:.0f} s")
        blocks = cast(nn.Sequential, self.average["blocks"])
        for own, tuned in zip(list(self.vit.blocks)[self.tokens.blocks :], blocks, strict=True):
            own.load_state_dict(tuned.state_dict())
        self.vit.norm.load_state_dict(self.average["norm"].state_dict())
        record = {**asdict(self.recipe), "frozen_blocks": self.tokens.blocks, "images": len(self.tokens)}
        del record["student"]
        record |= {"steps": self.steps, "seconds": round(spent + time.perf_counter() - began)}
        return record | {"held_out_top1": round(self.top1(held_out), 2)}
