"""A model in another runtime, where `evaluate` takes a `Classifier`."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cdl_deploy.data.images import FloatArray
from cdl_deploy.errors import BundleError
from cdl_deploy.folders import scratch_folder
from cdl_deploy.runtime.classifier import Classifier
from cdl_deploy.targets.client import WorkerClient, WorkerError
from cdl_deploy.targets.process import Place, check_fits, job_of, logits_of, start

THREADS = 1


class RuntimeClassifier(Classifier):
    """Probabilities are the softmax of the logits that the runtime gives; images go through it one after another, in
    the only batch size that the file takes or one by one."""

    def __init__(self, path: Path, place: Place, client: WorkerClient, folder: Path) -> None:
        super().__init__(path, threads=THREADS)
        self._client, self._folder, self._lock = client, folder, threading.Lock()
        self._batch = self.interface.batch or place.target.batch or 1
        size = self.bundle.preprocessing
        outputs = {it.name: it.type for it in self._session.get_outputs()}
        check_fits(path, place.target, size.input, outputs, self.bundle.quantization)
        side = self.interface.image_size or (size.resize, size.resize)
        dtype, shape = ("uint8", (*side, 3)) if size.input == "image" else ("float32", (3, size.height, size.width))
        try:
            client.prepare(job_of(path, folder, self._batch, dtype, shape, THREADS))
            client.load()
            self.runtime = f"{place.name} {client.inspect(self._batch)['version']}"
        except WorkerError as error:
            raise BundleError(f"{path} does not run in {place.name}: {error.why}") from error

    def probabilities(self, batch: Sequence[NDArray[Any]] | NDArray[Any]) -> FloatArray:
        """As in onnxruntime."""
        rows = np.stack(list(batch))
        with self._lock:
            logits = logits_of(self._client, rows, self._batch, self._folder)
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        found: FloatArray = powers / powers.sum(axis=1, keepdims=True)
        return found


@contextmanager
def in_runtime(path: Path, place: Place) -> Iterator[RuntimeClassifier]:
    """An exported model in a runtime, whose process ends with the block. Raises BundleError where it does not run."""
    with scratch_folder("cdl-runtime-") as folder, start(place, path) as client:
        yield RuntimeClassifier(path, place, client, folder)
