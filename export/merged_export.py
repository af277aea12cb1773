"""What `--tokens` makes of a learner before its graph is built: merged tokens, their head, and images to compare on.

A closed-form head is solved anew, of the merged tokens of all training images, as training solved it; its sums are then
the file's. Where these images are gone the head stays what it is, and the file has no features, sums and distance:
those of the run belong to other features.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from cdl_deploy.errors import ParityError
from cdl_deploy.export.merged_model import CLOSE, MergedModel, training_tasks
from cdl_deploy.export.parity import trained_logits
from cdl_deploy.run.record import RunRecord
from cdl_deploy.runtime.bundle_parts import PatchTokens
from cdl_deploy.training.data.transforms import evaluation_transform
from cdl_deploy.training.fitting import weighs_teacher
from cdl_deploy.training.methods.folded import FixedSelection
from cdl_deploy.training.models.learner import Learner
from cdl_deploy.training.models.teacher_student import TeacherStudent


@dataclass(frozen=True)
class Compared:
    """A learner that is exported, and the images that its file is compared with it on."""

    pair: TeacherStudent
    learner: Learner
    images: Tensor
    """Pixels, held out by the run."""
    sums_fit: bool = True
    """Whether the sums of its closed-form head are over the features that it has."""
    patch_tokens: PatchTokens | None = None
    close: int = 0
    """Images that are not among `images`, since two merges are equally good there."""


def merge_for_export(
    run: Path,
    record: RunRecord,
    given: Compared,
    labels: Tensor,
    share: float,
    fixed: FixedSelection | None,
    on_step: Callable[[str], None],
) -> Compared:
    """The same with merged tokens. `labels` [n]: of its images. Raises ParityError where no image can be compared."""
    learner, images = given.learner, given.images
    merged, prompts = MergedModel(given.pair, learner, share), fixed.prompts if fixed else None
    solved = False
    if learner.closed_form is not None and not weighs_teacher(learner):
        tasks = training_tasks(run, record)
        if tasks is not None:
            on_step(f"{learner.role}: solving the head anew, of merged tokens")
            merged.solve_head(tasks, evaluation_transform(record.preprocessing.views))
            solved = True
    on_step(f"{learner.role}: merging tokens of {len(images)} held-out images")
    before, after = (
        100 * float((trained_logits(encoder, own, images, prompts).argmax(dim=1) == labels).float().mean())
        for encoder, own in ((given.pair.encoder, learner), (merged.pair.encoder, merged.learner))
    )
    clear = merged.clear(images, prompts)
    close = int((~clear).sum())
    if close == len(images):
        raise ParityError(
            f"--tokens {share:g}: none of the {len(images)} held-out images can be compared with the trained model, "
            f"since each has two merges that are equally good, to within {CLOSE:g} of a cosine: give another share"
        )
    head = "solved" if solved else "trained"
    tokens = PatchTokens(share, merged.left, merged.patches, head, before, after, len(images))
    return Compared(merged.pair, merged.learner, images[clear], solved or learner.closed_form is None, tokens, close)
