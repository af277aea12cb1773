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

from cdl_deploy.errors import BundleError
from cdl_deploy.typed_json import short, typed
from cdl_deploy.version import __version__

if TYPE_CHECKING:
    import onnxruntime

FORMAT_VERSION = 1
KEY_PREFIX = "cdl."
FORMAT_KEY = "cdl.format_version"
ROLES = ("student", "teacher")
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming")
INPUT_NAME = "image"
LOGITS_NAME = "logits"
PROBABILITIES_NAME = "probabilities"


@dataclass(frozen=True)
class Producer:
    """The program that wrote the file."""

    name: str = "cdl-deploy"
    """Package name."""
    version: str = __version__
    """Its version."""


@dataclass(frozen=True)
class Preprocessing:
    """How pixels become the graph's input; see `cdl_deploy.images.to_tensor`."""

    height: int
    """Rows of the input tensor, in pixels."""
    width: int
    """Columns of the input tensor, in pixels."""
    resize: int
    """Length of the shorter edge after resizing and before the centre crop, in pixels."""
    interpolation: str
    """PIL filter, lower case: one of `INTERPOLATIONS`."""
    mean: tuple[float, float, float]
    """Subtracted from each channel (R, G, B), on the scale 0 to 1."""
    std: tuple[float, float, float]
    """Divides each channel (R, G, B) after the mean is subtracted."""
    input: str = "tensor"
    """What the graph takes; `"tensor"` is normalised float32 [B, 3, height, width]."""

    def __post_init__(self) -> None:
        if self.input != "tensor":
            raise BundleError(f"input is {self.input!r}, expected 'tensor'; a newer cdl-deploy may know it")
        for name in ("height", "width", "resize"):
            if getattr(self, name) < 1:
                raise BundleError(f"{name} is {getattr(self, name)}, expected at least 1")
        if self.interpolation not in INTERPOLATIONS:
            raise BundleError(f"interpolation is {self.interpolation!r}, expected one of {', '.join(INTERPOLATIONS)}")
        if not all(value > 0 for value in self.std):
            raise BundleError(f"std is {list(self.std)}, expected three numbers above 0")


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
    """Where prompts are selected, such as `"in-graph"`."""


@dataclass(frozen=True)
class Weights:
    """The frozen backbone inside the model."""

    model: str
    """Model name with its weights' tag, as timm knows it."""
    sha256: str | None = None
    """Hash of the weights file."""


@dataclass(frozen=True)
class RunRecord:
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
    run: RunRecord
    """The training run."""
    parameters: int
    """Number of parameters, prompts and heads included."""
    accuracy: Accuracy | None = None
    """Accuracy as the run measured it, if it did."""
    parity: Parity | None = None
    """The comparison made when the model was exported."""
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
        odd = [name for name in {*self.classes, *in_tasks} if name not in self.classes or in_tasks[name] != 1]
        if odd:
            raise BundleError(f"cdl.tasks and cdl.classes disagree about {min(odd)!r}: each class belongs to one task")

    def task_of(self, index: int) -> int:
        """The 1-based task that taught the class with logit `index`."""
        name = self.classes[index]
        return next(number for number, task in enumerate(self.tasks, 1) if name in task)


_STORED = [f for f in dataclasses.fields(Bundle) if f.name != "path"]


def encode_metadata(bundle: Bundle) -> dict[str, str]:
    """Every `cdl.*` key with its JSON text, for the model's `metadata_props`. Raises `BundleError` for NaN."""
    values: dict[str, Any] = {FORMAT_KEY: FORMAT_VERSION}
    for item in _STORED:
        value = getattr(bundle, item.name)
        values[KEY_PREFIX + item.name] = dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value  # type: ignore[arg-type]
    try:
        return {key: json.dumps(value, ensure_ascii=False, allow_nan=False) for key, value in values.items()}
    except ValueError as error:
        raise BundleError(f"metadata of {bundle.path.name} cannot be written as JSON: {error}") from error


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
        elif item.name not in ("accuracy", "parity", "producer"):
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
    expected = (3, size.height, size.width)
    found = inputs.get(INPUT_NAME)
    if found is None or len(inputs) != 1:
        raise BundleError(f"{path}: its inputs are {list(inputs)}, expected ['{INPUT_NAME}']; export the model again")
    if found.type != "tensor(float)" or len(found.shape) != 4 or not _fits(found.shape[1:], expected):
        raise BundleError(
            f"{path}: input {INPUT_NAME} is {found.type} {found.shape}, expected tensor(float) "
            f"['B', {', '.join(map(str, expected))}] as cdl.preprocessing says; export the model again"
        )
    for name in (LOGITS_NAME, PROBABILITIES_NAME):
        if name not in outputs:
            raise BundleError(f"{path}: it has no output {name!r} (outputs: {list(outputs)}); export the model again")
        if not _fits(outputs[name].shape[1:], (len(bundle.classes),)):
            raise BundleError(
                f"{path}: output {name} has shape {outputs[name].shape}, expected ['B', {len(bundle.classes)}], "
                "one column a class; export the model again"
            )
    return bundle


def open_session(
    path: str | Path,
    *,
    providers: Sequence[str] | None = None,
    threads: int | None = None,
    optimise: bool = True,
) -> onnxruntime.InferenceSession:
    """Open any `.onnx` file with onnxruntime.

    `providers` are execution providers in order of preference (default: CPU); `threads` is the number of threads of one
    operator (default: onnxruntime's choice). Raises `BundleError` with one line if the file cannot be opened.
    """
    import onnxruntime

    path = Path(path)
    try:
        size = path.stat().st_size
        if path.is_dir():
            raise BundleError(f"{path} is a folder, expected an .onnx file: give {path / 'student.onnx'}")
        with path.open("rb"):
            pass
    except OSError as error:
        raise BundleError(f"{path}: {error.strerror or error}; expected an .onnx file") from error
    if size == 0:
        raise BundleError(f"{path} is empty (0 bytes), expected an ONNX model: copy or export it again")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # warnings are about graph shapes, nothing a user can act on
    if threads is not None:
        options.intra_op_num_threads = threads
    if not optimise:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=list(providers or ["CPUExecutionProvider"]))
    except Exception as error:  # onnxruntime's exceptions share no base class
        raise BundleError(
            f"{path} ({size:,} bytes) is not an ONNX model that onnxruntime {onnxruntime.__version__} can open, "
            f"or only part of one: copy or export it again ({short(str(error))})"
        ) from error


def _fits(shape: Sequence[Any], expected: tuple[int, ...]) -> bool:
    """Whether a declared shape allows `expected`; a dimension with a name (or None) allows any size."""
    return len(shape) == len(expected) and all(
        not isinstance(got, int) or got == want for got, want in zip(shape, expected, strict=True)
    )


def _parse(path: Path, key: str, text: str) -> Any:
    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    try:
        return json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path}: {key} is not JSON ({short(str(error))}); export the model again") from error
