"""The configuration of a run: a frozen dataclass of options a section, checked when it is built, saved in the run.

Messages name the command-line option, since that is where almost every value comes from.
"""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from cdl_deploy.data.preprocessing import MAX_SIDE
from cdl_deploy.errors import OptionError
from cdl_deploy.run import plugins
from cdl_deploy.run.method_options import (
    DISTILLATION_CONFIGS,
    METHOD_CONFIGS,
    APTConfig,
    CodaConfig,
    DKDConfig,
    DualPromptConfig,
    FitNetsConfig,
    HeadOptions,
    KDPConfig,
    L2PConfig,
    ReviewKDConfig,
)
from cdl_deploy.run.options import Declared, Options, check_name, option, options_of, refuse_unknown

BENCHMARKS = ("cifar100", "imagenet-r")
CLASS_ORDERS = ("shuffled", "natural")
INTERPOLATIONS = ("bilinear", "bicubic")
"""Those that an exported graph can do as well."""
CROPS = ("centre", "none")
LAST_BATCHES = ("keep", "drop")
PRECISIONS = ("auto", "fp32", "bf16")
SCHEDULES = ("cosine", "quarter-cosine-late", "cosine-late")
PIXEL_RANGES = ("model", "unit")
AUGMENTATIONS = ("auto", "photo", "gentle", "none")
LOGS = ("none", "tensorboard", "wandb")
SomeOptions = TypeVar("SomeOptions", bound=Options)


@dataclass(frozen=True)
class DataConfig(Options):
    """Which images, in which tasks."""

    group = "Data"

    data: str = option(
        "digits",
        "Image folder (train/CLASS/… with test/ or val/, or CLASS/… with --holdout), or the embedded digits.",
        metavar="DIR|digits",
    )
    """`digits`, or the path of an image folder."""
    labels: str | None = option(
        None,
        "A file that says of which class each image is: CSV, JSON Lines, FiftyOne's JSON; or its name in each split.",
        metavar="FILE",
    )
    """A file of labels in place of folders a class; a name alone is looked for in the folder, or in its splits."""
    tasks: int | None = option(None, "Deal the classes out to N tasks.", metavar="N", low=1, default_text="5")
    """Number of tasks; the classes are dealt out as evenly as possible."""
    classes_per_task: int | None = option(None, "Or: N classes a task.", metavar="N", low=1)
    """Classes a task; the last task may be smaller."""
    task_file: str | None = option(None, "Or: a YAML list of tasks, each a list of classes.", metavar="FILE")
    """YAML file that lists the classes of each task by name."""
    holdout: float | None = option(
        None,
        "Hold out this share of every class, such as 0.2; at least one image.",
        metavar="SHARE",
        above=0,
        below=1,
        expected="a share between 0 and 1, such as 0.2",
    )
    """Share of every class held out for testing where the folder has no test/ or val/."""
    class_order: str = option(
        "shuffled",
        "Order in which classes are learned: shuffled, natural, or a file that lists all of them (one a line, YAML or "
        "JSON).",
        metavar="shuffled|natural|FILE",
        default_text="shuffled, by the seed",
    )
    """`shuffled` by the seed, `natural` (alphabetical, 2 before 10), or a file of all classes: its name has a dot or a
    slash."""
    augmentation: str = option(
        "auto", "Random crops and flips.", choices=AUGMENTATIONS, default_text="auto, by the data"
    )
    """`photo` (RandomResizedCrop and flip), `gentle` (small crops, no flip), `none`; `auto` follows the data."""
    image_size: int | None = option(
        None, "Side of the images.", metavar="PIXELS", low=8, default_text="the student's own"
    )
    """Side of the square image that the student sees, and the teacher where it has no size of its own, in pixels."""
    resize: int | None = option(
        None,
        "Shorter edge of an image before the crop in evaluation.",
        metavar="PIXELS",
        low=8,
        high=MAX_SIDE,
        default_text="the student's own",
    )
    """Length to which the shorter edge is resized before the centre crop, in pixels; not in training, which crops."""
    interpolation: str | None = option(
        None,
        "Filter that resizes, in training and in evaluation.",
        choices=INTERPOLATIONS,
        default_text="the student's own",
    )
    """PIL's filter, of training's random crops and of evaluation."""
    crop: str = option("centre", "Evaluate the centre, or the whole image, which must be square.", choices=CROPS)
    """`centre`: evaluation sees the centre of an image. `none`: all of it, resized to what the model takes."""
    benchmark: str | None = option(
        None,
        "With --preset paper: tasks, epochs, batch, transforms and models of the paper's runs on this data.",
        choices=BENCHMARKS,
    )
    """The data set whose settings the paper's runs had: see `cdl_deploy.run.presets.BENCHMARKS`."""
    skip_bad: bool = option(False, "Go on without unreadable images.")
    """Go on without unreadable images and report them."""

    @property
    def class_order_file(self) -> str | None:
        """The file that lists the classes, where there is one."""
        return None if self.class_order in CLASS_ORDERS else self.class_order

    def check(self) -> None:
        """Tasks can be dealt out in one way only, and so can an image be cropped."""
        if not set(self.class_order) & set("./\\"):
            check_name("--class-order", self.class_order, (*CLASS_ORDERS, "FILE"))
        if self.crop == "none" and self.resize is not None:
            raise OptionError(
                f"--crop none resizes the whole image to what the model takes, not to --resize {self.resize}: "
                "leave it out, or give --crop centre"
            )
        if self.class_order_file is not None and self.task_file is not None:
            raise OptionError("--class-order FILE and --task-file exclude each other: give one of them")
        chosen = [self.tasks is not None, self.classes_per_task is not None, self.task_file is not None]
        if sum(chosen) > 1:
            raise OptionError("--tasks, --classes-per-task and --task-file exclude each other: give one of them")


@dataclass(frozen=True)
class ModelConfig(Options):
    """Which two backbones, and where their weights come from."""

    group = "Models"

    teacher: str = option("mini_teacher", "A ViT by its timm tag: docs/backbones.md.", metavar="MODEL")
    """timm name of the teacher's ViT, with its tag."""
    student: str = option("mini_student", "The same, smaller.", metavar="MODEL")
    """timm name of the student's ViT, with its tag."""
    teacher_weights: str | None = option(
        None, "Weights of the teacher: a file, folder or hub name.", metavar="FILE", default_text="from the hub"
    )
    """Of the teacher, instead of timm's own: a file, a folder, or a name on the hub; docs/weights.md says which."""
    student_weights: str | None = option(
        None, "Weights of the student: a file, folder or hub name.", metavar="FILE", default_text="from the hub"
    )
    """Of the student, instead of timm's own: a file, a folder, or a name on the hub; docs/weights.md says which."""
    student_blocks: int | None = option(
        None, "Cut the student: its first so many blocks.", metavar="N", low=1, default_text="all"
    )
    """The student is the first so many blocks of its model and the final norm, with the model's own weights."""
    teacher_run: str | None = option(
        None, "Take the teacher of this run, task by task, instead of teaching one.", metavar="RUN"
    )
    """Run whose teacher is taken over, task by task, instead of teaching one: same tasks, method and backbones."""
    train_teacher: bool = option(False, "Train a teacher where it teaches nothing, too: to compare with.")
    """Train the teacher beside a student that learns nothing from it, to compare with."""
    pixel_range: str = option("model", "Pixels by the weights' mean and std, or in 0 to 1.", choices=PIXEL_RANGES)
    """Pixels are normalised with the weights' own mean and std, or left in [0, 1] (`unit`), as in the paper."""
    teacher_image_size: int | None = option(
        None, "Side of the images that the teacher sees.", metavar="PIXELS", low=8, default_text="the student's"
    )
    """Side of the square image the teacher sees, in pixels, where it is not the student's: both are made from the same
    decoded image, and in training of the same part of it, each resized as its own weights want it."""


@dataclass(frozen=True)
class ChoiceOptions(Options):
    """Which method and which distillation, and what is the same for all of them."""

    method: str = option(
        "coda",
        "coda, l2p, dualprompt or apt; none: no prompts.",
        metavar="NAME",
        teacher=True,
        default_text="none; coda with a teacher, a distillation or an option of theirs",
    )
    """Continual-learning method, a name in `cdl_deploy.training.methods.METHODS`."""
    distill: str = option(
        "kdp",
        "kd, dkd, fitnets, reviewkd, deit, kdp; none: the student alone.",
        metavar="NAME",
        group="Distillation",
        default_text="none; kdp with a teacher, a method or an option of theirs",
    )
    """Distillation, a name in `cdl_deploy.training.distillation.DISTILLATIONS`."""
    query: str = option(
        "full",
        "Choose prompts after a pass of their own, or after K blocks.",
        metavar="full|block:K",
        teacher=True,
    )
    """Where prompts are chosen from: `full`, an unprompted pass of its own through the student, or `block:K`, the class
    token after the student's first K blocks, which prompts then leave alone."""
    query_regulariser: float = option(
        0.0,
        "Pull block:K's choice towards that of full.",
        metavar="WEIGHT",
        low=0,
        teacher=True,
    )
    """With `block:K`: weight of the loss that pulls the similarities of the early query towards the full query's."""

    def check(self) -> None:
        """The query must be one there is, and an early one to be pulled."""
        if self.query_block < 0:
            raise OptionError(
                f"--query is '{self.query}', expected full, or block:K with K at least 1, such as block:4"
            )
        if self.query_regulariser and not self.query_block:
            raise OptionError(
                "--query-regulariser compares an early query with the full one: give --query block:K, or leave it out"
            )

    @property
    def query_block(self) -> int:
        """K of `block:K`, 0 for `full`, −1 for what is neither."""
        kind, _, number = self.query.partition(":")
        if kind == "block" and number.isdecimal() and number.isascii():
            return int(number) or -1
        return 0 if self.query == "full" else -1


@dataclass(frozen=True)
class MethodConfig(
    HeadOptions,
    KDPConfig,
    ReviewKDConfig,
    FitNetsConfig,
    DKDConfig,
    APTConfig,
    CodaConfig,
    DualPromptConfig,
    L2PConfig,
    ChoiceOptions,
):
    """Method, distillation and heads: every option there is, flat; `part` gives the chosen ones their own."""

    more: Mapping[str, Any] = field(default_factory=dict)
    """Options of methods and distillations that other packages bring."""

    def check(self) -> None:
        """What adapts must be there to adapt, and what does not adapt must not be there untrained."""
        if self.adapt == "none" and self.adapting:
            raise OptionError(
                f"--adapt none would leave the prompts of --method {self.method} --distill {self.distill} untrained: "
                "add --method none and --distill none or kd, or give --adapt first"
            )
        if self.adapt in ("first", "all") and self.head != "learned" and not self.adapting:
            raise OptionError(
                f"--adapt {self.adapt}: with --method {self.method} --distill {self.distill} and the closed-form head "
                f"{self.head} there is nothing to train: leave it out"
            )
        if self.ridge_teacher_weight and self.distill == "none":
            raise OptionError("--ridge-teacher-weight needs a teacher: give --distill kd, say, or leave it out")

    @property
    def title(self) -> str:
        """Method and distillation in words, such as `coda + kdp`; of a frozen backbone, its head."""
        if self.method == "none" and self.distill == "none":
            return f"frozen backbone, {self.head} head"
        return f"{self.method} + {self.distill}"

    @property
    def adapting(self) -> bool:
        """Whether prompts, or anything else of method and distillation, could train."""
        return self.method != "none" or self.distill not in ("none", "kd", "dkd")

    def trains_in(self, task: int) -> bool:
        """Whether prompts, distillation and learned heads train in `task`, counted from 1."""
        adapt = self.adapt
        if adapt is None:
            adapt = "all" if "learned" in self.heads.values() else "first" if self.adapting else "none"
        return adapt == "all" or (adapt == "first" and task == 1)

    def part(self, config: type[SomeOptions]) -> SomeOptions:
        """The options that one method or distillation has, from among all of them."""
        own = {declared.name: getattr(self, declared.name) for declared in options_of(type(self))}
        every = {**own, **self.more}
        return config(**{name: every[name] for name in (it.name for it in options_of(config)) if name in every})

    def check_used(self, given: Iterable[str]) -> None:
        """Raise OptionError for an option of another method or distillation: it would change nothing."""
        every = METHOD_CONFIGS | DISTILLATION_CONFIGS
        if self.more or not {self.method, self.distill} <= set(every):
            every = every | plugins.configs()
        for name in given:
            owners = [owner for owner, config in every.items() if name in (it.name for it in options_of(config))]
            if owners and self.method not in owners and self.distill not in owners:
                kind = "distill" if owners[0] in DISTILLATION_CONFIGS else "method"
                raise OptionError(
                    f"--{name.replace('_', '-')} is of --{kind} {' or '.join(owners)}, and would change nothing with "
                    f"--{kind} {getattr(self, kind)}: leave it out"
                )

    def value(self, name: str) -> Any:
        """Of an option by its name, a plug-in's too."""
        return self.more[name] if name in self.more else getattr(self, name)


@dataclass(frozen=True)
class OptimConfig(Options):
    """The optimisation of each stage of each task, and the machine it runs on."""

    group = "Optimisation"

    epochs: int = option(20, "Epochs a task, teacher and student each.", metavar="N", low=1)
    """Epochs a task, for the teacher and for the student each."""
    batch_size: int | None = option(
        None, "Images a step.", metavar="N", low=1, default_text="64, fewer where a task has under 1,024 images"
    )
    """Images in a step; by default 64, fewer where a task has under 1,024 images (see `default_batch_size`)."""
    lr: float = option(
        1e-3, "Adam's first learning rate.", metavar="LR", above=0, high=math.nextafter(math.inf, 0),
        expected="a positive number",
    )  # fmt: skip
    """Adam's learning rate at the start of every stage; a cosine over the epochs takes it to zero."""
    schedule: str = option("cosine", "Learning rate over the epochs.", choices=SCHEDULES)
    """`cosine`; `quarter-cosine-late`, as in the paper: a quarter of a period over the epochs, one epoch behind; or
    `cosine-late`, a cosine one epoch behind, which is kept for runs that have it."""
    last_batch: str = option(
        "keep", "Learn from the last, smaller batch of an epoch, or leave it out.", choices=LAST_BATCHES
    )
    """`keep`: every image trains in every epoch. `drop`: what is left over when an epoch is cut into whole batches does
    not, in each epoch other images, as in the paper."""
    cache_views: int = option(
        0,
        "Learn from V fixed views of an image, and compute once, on disk, what training does not change. "
        "0: every epoch a new view.",
        metavar="V",
        low=0,
    )
    """Number of views of each image that a stage learns from, epoch by epoch in turn. What training does not change
    (query, teacher's output, what comes before the first prompt) is computed once a view and kept in RUN/views until
    the stage is over. With 0 every epoch has a view of its own and nothing is kept."""
    seed: int = option(0, "Everything random follows from it.", metavar="N", low=0)
    """Everything random is drawn from it: class order, initial values, shuffling, augmentation."""
    device: str = option("auto", "auto, cpu, cuda, mps.", metavar="NAME", group="Machine")
    """`auto`, `cpu`, `cuda`, `mps`, or any torch device."""
    precision: str = option(
        "auto",
        "Precision of matrix products.",
        choices=PRECISIONS,
        default_text="auto, bf16 on GPUs that have it",
        group="Machine",
    )
    """Of the matrix products in forward passes: `fp32`, or `bf16` (autocast), by default on GPUs that have it.
    Parameters, the comparison of query and keys, losses, Adam and evaluation are always fp32; the query itself comes
    out of a forward pass."""
    compile: bool = option(False, "Compile the backbones: slow to start, then faster.", group="Machine")
    """Compile the backbones' blocks with `torch.compile`: minutes at the start, faster steps afterwards."""
    resident: bool = option(
        False,
        "Keep all images on the device, decoded once, and augment there: for a GPU and small images.",
        group="Machine",
    )
    """Decode every image once, keep them all on the device and augment whole batches there: for GPUs, which small
    models leave waiting for the loader, and images not much larger than the model takes."""
    workers: int | None = option(
        None,
        "Processes that load images.",
        metavar="N",
        low=0,
        default_text="by the machine, 0 on a CPU",
        group="Machine",
    )
    """Processes that load images; 0 loads them in the main process. By default 0 on a CPU and for images in memory,
    otherwise one less than there are cores, at most 8."""
    log: str = option(
        "none",
        "Curves in RUN/logs as well; both with a comma between.",
        metavar="tensorboard|wandb",
        choices=LOGS,
        several=True,
        group="Machine",
    )
    """Where the curves of the run go as well: `tensorboard`, `wandb`, both with a comma between, or `none`. What is
    learned does not depend on it."""

    @property
    def drop_last(self) -> bool:
        """Whether an epoch has whole batches only."""
        return self.last_batch == "drop"

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

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Plain values by section and name, as the run directory stores them."""
        sections = dataclasses.asdict(self)
        sections["method"] |= sections["method"].pop("more")
        return sections

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], recorded: bool = False) -> RunConfig:
        """The inverse of `to_dict`. Unknown keys are errors that offer the nearest name.

        Options of other packages are looked for where there are keys of unknown names. A run that is `recorded` may
        have used one that is not installed here: its options are kept as they are.
        """
        refuse_unknown("configuration", values, tuple(SECTIONS))
        built: dict[str, Any] = {}
        for name, section in SECTIONS.items():
            given = dict(values.get(name, {}))
            known = tuple(declared.name for declared in options_of(section))
            if section is MethodConfig:
                given["more"] = _more({key: value for key, value in given.items() if key not in known}, given, recorded)
                given = {key: value for key, value in given.items() if key not in given["more"]}
                known += ("more",)
            refuse_unknown(f"configuration section '{name}'", given, known)
            built[name] = section(**given)
        return cls(**built)


SECTIONS: dict[str, type[Options]] = dict(typing.get_type_hints(RunConfig))
"""Class of every section of a configuration."""


def option_sections(with_plugins: bool = False) -> dict[str, list[Declared]]:
    """Every option there is, by section; on request those of other packages as well, which loads them."""
    found = {name: list(options_of(section)) for name, section in SECTIONS.items()}
    if with_plugins:
        known = {declared.name for declared in found["method"]}
        found["method"] += [declared for declared in plugins.options() if declared.name not in known]
    return found


def teacher_options(config: MethodConfig) -> list[str]:
    """Names of the options that decide what a teacher is."""
    declared = list(options_of(MethodConfig))
    if config.more:
        declared += [it for it in plugins.options() if it.name in config.more]
    return [it.name for it in declared if it.about.teacher]


def _more(unknown: dict[str, Any], given: Mapping[str, Any], recorded: bool) -> dict[str, Any]:
    """Those of the unknown options that belong to other packages' methods and distillations."""
    ours = given.get("method", ChoiceOptions.method) in METHOD_CONFIGS
    ours &= given.get("distill", ChoiceOptions.distill) in DISTILLATION_CONFIGS
    if not unknown or (recorded and not ours):
        return unknown
    found = {declared.name: declared for declared in plugins.options() if declared.name in unknown}
    for name, declared in found.items():
        declared.check(unknown[name])
    return {name: unknown[name] for name in found}


__all__ = [
    "DataConfig", "MethodConfig", "ModelConfig", "OptimConfig", "RunConfig", "check_name", "default_batch_size",
    "option_sections", "teacher_options",
]  # fmt: skip
