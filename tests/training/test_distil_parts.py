"""benchmarks/distil_parts.py: the page is of its record."""

from __future__ import annotations

import json

from benchmarks import distil_parts


def test_every_change_has_a_line_and_the_page_is_of_its_record():
    record = json.loads(distil_parts.RECORD.read_text())
    found = distil_parts.table(record)
    assert found in distil_parts.PAGE.read_text()
    lines = [line.strip("| ").split(" | ") for line in found.splitlines() if line.startswith("| ")][1:]
    assert [line[0] for line in lines[1:]] == [change.words for change in distil_parts.CHANGES.values()]
    figures = [
        [f"{it[name]:.1f}" for name in ("slda", "slda, earlier blocks too")] for it in record["accuracy"].values()
    ]
    assert [line[1:] for line in lines] == figures
    assert record["images"] == 6000, "the first line says so"
