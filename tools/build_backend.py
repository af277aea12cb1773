"""The build backend of this project: setuptools, which refuses a checkout that has lost its symbolic links.

By itself setuptools would build such a checkout without a word, into a wheel that can neither train nor export. pip and
`python -m build` load this file before they build anything, also for `pip install -e`.
"""

from pathlib import Path

from setuptools.build_meta import *  # noqa: F403  the hooks of PEP 517 and PEP 660

from cdl_deploy.checkout import CheckoutError, check_checkout

try:
    check_checkout(Path(__file__).resolve().parents[1] / "cdl_deploy")
except CheckoutError as error:
    raise SystemExit(f"error: {error}") from None  # not a traceback, under which the line would be lost
