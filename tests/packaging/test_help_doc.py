"""docs/help.md says what the commands say."""

from __future__ import annotations

import pytest

from tools.help_doc import PAGE, render


def test_the_page_is_up_to_date() -> None:
    if PAGE.read_text(encoding="utf-8") != render():
        pytest.fail("docs/help.md is out of date: run python tools/help_doc.py")
