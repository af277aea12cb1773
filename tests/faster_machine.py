"""What tests spare the machine: threads of onnxruntime, waiting for the disk, drawing the same numbers again."""

from __future__ import annotations

import os
from functools import lru_cache
from typing import Any

import onnxruntime

from cdl_deploy.closed_form import model_world
from cdl_deploy.closed_form.stable_random import normals
from cdl_deploy.closed_form.teacher_sums import Floats


def prepare_machine() -> None:
    """To be called once in a process."""
    _one_thread()
    model_world.normals = lru_cache(64)(_drawn)  # type: ignore[attr-defined]
    os.fsync = lambda _: None  # type: ignore[assignment]  # tests kill processes, and never cut the power


def _one_thread() -> None:
    """Where nobody says how many: the models are tiny, and a second thread takes as long again, to wait for work."""
    start = onnxruntime.InferenceSession.__init__

    def init(self: Any, model: Any, sess_options: Any = None, *arguments: Any, **named: Any) -> None:
        sess_options = sess_options or onnxruntime.SessionOptions()
        if not sess_options.intra_op_num_threads:
            sess_options.intra_op_num_threads = 1
        start(self, model, sess_options, *arguments, **named)

    onnxruntime.InferenceSession.__init__ = init


def _drawn(seed: int, *shape: int) -> Floats:
    drawn = normals(seed, *shape)
    drawn.flags.writeable = False
    return drawn
