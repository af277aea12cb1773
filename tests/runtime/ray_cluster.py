"""A Ray cluster of two workers on this machine, and `cdl predict --engine ray` on it: run by test_ray_engine.py.

    python -m tests.runtime.ray_cluster MODEL OUTPUT < PATHS

A process of its own, because Ray's own warnings would be errors in pytest, and so that nothing of it stays.
"""

from __future__ import annotations

import io
import os
import sys
from functools import partial

import ray
from ray.cluster_utils import Cluster

from cdl_deploy.cli import main
from cdl_deploy.runtime import ray_engine

PORTION = 7


def serve(model: str, output: str, paths: list[str]) -> None:
    """Rows into OUTPUT, in portions of a few paths: each starts the actors anew."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=1)
        ray.init(address=cluster.address, log_to_driver=False)
        alive = [node["Resources"].get("CPU", 0.0) for node in ray.nodes() if node["Alive"]]
        # A copy takes one core, so two copies are on two machines.
        print("cores by node:", sorted(alive), file=sys.stderr)
        ray_engine.predict_rows_on_ray = partial(ray_engine.predict_rows_on_ray, portion=PORTION)
        try:
            sys.stdin = io.StringIO("\n".join(paths))
            main(["predict", model, "-", "--engine", "ray", "--output", output, "--top-k", "2", "--batch-size", "2"])
        except SystemExit as end:
            print("exit code:", end.code, file=sys.stderr)
    finally:
        ray.shutdown()
        cluster.shutdown()


if __name__ == "__main__":
    serve(sys.argv[1], sys.argv[2], [os.fsdecode(line) for line in sys.stdin.buffer.read().splitlines()])
