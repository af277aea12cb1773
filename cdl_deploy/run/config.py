"""The configuration of a run: one frozen dataclass per concern, checked when it is built, saved in the run.

Messages name the command-line option, since that is where almost every value comes from.
"""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cdl_deploy.errors import OptionError, nearest

CLASS_ORDERS = ("shuffled", "natural")
KD_TOKEN_STARTS = ("class-token", "uniform", "none")
KD_PROMPT_STARTS = ("uniform", "orthogonal")
KD_CLASSES = ("task", "seen")
STUDENT_HEADS = ("method", "cosine")
CALIBRATIONS = ("none", "statistics")
HEAD_STARTS = ("zeros", "linear")
PRECISIONS = ("auto", "fp32", "bf16")
SCHEDULES = ("cosine", "cosine-late")
PIXEL_RANGES = ("model", "unit")
AUGMENTATIONS = ("auto", "photo", "gentle", "none")
LOGS = ("none", "tensorboard", "wandb")


def _at_least(option: str, value: float, low: float, high: float = math.inf) -> None:
    if not low <= value <= high:
        bound = f"at least {low:g}" if math.isinf(high) else f"from {low:g} to {high:g}"
        raise OptionError(f"{option} is {value:g}, expected {bound}")


def check_name(option: str, name: str, known: tuple[str, ...]) -> None:
    """Raise OptionError, with the nearest known name, unless `name` is one of `known`."""
    if name not in known:
        raise OptionError(f"{option} '{name}' is unknown, expected one of {', '.join(known)}{nearest(name, known)}")


@dataclass(frozen=True)
class DataConfig:
    """Which images, in which tasks."""

    data: str = "digits"
    """`digits`, or the path of an image folder."""
    tasks: int | None = None
    """Number of tasks; the classes are dealt out as evenly as possible."""
    classes_per_task: int | None = None
    """Classes a task; the last task may be smaller."""
    task_file: str | None = None
    """YAML file that lists the classes of each task by name."""
    holdout: float | None = None
    """Share of every class held out for testing where the folder has no test/ or val/."""
    class_order: str = "shuffled"
    """`shuffled` by the seed, or `natural` (alphabetical)."""
    skip_bad: bool = False
    """Go on without unreadable images and report them."""
    augmentation: str = "auto"
    """`photo` (RandomResizedCrop and flip), `gentle` (small crops, no flip), `none`; `auto` follows the data."""
    image_size: int | None = None
    """Side of the square image both models see, in pixels; the student's own size by default."""

    def __post_init__(self) -> None:
        chosen = [self.tasks is not None, self.classes_per_task is not None, self.task_file is not None]
        if sum(chosen) > 1:
            raise OptionError("--tasks, --classes-per-task and --task-file exclude each other: give one of them")
        if self.tasks is not None:
            _at_least("--tasks", self.tasks, 1)
        if self.classes_per_task is not None:
            _at_least("--classes-per-task", self.classes_per_task, 1)
        if self.holdout is not None and not 0 < self.holdout < 1:
            raise OptionError(f"--holdout is {self.holdout:g}, expected a share between 0 and 1, such as 0.2")
        if self.image_size is not None:
            _at_least("--image-size", self.image_size, 8)
        check_name("--class-order", self.class_order, CLASS_ORDERS)
        check_name("--augmentation", self.augmentation, AUGMENTATIONS)


@dataclass(frozen=True)
class ModelConfig:
    """Which two backbones, and where their weights come from."""

    teacher: str = "mini_teacher"
    """timm name of the teacher's ViT, with its tag."""
    student: str = "mini_student"
    """timm name of the student's ViT, with its tag."""
    teacher_weights: str | None = None
    """Weights file of the teacher, instead of the hub's."""
    student_weights: str | None = None
    """Weights file of the student, instead of the hub's."""
    teacher_run: str | None = None
    """Run whose teacher is taken over, task by task, instead of teaching one: same tasks, method and backbones."""
    pixel_range: str = "model"
    """Pixels are normalised with the weights' own mean and std, or left in [0, 1] (`unit`), as in the paper."""

    def __post_init__(self) -> None:
        check_name("--pixel-range", self.pixel_range, PIXEL_RANGES)


@dataclass(frozen=True)
class MethodConfig:
    """The continual-learning method and the distillation."""

    method: str = "coda"
    """Continual-learning method, a name in `cdl_deploy.training.methods.METHODS`."""
    distill: str = "kdp"
    """Distillation, a name in `cdl_deploy.training.distillation.DISTILLATIONS`."""
    query: str = "full"
    """Where prompts are chosen from: `full`, an unprompted pass of its own through the student, or `block:K`, the
    class token after the student's first K blocks, which prompts then leave alone."""
    query_regulariser: float = 0.0
    """With `block:K`: weight of the loss that pulls the similarities of the early query towards the full query's."""
    prompt_length: int | None = None
    """Rows of a prompt for the keys, and as many for the values; by default the method's own: L2P and DualPrompt 10,
    CODA 4."""
    key_loss_weight: float = 1.0
    """L2P, DualPrompt: weight of the loss that pulls the chosen keys towards the query; 2 in the paper's published
    runs."""
    pool_size: int = 30
    """L2P: prompts in the pool."""
    top_k: int = 5
    """L2P: prompts an image gets."""
    shared_prompt_length: int = 3
    """DualPrompt: rows for the keys, and as many for the values, of the prompts that all tasks share."""
    merge_share: float = 0.7
    """APT: e, what the merged prompts keep of themselves when a task ends; the rest is what the task has learned."""
    orthogonality: float = 0.0
    """CODA: μ, weight of the loss that keeps keys, attentions and prompts orthogonal; the paper's runs have 0."""
    components_per_task: int = 10
    """CODA: components each task brings (the paper's 100 over 10 tasks)."""
    alpha: float = 0.5
    """α: weight of the teacher in the loss, and of the KD head in the prediction."""
    temperature: float = 2.0
    """T of the distillation loss."""
    dkd_target_weight: float = 1.0
    """DKD: weight of TCKD."""
    dkd_nontarget_weight: float = 4.0
    """DKD: weight of NCKD."""
    dkd_temperature: float = 4.0
    """DKD: its own T."""
    fitnets_weight: float = 0.1
    """FitNets: weight of the feature term; 0.2 in the paper's published runs."""
    reviewkd_weight: float = 0.2
    """ReviewKD: weight of the feature term; 0.4 in the paper's published runs."""
    kd_prompt_length: int = 3
    """KDP: rows for the keys, and as many for the values, in every block after the first ("length 6")."""
    kd_token_start: str = "class-token"
    """KDP: the KD token starts as the backbone's class token, or `uniform` in [0, 1) as in the paper. With `none`
    there is no such token, and the KD head reads the class token: the extra head alone."""
    kd_prompt_start: str = "uniform"
    """KDP: KD prompts start `uniform` in [0, 1), as in the paper, or `orthogonal` to each other in every block and
    of unit length."""
    kd_prompt_scale: float = 1.0
    """KDP: factor on the rows KD prompts start as."""
    kd_prompt_blocks: int | None = None
    """KDP: how many blocks get KD prompts, counted from the one after the first; by default all."""
    kd_classes: str = "task"
    """The teacher's logits that kd, kdp and deit distil: of the `task`'s classes, as in the paper, or of all classes
    `seen`. Rows of earlier tasks stand still either way."""
    alpha_holdout: float = 0.0
    """KDP, DeiT: share of every task's training images the student does not train on; they choose the α of the
    prediction for the task's classes. With 0 it is `alpha`."""
    student_head: str = "method"
    """The student's heads: as its `method` has them, linear but for APT, or `cosine`, normalised as APT's are."""
    calibration: str = "none"
    """`statistics`: after every task the student's logits are scaled and shifted, task by task, by what Gaussians
    of each class's features say. No image is kept. `none`: they are answered with as they are."""
    kd_lr_scale: float = 0.1
    """KDP, DeiT: share of the learning rate that KD token and KD prompts get; the paper's is 1."""
    head_start: str = "zeros"
    """Heads start at `zeros`, or `linear`, drawn as `torch.nn.Linear` does, as in the paper."""

    def __post_init__(self) -> None:
        if self.query_block < 0:
            raise OptionError(
                f"--query is '{self.query}', expected full, or block:K with K at least 1, such as block:4"
            )
        _at_least("--query-regulariser", self.query_regulariser, 0)
        if self.query_regulariser and not self.query_block:
            raise OptionError(
                "--query-regulariser compares an early query with the full one: give --query block:K, or leave it out"
            )
        if self.prompt_length is not None:
            _at_least("--prompt-length", self.prompt_length, 1)
        _at_least("--key-loss-weight", self.key_loss_weight, 0)
        _at_least("--pool-size", self.pool_size, 1)
        _at_least("--top-k", self.top_k, 1)
        if self.top_k > self.pool_size:
            raise OptionError(f"--top-k {self.top_k} is more than the --pool-size of {self.pool_size}: ask for fewer")
        _at_least("--shared-prompt-length", self.shared_prompt_length, 1)
        _at_least("--merge-share", self.merge_share, 0, 1)
        _at_least("--orthogonality", self.orthogonality, 0)
        _at_least("--components-per-task", self.components_per_task, 1)
        _at_least("--alpha", self.alpha, 0, 1)
        _at_least("--kd-prompt-length", self.kd_prompt_length, 0)
        check_name("--kd-token-start", self.kd_token_start, KD_TOKEN_STARTS)
        check_name("--kd-prompt-start", self.kd_prompt_start, KD_PROMPT_STARTS)
        _at_least("--kd-prompt-scale", self.kd_prompt_scale, 0)
        if self.kd_prompt_blocks is not None:
            _at_least("--kd-prompt-blocks", self.kd_prompt_blocks, 0)
        check_name("--kd-classes", self.kd_classes, KD_CLASSES)
        if not 0 <= self.alpha_holdout < 1:
            raise OptionError(f"--alpha-holdout is {self.alpha_holdout:g}, expected a share from 0 to below 1: try 0.1")
        check_name("--student-head", self.student_head, STUDENT_HEADS)
        check_name("--calibration", self.calibration, CALIBRATIONS)
        _at_least("--kd-lr-scale", self.kd_lr_scale, 0)
        check_name("--head-start", self.head_start, HEAD_STARTS)
        for name in ("dkd_target_weight", "dkd_nontarget_weight", "fitnets_weight", "reviewkd_weight"):
            _at_least(f"--{name.replace('_', '-')}", getattr(self, name), 0)
        for name in ("temperature", "dkd_temperature"):
            if not getattr(self, name) > 0:
                raise OptionError(f"--{name.replace('_', '-')} is {getattr(self, name):g}, expected more than 0")

    @property
    def query_block(self) -> int:
        """K of `block:K`, 0 for `full`, −1 for what is neither."""
        kind, _, number = self.query.partition(":")
        if kind == "block" and number.isdecimal() and number.isascii():
            return int(number) or -1
        return 0 if self.query == "full" else -1


@dataclass(frozen=True)
class OptimConfig:
    """The optimisation of each stage of each task."""

    epochs: int = 20
    """Epochs a task, for the teacher and for the student each."""
    batch_size: int | None = None
    """Images in a step; by default 64, fewer where a task has under 1,024 images (see `default_batch_size`)."""
    lr: float = 1e-3
    """Adam's learning rate at the start of every stage; a cosine over the epochs takes it to zero."""
    schedule: str = "cosine"
    """`cosine`, or `cosine-late`, one epoch behind, as in the paper."""
    seed: int = 0
    """Everything random is drawn from it: class order, initial values, shuffling, augmentation."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `mps`, or any torch device."""
    precision: str = "auto"
    """Of the matrix products in forward passes: `fp32`, or `bf16` (autocast), by default on GPUs that have it.
    Parameters, selection of prompts, losses, Adam and evaluation are always fp32."""
    compile: bool = False
    """Compile the backbones' blocks with `torch.compile`: minutes at the start, faster steps afterwards."""
    resident: bool = False
    """Decode every image once, keep them all on the device and augment whole batches there: for GPUs, which small
    models leave waiting for the loader, and images not much larger than the model takes."""
    workers: int | None = None
    """Processes that load images; 0 loads them in the main process. By default 0 on a CPU and for images in memory,
    otherwise one less than there are cores, at most 8."""
    log: str = "none"
    """Where the curves of the run go as well: `tensorboard`, `wandb`, both with a comma between, or `none`. What is
    learned does not depend on it."""

    def __post_init__(self) -> None:
        _at_least("--epochs", self.epochs, 1)
        if self.batch_size is not None:
            _at_least("--batch-size", self.batch_size, 1)
        if self.workers is not None:
            _at_least("--workers", self.workers, 0)
        check_name("--precision", self.precision, PRECISIONS)
        check_name("--schedule", self.schedule, SCHEDULES)
        for name in self.log.split(","):
            check_name("--log", name.strip(), LOGS)
        _at_least("--seed", self.seed, 0)
        if not self.lr > 0 or math.isinf(self.lr):
            raise OptionError(f"--lr is {self.lr:g}, expected a positive number")

    @property
    def trackers(self) -> tuple[str, ...]:
        """The names in `log`, each once."""
        names = (name.strip() for name in self.log.split(","))
        return tuple(dict.fromkeys(name for name in names if name != "none"))


def default_batch_size(images: int) -> int:
    """The paper's 64, halved until an epoch over `images` images has 16 steps, but at least 8.

    Differs: the paper's tasks have 5,000 images. With 64 a task of 290 takes 5 steps an epoch and learns next to
    nothing.
    """
    size = 64
    while size > 8 and images < 16 * size:
        size //= 2
    return size


@dataclass(frozen=True)
class RunConfig:
    """Everything that determines a run."""

    data: DataConfig = field(default_factory=DataConfig)
    models: ModelConfig = field(default_factory=ModelConfig)
    method: MethodConfig = field(default_factory=MethodConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values, as the run directory stores them."""
        return dataclasses.asdict(self)

    @staticmethod
    def option_types() -> dict[str, dict[str, Any]]:
        """The type of every option, by section and name."""
        return {name: typing.get_type_hints(section) for name, section in typing.get_type_hints(RunConfig).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RunConfig:
        """The inverse of `to_dict`. Unknown keys are errors that offer the nearest name."""
        sections = {"data": DataConfig, "models": ModelConfig, "method": MethodConfig, "optim": OptimConfig}
        _refuse_unknown("configuration", values, tuple(sections))
        built: dict[str, Any] = {}
        for name, section in sections.items():
            given = values.get(name, {})
            _refuse_unknown(
                f"configuration section '{name}'", given, tuple(f.name for f in dataclasses.fields(section))
            )
            built[name] = section(**given)
        return cls(**built)


def _refuse_unknown(where: str, given: Mapping[str, Any], known: tuple[str, ...]) -> None:
    for key in given:
        if key not in known:
            raise OptionError(f"{where} has the unknown key '{key}'{nearest(key, known)}")
