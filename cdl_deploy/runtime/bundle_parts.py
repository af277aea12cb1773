"""What the description of an exported model is made of: where it comes from, how it was made, what it can do."""

from __future__ import annotations

import re
from dataclasses import dataclass

from cdl_deploy.errors import BundleError

TASK_SCORES = ("selected",)
QUANTIZATIONS = ("int8", "int8-dynamic", "fp16")
SCORES = "attention scores"
"""In `Quantization.kept_float`: queries · keys, which stay float all together."""


@dataclass(frozen=True)
class Method:
    """How the model was trained."""

    continual: str
    """Continual-learning method, such as `"coda"`."""
    distillation: str | None
    """Distillation method, such as `"kdp"`; null for a model that learned from labels alone."""
    query: str | None = None
    """Where the query of prompt selection comes from, such as `"full"`."""
    select: str | None = None
    """Where prompts are selected: `"in-graph"` by each image; at export, `"task:K"` for one task's or `"images"` by
    sample images; null where nothing is ever selected."""
    task_scores: str | None = None
    """`"selected"`: the output `task_scores` says how strongly each task's prompts were selected. Null: prompts belong
    to no task, and every score is 1 / tasks."""

    def __post_init__(self) -> None:
        if self.select is not None and not re.fullmatch(r"in-graph|images|task:[1-9][0-9]*", self.select):
            raise BundleError(f"select is {self.select!r}, expected 'in-graph', 'images', 'task:K' or null")
        if self.task_scores is not None and self.task_scores not in TASK_SCORES:
            raise BundleError(f"task_scores is {self.task_scores!r}, expected 'selected' or null")


@dataclass(frozen=True)
class Quantization:
    """How the model was made smaller, and what that did."""

    kind: str
    """`"int8"`: scales fixed by calibration images. `"int8-dynamic"`: scales from each batch. `"fp16"`."""
    batch_invariant: bool
    """Whether an image's logits are the same whatever else is in its batch."""
    kept_float: tuple[str, ...] = ()
    """Names of the layers that stayed float32; SCORES where attention's did."""
    accuracy_before: float | None = None
    """Of the float32 model on the images compared, in percent."""
    accuracy_after: float | None = None
    """Of this model on the same images, in percent."""

    def __post_init__(self) -> None:
        if self.kind not in QUANTIZATIONS:
            raise BundleError(f"kind is {self.kind!r}, expected one of {', '.join(QUANTIZATIONS)}")


@dataclass(frozen=True)
class PatchTokens:
    """Which share of its patch tokens the model computes to the end; the others merge on the way."""

    share: float
    """At most so many are left."""
    left: int
    """After the last merging."""
    patches: int
    """Of an image."""
    head: str
    """`"solved"` anew, of merged tokens; `"trained"` on all tokens."""
    accuracy_before: float | None = None
    """With all tokens, of the images compared, in percent."""
    accuracy_after: float | None = None
    """Of this model on the same images, in percent."""
    images: int = 0
    """How many these are."""


@dataclass(frozen=True)
class Weights:
    """The frozen backbone inside the model."""

    model: str
    """Model name with its weights' tag, as timm knows it."""
    sha256: str | None = None
    """Hash of the weights file."""


@dataclass(frozen=True)
class RunOrigin:
    """The training run the model comes from."""

    seed: int
    """Seed of the run."""
    tasks: int
    """Number of tasks learned so far."""
    fingerprint: str
    """Hash of the resolved configuration."""


@dataclass(frozen=True)
class Accuracy:
    """What the run measured on its held-out images, in percent."""

    final_average_accuracy: float
    """Accuracy over all classes after the last task, averaged over tasks."""
    forgetting: float | None = None
    """Mean fall of each task's accuracy from its best."""


@dataclass(frozen=True)
class Parity:
    """How the exported graph compares with the trained model."""

    images: int
    """Held-out images compared."""
    max_abs_logit_difference: float
    """Largest absolute difference of any logit."""
    top1_agreement: float
    """Share of images with the same top-1 class, 0 to 1."""


@dataclass(frozen=True)
class RandomFeatures:
    """The random projection of features, followed by a ReLU."""

    features: int
    """How many there are after it."""
    seed: int
    """Which numbers: `cdl_deploy.closed_form.stable_random`."""


@dataclass(frozen=True)
class Features:
    """What the output `features` holds, and what the closed-form head makes of it before its matrix."""

    parts: str
    """Tokens after the final norm, side by side in this order: `"class+patches"`, patches being their mean."""
    dimension: int
    """Columns of the output."""
    unit_length: bool
    """Whether the head brings them to unit length."""
    projection: RandomFeatures | None
    """What the head projects them to then, if it does."""
    sha256: str
    """Of the part of the graph that computes them: two files with one hash have the same features."""


@dataclass(frozen=True)
class StatisticsFile:
    """The sums over images that the head was solved from, beside the model."""

    file: str
    """Its name."""
    sha256: str
    """Of its content."""


@dataclass(frozen=True)
class UnknownRule:
    """Where `unknown_threshold` comes from."""

    percent: float
    """Of images of known classes, in percent, that are not further away."""
    source: str
    """`"held-out images"` of the run, or `"statistics"`: images drawn as the sums describe them."""
    images: int | None = None
    """How many held-out images."""


@dataclass(frozen=True)
class BeforeLearning:
    """What the file said before the first of its additions that can be taken back: without them it says so again."""

    statistics: StatisticsFile
    """The sums that it had."""
    accuracy: Accuracy | None
    """As the run measured it, of the classes that it had."""
    parity: Parity | None
    """The comparison made when it was exported."""
    unknown_threshold: float | None
    """Its threshold."""
    unknown_rule: UnknownRule | None
    """How that was found."""
    task_scores: str | None
    """`Method.task_scores`."""
