"""`--engine ray` gives the rows of the local engine, on a cluster of two workers on this machine."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cdl_deploy import Classifier
from cdl_deploy.errors import OptionError, PassingError
from cdl_deploy.rows.formats import row_format
from cdl_deploy.runtime.predict import predict_rows

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="ray is not installed: pip install 'cdl-deploy[ray]'"
)
PROJECT = Path(__file__).resolve().parents[2]


def test_same_rows_as_here(model_path, photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos/bad.png").write_text("no image")
    odd = os.fsdecode(b"caf\xe9.png")
    (tmp_path / "photos" / odd).write_bytes(photos["green"].read_bytes())
    names = [*(path.name for path in photos.values()), "bad.png", odd, "none.png"]
    paths = [f"photos/{name}" for name in names] * 2 + ["photos/none.png"]  # relative: to where the command is given
    encode = row_format("jsonl", 2).encode
    expected = b"".join(map(encode, predict_rows(Classifier(model_path, threads=1), paths, 3, top_k=2)))

    output = tmp_path / "rows.jsonl"
    done = subprocess.run(
        [sys.executable, "-m", "tests.runtime.ray_cluster", model_path, output],
        input=os.fsencode("\n".join(paths)),
        env=os.environ | {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": str(PROJECT)},
        capture_output=True,
        timeout=120,
    )
    told = done.stderr.decode(errors="replace")
    assert "cores by node: [1.0, 1.0]" in told
    assert "5 of 13 images could not be read\nexit code: 1\n" in told
    assert told.count("Starting execution of Dataset") == 2, "13 paths in portions of 7"
    assert output.read_bytes() == expected


def test_a_failure_of_the_machine_travels_without_a_traceback(model_path, photos, tmp_path, monkeypatch):
    from cdl_deploy.runtime import ray_engine

    def refuse(*given):
        raise PassingError("a.png: Too many open files")

    actor = ray_engine.ModelActor(str(model_path), str(tmp_path), None, 1, 2)
    monkeypatch.setattr(ray_engine, "classify_paths", refuse)
    found = actor({"path": [os.fsencode(path) for path in photos.values()]})
    assert list(found["record"]) == ['{"passing error": "a.png: Too many open files"}'] * len(photos)


def test_copies_that_fit():
    from cdl_deploy.runtime.ray_engine import copies_that_fit, uses_gpu

    cluster = {"CPU": 10.0, "GPU": 2.0, "memory": 1e9}
    assert copies_that_fit(cluster, {"CPU": 1.0}) == 10
    assert copies_that_fit(cluster, {"CPU": 4.0}) == 2
    assert copies_that_fit(cluster, {"CPU": 1.0, "GPU": 1.0}) == 2
    message = "a copy of the model needs 16 CPU, the Ray cluster has 10 CPU: lower --threads"
    with pytest.raises(OptionError, match=message):
        copies_that_fit(cluster, {"CPU": 16.0})
    with pytest.raises(OptionError, match="needs 1 CPU, 1 GPU, the Ray cluster has 10 CPU, 0 GPU"):
        copies_that_fit({"CPU": 10.0}, {"CPU": 1.0, "GPU": 1.0})
    assert uses_gpu(["CUDAExecutionProvider", "CPUExecutionProvider"])
    assert not uses_gpu(["CPUExecutionProvider"])
    assert not uses_gpu(None)
