"""Seeds derived from the run's seed and from what they are for, so that nothing depends on what was drawn before."""

from __future__ import annotations

import hashlib


def derive_seed(seed: int, *scope: str | int) -> int:
    """A 63-bit seed for one use in a run, e.g. `derive_seed(0, "shuffle", task, "student", epoch)`."""
    text = repr((seed, *scope)).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1
