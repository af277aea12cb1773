"""Sums from which a head can be solved."""

from __future__ import annotations

from cdl_deploy.closed_form.errors import StatisticsError
from cdl_deploy.closed_form.statistics import Statistics


def check_seen(statistics: Statistics) -> None:
    """Refuse statistics without classes, or with a class that no image was added of."""
    if not statistics.classes:
        raise StatisticsError("the statistics have no class: add images first")
    if not statistics.counts.all():
        name = statistics.classes[int(statistics.counts.argmin())]
        raise StatisticsError(f"class '{name}' has no image, expected at least one: add images of it, or forget it")
