"""Attacks on what is written and read: see `__main__.py`."""
