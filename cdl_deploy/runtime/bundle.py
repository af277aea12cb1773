"""What an exported model says about itself: the `cdl.*` metadata of an `.onnx` file, written and read in one place.

The exporter builds a `Bundle` and stores `encode_metadata(bundle)` in the model's `metadata_props`; the runtime gets
the same `Bundle` back from `read_bundle(path)`. One JSON value a key; a field that this version does not know is
ignored (a later writer of the same format may add some), a missing or mistyped one is an error.
"""

from __future__ import annotations

import dataclasses
import json
import typing
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdl_deploy.data.preprocessing import Preprocessing
from cdl_deploy.documents import parse_json
from cdl_deploy.errors import BundleError
from cdl_deploy.runtime.bundle_parts import (
    Accuracy,
    BeforeLearning,
    Features,
    Method,
    Parity,
    PatchTokens,
    Quantization,
    RunOrigin,
    StatisticsFile,
    UnknownRule,
    Weights,
)
from cdl_deploy.runtime.session import open_session
from cdl_deploy.typed_json import short, typed
from cdl_deploy.version import Producer, __version__

if TYPE_CHECKING:
    import onnxruntime

FORMAT_VERSION = 1
KEY_PREFIX = "cdl."
FORMAT_KEY = "cdl.format_version"
ROLES = ("student", "teacher")
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
