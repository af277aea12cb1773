"""`Classifier`: images in, class names out. Everything it needs to know is in the `.onnx` file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from PIL import Image

from cdl_deploy.bundle import INPUT_NAME, PROBABILITIES_NAME, Bundle, bundle_of, open_session
from cdl_deploy.errors import DataError, OptionError, nearest
from cdl_deploy.images import ByteArray, FloatArray, load_image, to_input

ImageSource = str | Path | Image.Image | NDArray[Any]
"""A path, a PIL image, or a uint8 array [H, W, 3]."""


@dataclass(frozen=True)
class Prediction:
    """What a model says about one image."""

    label: str
    """Name of the most probable class."""
    probability: float
    """Its probability, 0 to 1."""
    top_k: tuple[tuple[str, float], ...]
    """The most probable classes with their probabilities, best first; equal ones in the order of the logits."""
    task: int
    """Number of the task that taught the class; the first task is 1."""
    index: int
    """Position of the class in the logits; the first is 0."""


class Classifier:
    """An exported model, ready to run.

    It may be used from several threads at once: nothing in it changes after it is built.
    """

    def __init__(self, path: str | Path, providers: Sequence[str] | None = None, threads: int | None = None) -> None:
        """Open the model at `path`.

        `providers`: onnxruntime execution providers in order of preference; default: CPU.
        `threads`: threads that one inference may use; default: onnxruntime's choice (the host's cores, whatever
        a container allows).
        Raises `BundleError` for a file that is not an exported model, `OptionError` for a bad provider or thread count.
        """
        if threads is not None and threads < 1:
            raise OptionError(f"threads is {threads}, expected at least 1")
        for name in providers or ():
            available = onnxruntime.get_available_providers()
            if name not in available:
                raise OptionError(
                    f"this onnxruntime has no provider {name!r}, only {', '.join(available)}{nearest(name, available)}"
                )
        self._session = open_session(path, providers=providers, threads=threads)
        self.bundle: Bundle = bundle_of(self._session, Path(path))
        numbers = {name: number for number, task in enumerate(self.bundle.tasks, 1) for name in task}
        self._task_numbers = [numbers[name] for name in self.bundle.classes]

    def predict(
        self, images: ImageSource | Iterable[ImageSource], batch_size: int = 32, top_k: int = 5
    ) -> Iterator[Prediction]:
        """Classify one image or any number of them, in order; `images` may be endless.

        At most `batch_size` images are held at a time, and the predictions of a batch come when it is full (or the
        images end): use 1 for a camera. `top_k` is the number of classes to report, at most all of them.
        Raises `DataError` at the first image that cannot be read, after the predictions of those before it, and
        `OptionError` at once for a batch size or `top_k` below 1.
        """
        check_at_least_one("batch_size", batch_size)
        check_at_least_one("top_k", top_k)
        if isinstance(images, str | Path | Image.Image) or (isinstance(images, np.ndarray) and images.ndim < 4):
            images = [images]
        return self._predict(iter(images), batch_size, top_k)

    def _predict(self, images: Iterator[ImageSource], batch_size: int, top_k: int) -> Iterator[Prediction]:
        failure: DataError | None = None
        while failure is None:
            tensors: list[FloatArray | ByteArray] = []
            try:
                for image in islice(images, batch_size):
                    tensors.append(self.prepare(image))
            except DataError as error:
                failure = error
            if tensors:
                yield from self.classify(np.stack(tensors), top_k)
            elif failure is None:
                return
        raise failure

    def prepare(self, image: ImageSource) -> FloatArray | ByteArray:
        """What the graph takes of one image, all of one shape. Raises `DataError` if it cannot be read."""
        return to_input(load_image(image), self.bundle.preprocessing)

    def probabilities(self, batch: NDArray[Any]) -> FloatArray:
        """Run the graph: a batch of what `prepare` gives → probabilities [B, C]."""
        result: FloatArray = self._session.run([PROBABILITIES_NAME], {INPUT_NAME: batch})[0]
        return result

    def classify(self, batch: NDArray[Any], top_k: int = 5) -> list[Prediction]:
        """Predictions of a batch of what `prepare` gives, in order."""
        names, results = self.bundle.classes, []
        for row in self.probabilities(batch):
            best = np.argsort(-row, kind="stable")[:top_k]
            top = tuple((names[i], float(row[i])) for i in best)
            index = int(best[0])
            results.append(Prediction(top[0][0], top[0][1], top, self._task_numbers[index], index))
        return results


def check_at_least_one(name: str, value: int) -> None:
    """Raise `OptionError` if `value` of the option `name` is below 1."""
    if value < 1:
        raise OptionError(f"{name} is {value}, expected at least 1")
