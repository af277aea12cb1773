"""A teacher that sees images at a size of its own, while its prompts are chosen by the student's query at another.

Its file makes both from the same image. What is compared with the trained model is the network behind that: it gets
the held-out pixels of both sizes as they are, since no image has just these pixels at both.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx

from cdl_deploy.data.preprocessing import ResizeCrop
from cdl_deploy.errors import OptionError
from cdl_deploy.export.parity import Run
from cdl_deploy.export.preprocessing import PIXELS_NAME, QUERY_PIXELS_NAME
from cdl_deploy.export.session import cpu_session
from cdl_deploy.run.record import RunRecord
from cdl_deploy.training.models.learner import Learner, QueryEncoder
from cdl_deploy.training.shapes import Pixels

BATCH = 8


def query_view(record: RunRecord, learner: Learner, uses_query: bool, takes: str) -> ResizeCrop | None:
    """What the query sees, where the learner sees something else. `takes`: what `--input` says.

    Raises OptionError where the file takes a tensor, which has one size.
    """
    if learner.role == "student" or record.preprocessing.teacher is None or not uses_query:
        return None
    if takes != "image":
        raise OptionError(
            f"--input {takes}: the teacher sees images at {record.preprocessing.teacher.size} pixels, and its prompts "
            f"are chosen by the student's query at {record.preprocessing.size}: export it with --input image, or give "
            "--no-teacher"
        )
    return record.preprocessing.resize_crop


def behind_preprocessing(model: onnx.ModelProto, encoder: QueryEncoder, learner: Learner, images: Pixels) -> Run:
    """The network of an exported model, fed with the pixels that query and learner see of `images`."""
    inferred = onnx.shape_inference.infer_shapes(model)

    def run(names: Sequence[str]) -> list[np.ndarray]:
        inputs = [PIXELS_NAME, QUERY_PIXELS_NAME]
        network = onnx.utils.Extractor(inferred).extract_model(inputs, list(names))
        session = cpu_session(network)
        found = []
        for some in images.split(BATCH):
            seen = (learner.backbone.own_pixels(some), encoder.backbone.own_pixels(some))
            feeds = {name: pixels.float().numpy() for name, pixels in zip(inputs, seen, strict=True)}
            found.append(session.run(list(names), feeds))
        return [np.concatenate(parts) for parts in zip(*found, strict=True)]

    return run
