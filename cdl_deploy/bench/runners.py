"""What a worker measures: something that is loaded, then run on batches. One class for each way to run a model."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from cdl_deploy.bench.inputs import TYPES, Declared, declare, fixed_batch, make_feed
from cdl_deploy.bench.macs import count_macs
from cdl_deploy.bench.weights import file_bytes, read_weights
from cdl_deploy.data.images import load_image
from cdl_deploy.errors import BundleError
from cdl_deploy.runtime.bundle import FORMAT_KEY, decode_metadata
from cdl_deploy.runtime.session import open_session

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Run = Callable[[], object]


@dataclass(frozen=True)
class Job:
    """What a worker is asked to load."""

    model: str
    """The `.onnx` file, or the run directory of a PyTorch model."""
    kind: str
    """`"onnx"` or `"torch"`."""
    role: str | None
    """Which model of a run: `"student"` or `"teacher"`."""
    threads: int
    """Threads of one inference."""
    seed: int
    """Seed of made-up values."""
    size: tuple[int, int] | None
    """(width, height) of made-up images for a model that takes any; None: the size it scales to by itself."""
    photos: tuple[str, ...] = ()
    """Image files to start from; empty: the graph alone, fed with what it takes."""
    ours: bool = False
    """Whether it was exported by cdl, so that `Classifier` can read it."""


class Runner(Protocol):
    """One model."""

    def load(self) -> None:
        """Make it ready to run: read the file, prepare the session."""
        ...

    def run_of(self, batch: int) -> Run:
        """A function that runs one batch; what it is fed with is made now."""
        ...

    def inspect(self, batch: int) -> dict[str, Any]:
        """What there is to know apart from times: see `Facts` in `cdl_deploy.bench.report`."""
        ...


def make_runner(job: Job) -> Runner:
    """The runner for a job. What it imports is imported now, so that loading can be timed without it."""
    if job.kind == "torch":
        from cdl_deploy.bench.torch_runner import TorchRunner

        return TorchRunner(job)
    return PhotoRunner(job) if job.photos else GraphRunner(job)


class GraphRunner:
    """A session, fed with what its graph takes."""

    def __init__(self, job: Job) -> None:
        import onnxruntime  # noqa: F401  (imported now, not while loading is timed)

        import cdl_deploy.runtime.classifier  # noqa: F401

        self.job, self.path = job, Path(job.model)

    def load(self) -> None:
        """Open the session."""
        self.session = open_session(self.path, threads=self.job.threads)
        self.metadata: dict[str, str] = dict(self.session.get_modelmeta().custom_metadata_map)

    @property
    def inputs(self) -> list[Declared]:
        """Its inputs, with every free size filled in."""
        size = self.job.size
        if size is None and FORMAT_KEY in self.metadata:
            side = decode_metadata(self.path, self.metadata).preprocessing.resize
            size = (side, side)
        return declare(self.path, self.session.get_inputs(), size)

    def run_of(self, batch: int) -> Run:
        """`session.run` on random values."""
        only = fixed_batch(self.inputs)
        if only is not None and only != batch:
            raise BundleError(f"{self.path}: takes batches of {only} only, asked for {batch}")
        feed, session = make_feed(self.inputs, batch, np.random.default_rng(self.job.seed)), self.session
        return lambda: session.run(None, feed)

    def inspect(self, batch: int) -> dict[str, Any]:
        """Reads the file, and profiles a run of `batch` images (or as many as the model takes)."""
        inputs = self.inputs
        only = fixed_batch(inputs)
        images = only or batch
        macs = count_macs(self.path, make_feed(inputs, images, np.random.default_rng(self.job.seed)), images)
        weights = read_weights(self.path)
        return {
            "metadata": self.metadata,
            "inputs": "; ".join(map(str, inputs)),
            "feed": [TYPES[inputs[0].kind].__name__, inputs[0].shape] if len(inputs) == 1 else None,
            "outputs": {node.name: node.type for node in self.session.get_outputs()},
            "fixed_batch": only,
            "file_bytes": file_bytes(self.path),
            "sha256": hashlib.sha256(self.path.read_bytes()).hexdigest(),
            "parameters": weights.parameters if weights else None,
            "macs": macs.macs,
            "uncounted": list(macs.uncounted),
            "accuracy": None,
            "classes": None,
        }


class PhotoRunner(GraphRunner):
    """From image files to an answer: read, decode, preprocess, run; one batch after the other, on one thread.

    Our own models go through `Classifier`, as they do in an app. Others say nothing of their preprocessing: the image
    is resized to what they take and normalised with the statistics of ImageNet.
    """

    def load(self) -> None:
        """Open the session, or the classifier that holds it."""
        from cdl_deploy.runtime.classifier import Classifier

        self.classifier = Classifier(self.path, threads=self.job.threads) if self.job.ours else None
        if self.classifier is None:
            super().load()

    def run_of(self, batch: int) -> Run:
        """Each run takes the next `batch` photographs."""
        photos, classifier = [Path(photo) for photo in self.job.photos], self.classifier
        starts = count(step=batch)
        if classifier is not None:

            def classify() -> object:
                start = next(starts)
                chosen = [photos[(start + i) % len(photos)] for i in range(batch)]
                return list(classifier.predict(chosen, batch_size=batch))

            return classify
        return self._foreign(photos, batch, starts)

    def _foreign(self, photos: list[Path], batch: int, starts: "count[int]") -> Run:
        inputs = self.inputs
        shape = inputs[0].shape
        first, last = (shape[0], shape[-1]) if len(shape) == 3 else (0, 0)
        if len(inputs) != 1 or 3 not in (first, last):
            raise BundleError(
                f"{self.path}: inputs are ({'; '.join(map(str, inputs))}), expected one colour image for --from jpeg"
            )
        height, width = shape[1:] if first == 3 else shape[:2]
        session, name, kind = self.session, inputs[0].name, TYPES[inputs[0].kind]

        def one(photo: Path) -> Any:
            image = load_image(photo).resize((width, height))
            values: NDArray[Any] = np.asarray(image)
            if kind is not np.uint8:
                values = ((values / 255 - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD)).astype(kind)
            return values.transpose(2, 0, 1) if first == 3 else values

        def run() -> object:
            start = next(starts)
            stacked = np.stack([one(photos[(start + i) % len(photos)]) for i in range(batch)])
            return session.run(None, {name: np.ascontiguousarray(stacked)})

        return run
