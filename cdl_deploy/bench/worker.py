"""The process in which a model runs in onnxruntime or in PyTorch: `python -m cdl_deploy.bench.worker`."""

from __future__ import annotations

from typing import Any

from cdl_deploy.bench.runners import Job, Runner, make_runner
from cdl_deploy.errors import CdlError
from cdl_deploy.process_memory import peak_memory
from cdl_deploy.targets.scripts.worker import serve


def runner_of(job: dict[str, Any]) -> Runner:
    """See `make_runner`."""
    return make_runner(Job(**{**job, "photos": tuple(job["photos"])}))


if __name__ == "__main__":
    serve(runner_of, peak_memory, CdlError)
