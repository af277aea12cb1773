"""Pretrain a plain timm ViT on an image folder, as small ViTs want it on small images.

    python -m cdl_deploy.training.recipes.pretrain_photos --data data/tinyimagenet --model vit_small_patch4_32 \\
        --epochs 150 --batch-size 1024 --out weights
    python -m cdl_deploy.training.recipes.pretrain_photos --data data/tinyimagenet --model vit_tiny_patch4_32 \\
        --epochs 300 --batch-size 1024 --out weights

All images are decoded once and stay on the device, and so does their augmentation: crops, RandAugment, mixup or CutMix,
random erasing. Stochastic depth, label smoothing 0.1, Muon for the matrices inside the blocks and AdamW for the rest, a
cosine schedule, an exponential moving average of the weights, bf16 autocast and Muon's products in bf16 on a GPU
(`--bf16`: on a CPU as well, which without avx512_bf16 or amx_bf16 is many times slower than the float32 it has else).

Every step draws from generators seeded by (seed, step): an interrupted run goes on exactly where it stopped when the
same command is given again. Writes `<out>/<model>.safetensors` (half precision, the averaged weights, for `cdl train
--student-weights`) and `<out>/<model>.json` (seed, cost, machine, versions, top-1 on the validation images).
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import timm
import torch
import torch.nn.functional as F
from timm.data import resolve_model_data_config
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from cdl_deploy.data.preprocessing import ResizeCrop
from cdl_deploy.data.sources import open_source
from cdl_deploy.errors import DataError, OptionError, WeightsError
from cdl_deploy.files import write_json
from cdl_deploy.training.backbones.loading import known_model
from cdl_deploy.training.data.resident import ResidentImages
from cdl_deploy.training.recipes.augmentation import erase, mix, rand_augment, random_resized_crop
from cdl_deploy.training.recipes.pretraining import State, learning_rate, make_optimizers, save_half, update_average
from cdl_deploy.training.seeds import derive_seed

EVALUATION_BATCH = 500


@dataclass(frozen=True)
class Recipe:
    """What decides the result, beside the images."""

    model: str
    """timm name of a plain ViT."""
    epochs: int = 150
    """How often every image is seen."""
    batch_size: int = 1024
    """Images a step."""
    seed: int = 0
    """Initial values, order, augmentation."""
    drop_path: float = 0.1
    """Stochastic depth: share of residual branches left out in the last block, fewer in earlier ones."""
    augment: bool = True
    """RandAugment, mixup or CutMix, and erasing; without, crops and flips only, for few epochs."""
    lr_scale: float = 1.0
    """Factor on the learning rates of both optimisers."""
    bf16: bool | None = None
    """bf16 autocast; by default on a GPU."""
    compile: bool = False
    """Compile the model with torch.compile."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise OptionError(f"--{name.replace('_', '-')} is {getattr(self, name)}, expected at least 1")
        known_model(self.model, with_weights=False)


class Pretraining:
    """One model being pretrained."""

    def __init__(self, recipe: Recipe, data: Path, out: Path, device: torch.device) -> None:
        self.recipe, self.out, self.device = recipe, out, device
        source = open_source(str(data), None, skip_bad=False)
        self.classes = source.classes
        torch.manual_seed(recipe.seed)
        model = timm.create_model(recipe.model, num_classes=len(self.classes), drop_path_rate=recipe.drop_path)
        if not isinstance(model, VisionTransformer):
            raise WeightsError(f"the model is a {type(model).__name__}, expected a plain ViT: choose a vit_* model")
        config = resolve_model_data_config(model)
        self.preprocessing = ResizeCrop.square(
            config["input_size"][1], config["input_size"][1], config["interpolation"]
        )
        self.mean, self.std = (torch.tensor(config[k], device=device).view(1, 3, 1, 1) for k in ("mean", "std"))
        self.train = ResidentImages(source.train, self.preprocessing, device)
        self.test = ResidentImages(source.test, self.preprocessing, device)
        self.model = model.to(device)
        self.average = copy.deepcopy(self.model).eval()
        self.bf16 = device.type == "cuda" if recipe.bf16 is None else recipe.bf16
        self.optimizers = make_optimizers(self.model, self.bf16)
        self.peaks = [optimizer.param_groups[0]["lr"] * recipe.lr_scale for optimizer in self.optimizers]
        self.state = State(
            out / f"{recipe.model}.state.safetensors",
            json.dumps(asdict(recipe)),
            self.model,
            self.average,
            self.optimizers,
        )
        self.compiled = cast(nn.Module, torch.compile(self.model)) if recipe.compile else self.model
        self.steps_an_epoch = max(1, len(self.train) // recipe.batch_size)
        self.steps = recipe.epochs * self.steps_an_epoch

    def normalise(self, pixels: Tensor) -> Tensor:
        """Pixels 0 to 255 → what the model takes."""
        return (pixels.float() / 255 - self.mean) / self.std

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Augmented images, normalised [B, 3, size, size], and soft labels [B, C] of one step."""
        recipe = self.recipe
        epoch, place = divmod(step, self.steps_an_epoch)
        order = torch.randperm(
            len(self.train), generator=torch.Generator().manual_seed(derive_seed(recipe.seed, "order", epoch))
        )
        chosen = order[place * recipe.batch_size : (place + 1) * recipe.batch_size].to(self.device)
        pixels, labels = self.train.pixels[chosen], self.train.labels[chosen]
        generator = torch.Generator(self.device).manual_seed(derive_seed(recipe.seed, "crop", step))
        if recipe.augment:
            pixels = rand_augment(pixels)
        images = random_resized_crop(self.normalise(pixels), generator)
        if not recipe.augment:
            return images, F.one_hot(labels, len(self.classes)).float()
        images, soft = mix(images, labels, len(self.classes))
        return erase(images, generator), soft

    def step(self, step: int) -> Tensor:
        """One step of both optimisers; returns the loss."""
        self.model.train()
        torch.manual_seed(derive_seed(self.recipe.seed, "step", step))  # for torchvision and stochastic depth
        images, soft = self.batch(step)
        for optimizer, peak in zip(self.optimizers, self.peaks, strict=True):
            optimizer.param_groups[0]["lr"] = learning_rate(step, self.steps, peak)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            logits = self.compiled(images)
        loss = F.cross_entropy(logits.float(), soft, label_smoothing=0.1)
        self.model.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        update_average(self.average, self.model, step)
        return loss.detach()

    @torch.no_grad()
    def top1(self, model: nn.Module) -> float:
        """Accuracy in percent on the validation images."""
        right = 0
        for pixels, labels in zip(
            self.test.pixels.split(EVALUATION_BATCH), self.test.labels.split(EVALUATION_BATCH), strict=True
        ):
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
                right += int((model(self.normalise(pixels)).argmax(1) == labels).sum())
        return 100 * right / len(self.test)

    def go(self, save_seconds: float = 120.0) -> dict[str, Any]:
        """To the end, saving every `save_seconds`; returns the record that is written beside the weights."""
        start, spent = self.state.load()
        began = saved = time.perf_counter()
        losses: list[Tensor] = []
        for step in range(start, self.steps):
            losses.append(self.step(step))
            now, end_of_epoch = time.perf_counter(), (step + 1) % self.steps_an_epoch == 0
            if now - saved > save_seconds or step + 1 == self.steps:
                self.state.save(step + 1, spent + now - began)
                save_half(self.average, self.out / f"{self.recipe.model}.safetensors")
                saved = time.perf_counter()
            if end_of_epoch:
                loss = float(torch.stack(losses).mean())
                epoch, top1 = (step + 1) // self.steps_an_epoch, self.top1(self.average)
                seconds = spent + time.perf_counter() - began
                print(
                    f"epoch {epoch}/{self.recipe.epochs}  loss {loss:.3f}  top-1 {top1:.2f} %  {seconds:.0f} s",
                    flush=True,
                )
                losses.clear()
        return self.record(spent + time.perf_counter() - began)

    def record(self, seconds: float) -> dict[str, Any]:
        """What was made, at what cost, and how good it is; measured on the half-precision file."""
        recipe, file = self.recipe, self.out / f"{self.recipe.model}.safetensors"
        shipped = timm.create_model(recipe.model, num_classes=len(self.classes), checkpoint_path=str(file)).eval()
        record = {
            **asdict(recipe),
            "bf16": self.bf16,
            "classes": len(self.classes),
            "train_images": len(self.train),
            "validation_images": len(self.test),
            "validation_top1": round(self.top1(shipped.to(self.device)), 2),
            "parameters": sum(value.numel() for value in shipped.parameters()),
            "megabytes": round(file.stat().st_size / 1e6, 2),
            "seconds": round(seconds),
            "machine": machine(self.device),
            "versions": {"torch": torch.__version__, "timm": timm.__version__},
        }
        write_json(self.out / f"{recipe.model}.json", record)
        return record


def machine(device: torch.device) -> str:
    """The device in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{torch.get_num_threads()} threads, {platform.machine()}, {platform.system()}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Pretrain the model that the command line names, and print its record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="image folder: train/CLASS/… with val/ or test/")
    parser.add_argument("--model", required=True)
    parser.add_argument("--epochs", type=int, default=Recipe.epochs)
    parser.add_argument("--batch-size", type=int, default=Recipe.batch_size)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--drop-path", type=float, default=Recipe.drop_path)
    parser.add_argument("--lr-scale", type=float, default=Recipe.lr_scale)
    parser.add_argument("--plain", action="store_true", help="crops and flips only: better for few epochs")
    parser.add_argument("--bf16", action=argparse.BooleanOptionalAction)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args(arguments)
    if given.threads:
        torch.set_num_threads(given.threads)
    try:
        recipe = Recipe(
            given.model, given.epochs, given.batch_size, given.seed, given.drop_path, not given.plain, given.lr_scale,
            given.bf16, given.compile,
        )  # fmt: skip
        record = Pretraining(recipe, given.data, given.out, torch.device(given.device)).go()
    except (DataError, OptionError, WeightsError) as error:
        parser.error(str(error))
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()
