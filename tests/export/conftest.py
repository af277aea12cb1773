"""Shape checks off: tracing uses symbolic shapes."""

from __future__ import annotations

import pytest
from jaxtyping import config as jaxtyping_config


@pytest.fixture(autouse=True)
def _no_shape_checks():
    jaxtyping_config.update("jaxtyping_disable", True)
    yield
    jaxtyping_config.update("jaxtyping_disable", False)
