"""How to talk to a model: what goes in under which name, what comes out, and what its columns are called.

`interface_of` gives this for any open session: from the metadata of an exported model, or, for a model from elsewhere,
from what is usual there (`foreign.py`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from cdl_deploy.data.preprocessing import Preprocessing
from cdl_deploy.runtime.bundle import FORMAT_KEY, INPUT_NAME, PROBABILITIES_NAME, Bundle, bundle_of
from cdl_deploy.runtime.session_input import input_shape

if TYPE_CHECKING:
    import onnxruntime


@dataclass(frozen=True)
class Interface:
    """What one needs to know to classify images with a model."""

    classes: tuple[str, ...]
    """Class names in the order of the output's columns."""
    task_numbers: tuple[int, ...]
    """For each class the task that taught it; the first is 1. A model from elsewhere has one task."""
    preprocessing: Preprocessing
    """How pixels become the input."""
    input: str
    """Name of the input."""
    output: str
    """Name of the output that is read, [B, C]: probabilities, or logits of a model from elsewhere."""
    dtype: str = "float32"
    """Numpy's name of the input's type, where `preprocessing.input` is `"tensor"`; uint8 is not normalised."""
    channels_last: bool = False
    """Whether a tensor is [B, height, width, 3] rather than [B, 3, height, width]."""
    squash: tuple[int, int] | None = None
    """(height, width) that an image is resized to first, whatever its shape, where a model from elsewhere wants that;
    `preprocessing` then only crops."""
    batch: int | None = None
    """Images in one run, where the graph fixes their number."""
    image_size: tuple[int, int] | None = None
    """(height, width) of the images, where an exported graph that preprocesses them fixes it."""
    assumed: str | None = None
    """What the file does not say and was assumed, on one line."""
    bundle: Bundle | None = None
    """What an exported model says about itself."""

    @property
    def tasks(self) -> tuple[tuple[str, ...], ...]:
        """Class names by the task that taught them; empty for a model from elsewhere, which says nothing of tasks."""
        return self.bundle.tasks if self.bundle is not None else ()


def interface_of(session: onnxruntime.InferenceSession, path: Path) -> Interface:
    """The `Interface` of an open session; raises `BundleError`, saying what is missing, where there is none."""
    if FORMAT_KEY not in session.get_modelmeta().custom_metadata_map:
        from cdl_deploy.runtime.foreign import foreign_interface

        return foreign_interface(session, path)
    bundle = bundle_of(session, path)
    batch, image_size = input_shape(session, bundle.preprocessing)
    return replace(bundle_interface(bundle), batch=batch, image_size=image_size)


def bundle_interface(bundle: Bundle) -> Interface:
    """The `Interface` of a model that cdl exported."""
    return Interface(
        classes=bundle.classes,
        task_numbers=bundle.task_numbers,
        preprocessing=bundle.preprocessing,
        input=INPUT_NAME,
        output=PROBABILITIES_NAME,
        bundle=bundle,
    )
