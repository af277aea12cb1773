"""What an exported model says about itself: the `cdl.*` metadata of an `.onnx` file, written and read in one place.

The exporter builds a `Bundle` and stores `encode_metadata(bundle)` in the model's `metadata_props`; the runtime gets
the same `Bundle` back from `read_bundle(path)`. One JSON value a key; a field that this version does not know is
ignored (a later writer of the same format may add some), a missing or mistyped one is an error.
"""

from __future__ import annotations

import dataclasses
import json
import re
import typing
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdl_deploy.data.preprocessing import Preprocessing
from cdl_deploy.documents import parse_json
from cdl_deploy.errors import BundleError
from cdl_deploy.runtime.session import open_session
from cdl_deploy.typed_json import short, typed
from cdl_deploy.version import Producer, __version__

if TYPE_CHECKING:
    import onnxruntime

FORMAT_VERSION = 1
KEY_PREFIX = "cdl."
FORMAT_KEY = "cdl.format_version"
ROLES = ("student", "teacher")
TASK_SCORES = ("selected",)
QUANTIZATIONS = ("int8", "int8-dynamic", "fp16")
SCORES = "attention scores"
"""In `Quantization.kept_float`: queries · keys, which stay float all together."""
MAX_TOP_K = 5
OMITTED = {"omitted": True}
"""Of a field that is not written where it is None: files without it stay what they were."""
INPUT_NAME = "image"
LOGITS_NAME = "logits"
PROBABILITIES_NAME = "probabilities"
TOPK_PROBABILITY_NAME = "topk_probability"
TOPK_INDEX_NAME = "topk_index"
TOPK_LABEL_NAME = "topk_label"
TASK_SCORES_NAME = "task_scores"
FEATURES_NAME = "features"
DISTANCE_NAME = "distance"


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


@dataclass(frozen=True)
class Bundle:
    """One exported model, as described by its own file."""

    path: Path
    """The `.onnx` file; not stored in it."""
    role: str
    """`"student"` or `"teacher"`."""
    classes: tuple[str, ...]
    """Class names in the order of the logits."""
    tasks: tuple[tuple[str, ...], ...]
    """Class names by task; every class is in exactly one."""
    preprocessing: Preprocessing
    """How pixels become the input."""
    method: Method
    """How the model was trained."""
    weights: Weights
    """The frozen backbone."""
    run: RunOrigin
    """The training run."""
    parameters: int
    """Number of parameters, prompts and heads included."""
    top_k: int
    """Columns of the outputs `topk_probability` and `topk_label`."""
    quantization: Quantization | None = None
    """How the model was made smaller, if it was."""
    accuracy: Accuracy | None = None
    """Accuracy as the run measured it, if it did."""
    parity: Parity | None = None
    """The comparison made when the model was exported."""
    features: Features | None = field(default=None, metadata=OMITTED)
    """The output `features`, of a model with a closed-form head."""
    statistics: StatisticsFile | None = field(default=None, metadata=OMITTED)
    """The sums beside the model that belong to these features."""
    unknown_threshold: float | None = field(default=None, metadata=OMITTED)
    """Output `distance` above which an image is of no known class."""
    unknown_rule: UnknownRule | None = field(default=None, metadata=OMITTED)
    """How the threshold was found."""
    before_learning: BeforeLearning | None = field(default=None, metadata=OMITTED)
    """Of a file to which a device has added since it was exported."""
    patch_tokens: PatchTokens | None = field(default=None, metadata=OMITTED)
    """Of a model that merges some (`--tokens`)."""
    producer: Producer = field(default_factory=Producer)
    """The program that wrote the file."""

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise BundleError(f"cdl.role is {self.role!r}, expected {' or '.join(map(repr, ROLES))}")
        if not self.classes:
            raise BundleError("cdl.classes is empty, expected at least one class name")
        name, times = Counter(self.classes).most_common(1)[0]
        if times > 1:
            raise BundleError(f"cdl.classes names {name!r} {times} times, expected once")
        in_tasks = Counter(name for task in self.tasks for name in task)
        known = set(self.classes)
        odd = [name for name in known | in_tasks.keys() if name not in known or in_tasks[name] != 1]
        if odd:
            raise BundleError(f"cdl.tasks and cdl.classes disagree about {min(odd)!r}: each class belongs to one task")
        if not 1 <= self.top_k <= len(self.classes):
            raise BundleError(f"cdl.top_k is {self.top_k}, expected 1 to {len(self.classes)}, the number of classes")

    @property
    def task_numbers(self) -> tuple[int, ...]:
        """For each class, in the order of the logits, the task that taught it; the first is 1."""
        numbers = {name: number for number, task in enumerate(self.tasks, 1) for name in task}
        return tuple(numbers[name] for name in self.classes)


_STORED = [f for f in dataclasses.fields(Bundle) if f.name != "path"]


def encode_metadata(bundle: Bundle) -> dict[str, str]:
    """Every `cdl.*` key with its JSON text, for the model's `metadata_props`. Raises `BundleError` for NaN."""
    values = {KEY_PREFIX + name: value for name, value in description(bundle).items()}
    try:
        return {key: json.dumps(value, ensure_ascii=False, allow_nan=False) for key, value in values.items()}
    except ValueError as error:
        raise BundleError(f"metadata of {bundle.path.name} cannot be written as JSON: {error}") from error


def description(bundle: Bundle) -> dict[str, Any]:
    """The same as plain values, keys without their prefix: what lies beside the model as readable JSON."""
    values: dict[str, Any] = {FORMAT_KEY.removeprefix(KEY_PREFIX): FORMAT_VERSION}
    for item in _STORED:
        value = getattr(bundle, item.name)
        if value is None and item.metadata.get("omitted"):
            continue
        values[item.name] = dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value  # type: ignore[arg-type]
    return values


def description_file(model: Path) -> Path:
    """Where that JSON lies: `student.json` beside `student.onnx`."""
    return model.with_suffix(".json")


def statistics_path(model: Path) -> Path:
    """Where export writes the sums: `student.statistics.safetensors` beside `student.onnx`."""
    return model.with_name(f"{model.stem}.statistics.safetensors")


def decode_metadata(path: Path, metadata: Mapping[str, str]) -> Bundle:
    """The `Bundle` that `metadata` (all of a model's `metadata_props`) describes.

    Raises `BundleError` for metadata that are absent, of a newer format, or not as `encode_metadata` writes them.
    """
    if FORMAT_KEY not in metadata:
        raise BundleError(
            f"{path} is an ONNX model that cdl did not export: {FORMAT_KEY} is missing from its metadata; "
            "make one with: cdl export RUN --onnx"
        )
    version = _parse(path, FORMAT_KEY, metadata[FORMAT_KEY])
    if type(version) is not int or version < 1:
        raise BundleError(f"{path}: {FORMAT_KEY} is {short(version)}, expected a whole number from 1; export it again")
    if version > FORMAT_VERSION:
        raise BundleError(
            f"{path} has bundle format {version}, this cdl-deploy {__version__} reads up to {FORMAT_VERSION}: "
            "pip install -U cdl-deploy"
        )
    hints = typing.get_type_hints(Bundle)
    values: dict[str, Any] = {}
    for item in _STORED:
        key = KEY_PREFIX + item.name
        if key in metadata:
            try:
                values[item.name] = typed(hints[item.name], _parse(path, key, metadata[key]), key)
            except BundleError as error:
                raise BundleError(str(error) if str(error).startswith(str(path)) else f"{path}: {error}") from error
        elif item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING:
            raise BundleError(f"{path}: {key} is missing from the model's metadata; export the model again")
    try:
        return Bundle(path=path, **values)
    except BundleError as error:
        raise BundleError(f"{path}: {error}") from error


def read_bundle(path: str | Path) -> Bundle:
    """Read what the model at `path` says about itself, and check that its graph agrees. Raises `BundleError`."""
    # No optimisation: nothing is going to be run, and this makes loading several times faster.
    session = open_session(path, optimise=False)
    return bundle_of(session, Path(path))


def bundle_of(session: onnxruntime.InferenceSession, path: Path) -> Bundle:
    """The `Bundle` of an open session; raises `BundleError` if metadata and graph disagree."""
    bundle = decode_metadata(path, session.get_modelmeta().custom_metadata_map)
    size = bundle.preprocessing
    inputs = {node.name: node for node in session.get_inputs()}
    outputs = {node.name: node for node in session.get_outputs()}
    kinds: dict[str, tuple[str, tuple[int | str, ...]]] = {
        "image": ("tensor(uint8)", ("B", "height", "width", 3)),
        "tensor": ("tensor(float)", ("B", 3, size.height, size.width)),
    }
    kind, expected = kinds[size.input]
    found = inputs.get(INPUT_NAME)
    if found is None or len(inputs) != 1:
        raise BundleError(f"{path}: its inputs are {list(inputs)}, expected ['{INPUT_NAME}']; export the model again")
    # Exported with --batch or --image-size it takes one size; which, is for whoever feeds it to look up.
    free = 3 if size.input == "image" else 1
    if len(found.shape) == len(expected):
        sizes = zip(found.shape, expected[:free], strict=False)
        expected = (*(got if isinstance(got, int) and got > 0 else want for got, want in sizes), *expected[free:])
    if found.type != kind or not _fits(found.shape, expected):
        raise BundleError(
            f"{path}: input {INPUT_NAME} is {found.type} {found.shape}, expected {kind} {list(expected)} "
            "as cdl.preprocessing says; export the model again"
        )
    classes, tasks = len(bundle.classes), len(bundle.tasks)
    if bundle.unknown_threshold is not None:
        distance = outputs.get(DISTANCE_NAME)
        if distance is None or distance.type != "tensor(float)" or not _fits(distance.shape, expected[:1]):
            raise BundleError(
                f"{path}: cdl.unknown_threshold is about output {DISTANCE_NAME!r}, expected as tensor(float) ['B']; "
                "export the model again"
            )
    more = [(FEATURES_NAME, "tensor(float)", bundle.features.dimension, "a number")] if bundle.features else []
    best = bool({TOPK_PROBABILITY_NAME, TOPK_LABEL_NAME, TOPK_INDEX_NAME} & set(outputs))  # none for some runtimes
    for name, kind, columns, what in (
        (LOGITS_NAME, "tensor(float)", classes, "a class"),
        (PROBABILITIES_NAME, "tensor(float)", classes, "a class"),
        *([(TOPK_PROBABILITY_NAME, "tensor(float)", bundle.top_k, "a place among the best")] * best),
        *([(TOPK_LABEL_NAME, "tensor(string)", bundle.top_k, "a place among the best")] * (TOPK_LABEL_NAME in outputs)),
        *([(TOPK_INDEX_NAME, "tensor(int64)", bundle.top_k, "a place among the best")] * (TOPK_INDEX_NAME in outputs)),
        (TASK_SCORES_NAME, "tensor(float)", tasks, "a task"),
        *more,
    ):
        if name not in outputs:
            raise BundleError(f"{path}: it has no output {name!r} (outputs: {list(outputs)}); export the model again")
        if outputs[name].type != kind or not _fits(outputs[name].shape, (expected[0], columns)):
            raise BundleError(
                f"{path}: output {name} is {outputs[name].type} {outputs[name].shape}, "
                f"expected {kind} {[expected[0], columns]}, one column {what}; export the model again"
            )
    return bundle


def _fits(shape: Sequence[Any], expected: tuple[int | str, ...]) -> bool:
    """Whether a declared shape allows `expected`. A dimension with a name must be free, and a free one allows any."""
    return len(shape) == len(expected) and all(
        not isinstance(got, int) or got == want for got, want in zip(shape, expected, strict=True)
    )


def _parse(path: Path, key: str, text: str) -> Any:
    try:
        return parse_json(text)
    except ValueError as error:
        raise BundleError(f"{path}: {key} is not JSON ({short(str(error))}); export the model again") from error
