"""The names of features: what φ may be made of."""

from __future__ import annotations

import re

PART = re.compile(r"class|kd|patches(@(0|[1-9][0-9]{0,3}))?")
"""class, kd: the tokens after the final norm; patches: the mean of the patch tokens; patches@9: of block 9, from 0."""
EXPECTED = "expected some of class, patches, kd and patches@BLOCK, each once, joined by +, e.g. class+patches+patches@2"


def parts_of(text: str) -> tuple[str, ...] | None:
    """`class+kd` → its parts; None where one is unknown or stands twice."""
    parts = tuple(text.split("+"))
    return parts if all(map(PART.fullmatch, parts)) and len(set(parts)) == len(parts) else None
