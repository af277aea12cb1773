"""The processes of a benchmark: which program each model runs in, and what it is asked to prepare."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from cdl_deploy.bench.options import BenchOptions, ModelSpec
from cdl_deploy.errors import BundleError, OptionError
from cdl_deploy.runtime.bundle import Bundle
from cdl_deploy.targets import process
from cdl_deploy.targets.client import WorkerClient, WorkerError


def start(spec: ModelSpec) -> WorkerClient:
    """The process of a model; nothing is loaded yet."""
    if spec.place is not None:
        return process.start(spec.place, spec.path)
    # -P: a file called random.py in the user's folder must not be taken for the standard library's
    return WorkerClient(spec.path, [sys.executable, "-P", "-m", "cdl_deploy.bench.worker"])


def job_in_runtime(
    spec: ModelSpec, facts: dict[str, Any], folder: Path, threads: int, options: BenchOptions
) -> dict[str, Any]:
    """What the process of another runtime is asked to prepare. `folder` keeps what it converts for the next one."""
    dtype, shape = facts["feed"]
    own = folder / spec.name.replace("/", "-")
    own.mkdir(exist_ok=True)
    batch = facts["fixed_batch"] or min(options.batches)
    return process.job_of(spec.path, own, batch, dtype, shape, threads, options.seed)


def facts_there(spec: ModelSpec, facts: dict[str, Any], bundle: Bundle | None, job: dict[str, Any]) -> dict[str, Any]:
    """What differs there from what onnxruntime says of the file. Raises BundleError where it does not run."""
    assert spec.place is not None
    if facts["feed"] is None:
        raise BundleError(f"{spec.path} has several inputs or none of numbers, and --runtime takes models of one")
    given = "image" if facts["feed"][0] == "uint8" else "tensor"
    process.check_fits(spec.path, spec.place.target, given, facts["outputs"], bundle.quantization if bundle else None)
    with start(spec) as client:
        try:
            client.prepare(job)
            client.load()
            found = client.inspect(job["batch"])
        except WorkerError as error:
            raise BundleError(f"{spec.path} does not run in {spec.place.name}: {error.why}") from error
    only = spec.place.target.batches or facts["fixed_batch"]
    return {
        **facts,
        "fixed_batch": only,
        "file_bytes": found["file_bytes"],
        "runtime": f"{spec.place.name} {found['version']}",
    }


def check_options(options: BenchOptions) -> None:
    """Raise OptionError for conditions that other runtimes are not measured under."""
    if options.stages != ("graph",):
        raise OptionError("--runtime measures what the graph takes: leave --from out")
    if options.streams != (1,):
        raise OptionError("--runtime measures one inference at a time: leave --streams out")
