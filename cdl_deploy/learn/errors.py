"""What can stop a model from learning."""

from __future__ import annotations

from cdl_deploy.errors import CdlError


class LearnError(CdlError):
    """A model that cannot learn this, or a file that cannot be written."""
