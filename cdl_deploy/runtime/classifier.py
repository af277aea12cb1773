"""`Classifier`: images in, class names out. Everything it needs to know is in the `.onnx` file."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cdl_deploy.data.images import ByteArray, FloatArray, load_image, to_crop, to_tensor
from cdl_deploy.errors import BundleError, DataError, OptionError
from cdl_deploy.runtime.bundle import DISTANCE_NAME, FEATURES_NAME, Bundle
from cdl_deploy.runtime.cores import usable_cores
from cdl_deploy.runtime.interface import interface_of
from cdl_deploy.runtime.providers import check_providers
from cdl_deploy.runtime.running import run_graph
from cdl_deploy.runtime.session import open_session
from cdl_deploy.runtime.session_input import fitting_input, in_batches

ImageInput = str | Path | Image.Image | NDArray[Any]
"""A path, a PIL image, or a uint8 array [H, W, 3]."""
GraphInput = ByteArray | FloatArray
"""What the graph takes of one image."""


UNKNOWN = "unknown"
"""What an image is called that is too far from every class."""


@dataclass(frozen=True)
class Prediction:
    """What a model says about one image."""

    label: str
    """Name of the most probable class; `UNKNOWN` where the image was rejected. The rest is about that class still."""
    probability: float
    """Its probability, 0 to 1."""
    top_k: tuple[tuple[str, float], ...]
    """The most probable classes with their probabilities, best first; equal ones in the order of the logits."""
    task: int
    """Number of the task that taught the class; the first task is 1."""
    index: int
    """Position of the class in the logits; the first is 0."""


class Classifier:
    """A model, ready to run: one that cdl exported, or another's ONNX classifier whose labels can be found.

    It may be used from several threads at once: nothing in it changes after it is built.
    """

    def __init__(
        self,
        path: str | Path,
        providers: Sequence[str] | None = None,
        threads: int | None = None,
        reject: bool = False,
    ) -> None:
        """Open the model at `path`.

        `providers`: onnxruntime execution providers in order of preference; default: CPU.
        `threads`: threads that one inference may use; default: onnxruntime's choice, or the cores that a container
        allows where they are fewer.
        `reject`: call an image `UNKNOWN` that is further from every class than the model's `unknown_threshold`.
        Raises `BundleError` for a file that is no such model, `OptionError` for one that cannot reject, and for a bad
        provider or thread count.
        """
        if threads is not None and threads < 1:
            raise OptionError(f"threads is {threads}, expected at least 1")
        check_providers(providers or ())
        self._arguments = (os.path.abspath(path), providers, threads, reject)
        if threads is None and usable_cores() < (os.cpu_count() or 1):  # which is all that onnxruntime looks at
            threads = usable_cores()
        self.path = Path(path)
        self._session = open_session(self.path, providers=providers, threads=threads)
        self.interface = interface_of(self._session, self.path)
        self.reject = reject
        if reject:
            self.unknown_threshold()

    def __reduce__(self) -> tuple[type[Classifier], tuple[Any, ...]]:
        """A pickled classifier opens its file again, wherever it is unpickled: a session cannot travel."""
        return type(self), self._arguments

    def unknown_threshold(self) -> float:
        """The distance above which an image is of no class that the model knows. Raises `OptionError` without one."""
        bundle = self.interface.bundle
        if bundle is None or bundle.unknown_threshold is None:
            why = "only models that cdl exported have one" if bundle is None else _no_threshold(bundle)
            raise OptionError(f"{self.path} cannot tell unknown images: it has no distance with a threshold; {why}")
        if UNKNOWN in bundle.classes:
            raise OptionError(f"{self.path} has a class called {UNKNOWN!r}, so that word cannot say that there is none")
        return bundle.unknown_threshold

    @property
    def bundle(self) -> Bundle:
        """What an exported model says about itself. Raises `BundleError` for a model from elsewhere."""
        if self.interface.bundle is None:
            raise BundleError(f"{self.path} is an ONNX model that cdl did not export, and says nothing about training")
        return self.interface.bundle

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of the logits."""
        return self.interface.classes

    def predict(
        self, images: ImageInput | Iterable[ImageInput], batch_size: int = 32, top_k: int = 5
    ) -> Iterator[Prediction]:
        """Classify one image or any number of them, in order; `images` may be endless.

        An iterator, not a list: nothing is classified before it is asked. `list(classifier.predict(images))` is a list,
        `next(classifier.predict(image))` the one of a single image. At most `batch_size` images are held at a time, and
        the predictions of a batch come when it is full (or the images end): use 1 for a camera. `top_k` is the number
        of classes to report, at most all of them.
        Raises `DataError` at the first image that cannot be read, after the predictions of those before it, and
        `OptionError` at once for a batch size or `top_k` below 1. `predict_rows` is faster for many files.
        """
        check_at_least_one("batch_size", batch_size)
        check_at_least_one("top_k", top_k)
        if isinstance(images, str | Path | Image.Image) or (isinstance(images, np.ndarray) and images.ndim < 4):
            images = [images]
        return self._predict(iter(images), batch_size, top_k)

    def _predict(self, images: Iterator[ImageInput], batch_size: int, top_k: int) -> Iterator[Prediction]:
        failure: DataError | None = None
        while failure is None:
            batch: list[GraphInput] = []
            try:
                for image in islice(images, batch_size):
                    batch.append(self.prepare(image))
            except DataError as error:
                failure = error
            if batch:
                yield from self.classify(batch, top_k)
            elif failure is None:
                return
        raise failure

    def prepare(self, image: ImageInput) -> GraphInput:
        """What the graph takes of one image: uint8 [resize, resize, 3] or normalised float32 [3, height, width].

        Raises `DataError` if it cannot be read.
        """
        pixels, wanted = load_image(image), self.interface
        if wanted.squash is not None:
            height, width = wanted.squash
            filter_ = Image.Resampling[wanted.preprocessing.interpolation.upper()]
            pixels = pixels.resize((width, height), filter_)
        if wanted.dtype == "uint8":
            crop = to_crop(pixels, wanted.preprocessing)
            return crop if wanted.channels_last else np.ascontiguousarray(crop.transpose(2, 0, 1))
        if wanted.channels_last:
            return np.ascontiguousarray(to_tensor(pixels, wanted.preprocessing).transpose(1, 2, 0))
        return fitting_input(pixels, wanted.preprocessing, wanted.image_size)

    def probabilities(self, batch: Sequence[GraphInput] | NDArray[Any]) -> FloatArray:
        """Run the graph on prepared images: an array [B, …] or a list of them → probabilities [B, C].

        Raises `BundleError` where the graph fails on what it says that it takes.
        """
        return self._outputs(batch, [self.interface.output])[0]

    def distances(self, batch: Sequence[GraphInput] | NDArray[Any]) -> FloatArray:
        """Run the graph on prepared images → how far each is from the nearest class [B]."""
        self.unknown_threshold()
        return self._outputs(batch, [DISTANCE_NAME])[0]

    def features(self, batch: Sequence[GraphInput] | NDArray[Any]) -> FloatArray:
        """Run the graph on prepared images → what a closed-form head reads of each [B, F]."""
        if self.bundle.features is None:
            raise BundleError(
                f"{self.path} has no output {FEATURES_NAME!r}: only models with a closed-form head have it"
            )
        return self._outputs(batch, [FEATURES_NAME])[0]

    def _outputs(self, batch: Sequence[GraphInput] | NDArray[Any], names: Sequence[str]) -> list[FloatArray]:
        return in_batches(batch, self.interface.batch, lambda rows: self._run(rows, names))

    def classify(self, batch: Sequence[GraphInput] | NDArray[Any], top_k: int = 5) -> list[Prediction]:
        """Predictions of prepared images, in order. Raises `BundleError` where the model's answer is no number."""
        found = []
        for number, prediction in enumerate(self.predictions(batch, top_k), 1):
            if prediction is None:
                raise BundleError(f"{self.path}: its answer to image {number} of {len(batch)} is no number (NaN)")
            found.append(prediction)
        return found

    def predictions(self, batch: Sequence[GraphInput] | NDArray[Any], top_k: int = 5) -> list[Prediction | None]:
        """As `classify`; None for an image to which the model's answer is no number."""
        names, tasks = self.classes, self.interface.task_numbers
        results: list[Prediction | None] = []
        outputs = self._outputs(batch, [self.interface.output, *([DISTANCE_NAME] if self.reject else [])])
        rows = outputs[0]
        far = outputs[1] > self.unknown_threshold() if self.reject else np.zeros(len(rows), bool)
        numbers = np.logical_and.reduce([np.isfinite(output.reshape(len(rows), -1)).all(axis=1) for output in outputs])
        orders = np.argsort(-rows, axis=1, kind="stable")[:, :top_k]
        for row, order, unknown, is_number in zip(rows, orders, far, numbers, strict=True):
            if not is_number:
                results.append(None)
                continue
            top = tuple((names[i], float(row[i])) for i in order)
            index = int(order[0])
            results.append(Prediction(UNKNOWN if unknown else top[0][0], top[0][1], top, tasks[index], index))
        return results

    def _run(self, batch: NDArray[Any], names: Sequence[str]) -> list[FloatArray]:
        """[B, …] → the outputs `names`; of a model from elsewhere, probabilities."""
        if self.interface.dtype == "float16":
            batch = batch.astype(np.float16)
        found: list[FloatArray] = run_graph(self.path, self._session, names, {self.interface.input: batch}, len(batch))
        if self.interface.bundle is not None:
            return found
        (rows,) = found
        if rows.shape != (len(batch), len(self.classes)):
            raise BundleError(
                f"{self.path}: output {self.interface.output!r} has shape {list(rows.shape)} for {len(batch)} images, "
                f"expected {[len(batch), len(self.classes)]}: as many columns as labels were found"
            )
        return [as_probabilities(rows.astype(np.float32))]


def _no_threshold(bundle: Bundle) -> str:
    if bundle.features is not None:
        return "too few held-out images were there to measure one for this smaller variant: use student.onnx"
    return "export a run with a closed-form head (cdl head RUN gives it one), without --no-statistics"


def as_probabilities(rows: FloatArray) -> FloatArray:
    """Rows [B, C] that are probabilities already, as they are; softmax of any other."""
    if (rows >= 0).all() and np.allclose(rows.sum(axis=1), 1, atol=1e-3):
        return rows
    with np.errstate(invalid="ignore"):  # of NaN and infinity: what comes of them is NaN, and told as such
        powers = np.exp(rows - rows.max(axis=1, keepdims=True))
        result: FloatArray = powers / powers.sum(axis=1, keepdims=True)
    return result


def check_at_least_one(name: str, value: int) -> None:
    """Raise `OptionError` if `value` of the option `name` is below 1."""
    if value < 1:
        raise OptionError(f"{name} is {value}, expected at least 1")
