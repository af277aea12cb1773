"""Latency of exported models, measured so that an expert believes it.

    from cdl_deploy.bench import BenchOptions, bench_latency, find_models
    report = bench_latency(find_models(["runs/digits"]), BenchOptions(batches=(1, 8)))
    print(report.headline)

How it measures, and why:

* Every model (at every thread count, and from every stage) runs in a process of its own, because two onnxruntime
  sessions in one process spoil each other: the idle thread pool spins on the cores that the other needs.
* onnxruntime keeps its defaults, spinning included, so the numbers are those of a plain `session.run` loop. A pool
  still spins for a while after its last run (25 to 50 ms here, onnxruntime 1.32); a worker therefore replies only when
  its own CPU clock has stood still for a moment, and then blocks on its standard input. While one model is measured,
  the others use no CPU.
* The models take turns in short bursts, in random order, over many rounds: a disturbance hits all of them alike. The
  first part of a burst is not counted, because another process has just used the caches.
* The 95 % interval of a median comes from resampling blocks of whole rounds: runs of one burst are not independent, and
  neither are rounds that follow each other. Models are compared within rounds. `statistics.py` says how.
* Rounds go on until every median is within the precision asked for and every two models are told apart or known to be
  alike, or until the time is up.
* What cannot be trusted (other load, a noisy or throttled machine, an interval that was not reached, a drift) is said
  in the report's notes.
"""

from cdl_deploy.bench.baseline import Baseline
from cdl_deploy.bench.machine import Machine, describe_machine
from cdl_deploy.bench.models import find_models
from cdl_deploy.bench.options import BenchOptions, Condition, ModelSpec
from cdl_deploy.bench.report import BenchProgress, BenchReport, Change, Comparison, Measurement, ModelRecord
from cdl_deploy.bench.rounds import bench_latency
from cdl_deploy.bench.watch import Watch

__all__ = [
    "Baseline",
    "BenchOptions",
    "BenchProgress",
    "BenchReport",
    "Change",
    "Comparison",
    "Condition",
    "Machine",
    "Measurement",
    "ModelRecord",
    "ModelSpec",
    "Watch",
    "bench_latency",
    "describe_machine",
    "find_models",
]
