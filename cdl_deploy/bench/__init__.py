"""Latency of exported models, measured so that an expert believes it.

    from cdl_deploy.bench import BenchOptions, bench_latency, find_models
    report = bench_latency(find_models(["runs/digits"]), BenchOptions(batches=(1, 8)))
    print(report.headline)

How it measures, and why:

* Every model (at every thread count) runs in a process of its own, because two onnxruntime sessions in one process
  spoil each other: the idle thread pool spins on the cores that the other needs.
* onnxruntime keeps its defaults, spinning included, so the numbers are those of a plain `session.run` loop. A pool
  still spins for a while after its last run (25 to 50 ms here, onnxruntime 1.32); a worker therefore answers only when
  its own CPU clock has stood still for a moment, and then blocks on its standard input. While one model is measured,
  the others use no CPU.
* The models take turns in short bursts, in random order, over many rounds: a disturbance hits all of them alike. The
  first part of a burst is not counted, because another process has just used the caches.
* The 95 % interval of a median comes from resampling whole rounds (a cluster bootstrap): iterations of one burst are
  not independent, so counting each as a new observation would promise too much.
* What cannot be trusted (other load, an interval that was not reached, a drift) is said in the report's notes.
"""

from cdl_deploy.bench.machine import Machine
from cdl_deploy.bench.options import BenchOptions, ModelSpec, find_models
from cdl_deploy.bench.report import BenchReport, Comparison, Measurement, ModelRecord, Progress
from cdl_deploy.bench.rounds import bench_latency

__all__ = [
    "BenchOptions",
    "BenchReport",
    "Comparison",
    "Machine",
    "Measurement",
    "ModelRecord",
    "ModelSpec",
    "Progress",
    "bench_latency",
    "find_models",
]
