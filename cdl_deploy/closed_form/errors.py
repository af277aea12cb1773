"""What can be wrong with statistics."""

from __future__ import annotations

from cdl_deploy.errors import CdlError


class StatisticsError(CdlError):
    """Statistics that cannot be gathered, combined, read or turned into a head."""
