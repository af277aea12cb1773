"""The images that a model is evaluated on, opened for a command or a function, which errors name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cdl_deploy.errors import OptionError
from cdl_deploy.require_extra import require_extra

if TYPE_CHECKING:
    from cdl_deploy.data.labelled import LabelledImages


def open_evaluation_images(
    option: str, command: str, data: str, holdout: float | None, labels: str | None = None
) -> LabelledImages:
    """The test images of a data set known by name, or of a folder laid out as for `cdl train --data`.

    Raises DataError, OptionError or MissingExtraError.
    """
    from cdl_deploy.data.sources import open_test_images

    if holdout is not None and not 0 < holdout < 1:
        raise OptionError(f"--holdout is {holdout:g}, expected a share between 0 and 1, such as 0.2")
    with require_extra(f"{command} {option} {data}", "train"):
        return open_test_images(option, data, holdout, labels)
