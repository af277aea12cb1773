"""The job of `predict.py` on a Ray cluster, by Ray Data: each actor holds a copy of the model and reads images itself.

The machines need this package, the model and the images under the same paths (a shared file system). Paths travel in
portions, so that the driver's memory stays flat, and rows come back in order. Needs the extra `ray`.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

import numpy as np
import ray
import ray.data

from cdl_deploy.errors import OptionError, PassingError
from cdl_deploy.runtime.classifier import Classifier, check_at_least_one
from cdl_deploy.runtime.columns import from_record, to_record
from cdl_deploy.runtime.predict import Row, classify_paths

PORTION = 100_000
"""Paths given to Ray at a time. Each portion starts the actors anew, which takes seconds."""
PASSING = "passing error"
GPU_PROVIDERS = ("CUDA", "Tensorrt", "NvTensorRTRTX", "ROCM", "MIGraphX")


class ModelActor:
    """One copy of the model. Ray Data gives it batches of paths and takes columns of rows."""

    def __init__(
        self, model: str, folder: str, providers: Sequence[str] | None, threads: int, top_k: int, reject: bool = False
    ) -> None:
        if os.path.isdir(folder):  # where relative paths begin
            os.chdir(folder)
        self._classifier = Classifier(model, providers=providers, threads=threads, reject=reject)
        self._top_k = top_k

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """{"path": bytes [n]} → {"record": JSON [n]}: what `to_record` makes of each row.

        An error that ends the prediction comes as `{PASSING: message}` in place of each: Ray would send a traceback.
        """
        paths = [os.fsdecode(path) for path in batch["path"]]
        try:
            records = [to_record(row) for row in classify_paths(self._classifier, paths, self._top_k)]
        except PassingError as error:
            records = [{PASSING: str(error)}] * len(paths)
        return {"record": np.array([json.dumps(record) for record in records], dtype=object)}


def predict_rows_on_ray(
    classifier: Classifier,
    paths: Iterable[str],
    batch_size: int = 32,
    top_k: int = 5,
    threads: int = 1,
    providers: Sequence[str] | None = None,
    portion: int = PORTION,
) -> Generator[Row, None, None]:
    """The rows of `predict_rows`, computed by as many copies of the classifier's model as the cluster has room for.

    A copy takes `threads` cores, and a GPU where `providers` name one. Ray is started on this machine unless one is
    running already, here or at RAY_ADDRESS. Raises `OptionError` where the cluster has no room for one copy.
    """
    for name, value in (("batch_size", batch_size), ("top_k", top_k), ("threads", threads), ("portion", portion)):
        check_at_least_one(name, value)
    return _rows(classifier, iter(paths), batch_size, top_k, threads, providers, portion)


def _rows(
    classifier: Classifier,
    paths: Iterator[str],
    batch_size: int,
    top_k: int,
    threads: int,
    providers: Sequence[str] | None,
    portion: int,
) -> Generator[Row, None, None]:
    with _ray_running():
        needs = {"CPU": float(threads)} | ({"GPU": 1.0} if uses_gpu(providers) else {})
        copies = copies_that_fit(ray.cluster_resources(), needs)
        arguments = (str(classifier.path.absolute()), os.getcwd(), providers, threads, top_k, classifier.reject)
        while some := list(islice(paths, portion)):
            batches = -(-len(some) // batch_size)
            dataset = ray.data.from_items(
                [{"path": os.fsencode(path)} for path in some], override_num_blocks=min(batches, 8 * copies)
            ).map_batches(
                ModelActor,
                fn_constructor_args=arguments,
                batch_size=batch_size,
                compute=ray.data.ActorPoolStrategy(size=min(batches, copies)),
                num_cpus=needs["CPU"],
                num_gpus=needs.get("GPU"),
            )
            for batch in dataset.iter_batches(batch_size=batch_size, batch_format="numpy"):
                for record in map(json.loads, batch["record"]):
                    if PASSING in record:
                        raise PassingError(record[PASSING])
                    yield from_record(record)


def uses_gpu(providers: Sequence[str] | None) -> bool:
    """Whether one of `providers` runs on a GPU that Ray hands out."""
    return any(name.startswith(GPU_PROVIDERS) for name in providers or ())


def copies_that_fit(cluster: dict[str, float], needs: dict[str, float]) -> int:
    """How many copies, each needing `needs`, a cluster with these resources holds. Raises `OptionError` for none."""
    copies = min(int(cluster.get(name, 0.0) // amount) for name, amount in needs.items())
    if copies < 1:
        wanted, found = (", ".join(f"{r.get(name, 0.0):g} {name}" for name in needs) for r in (needs, cluster))
        raise OptionError(f"a copy of the model needs {wanted}, the Ray cluster has {found}: lower --threads")
    return copies


@contextmanager
def _ray_running() -> Iterator[None]:
    """Ray, quiet, with rows in order; what is started here ends here."""
    ours = not ray.is_initialized()
    if ours:
        ray.init(log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False)
    context = ray.data.DataContext.get_current()
    before = context.execution_options.preserve_order, context.enable_progress_bars
    context.execution_options.preserve_order, context.enable_progress_bars = True, False
    try:
        yield
    finally:
        context.execution_options.preserve_order, context.enable_progress_bars = before
        if ours:
            ray.shutdown()
