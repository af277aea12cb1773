"""A missing package becomes one line that says how to install it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from cdl_deploy.checkout import check_checkout
from cdl_deploy.errors import CdlError, MissingExtraError


@contextmanager
def require_extra(command: str, extra: str | None = None) -> Iterator[None]:
    """Around the heavy imports of a command or function: raise MissingExtraError if a package of `extra` is missing.

    Without `extra`, the packages are those of the base install, and the error says to repair it. Where training/ or
    export/ is missing, the checkout has lost its links (CheckoutError). Any other module of our own that is missing is
    a bug and keeps its traceback.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        if module == "cdl_deploy":
            check_checkout()
        if not module or module == "cdl_deploy":
            raise
        if module in sys.stdlib_module_names:
            raise CdlError(
                f"{command} needs Python's module {module}, which Python on {sys.platform} does not have: "
                "use Linux or macOS"
            ) from error
        if extra is not None:
            raise MissingExtraError(command, extra, module) from error
        raise CdlError(f"{command} needs {module}, which is not installed: pip install --upgrade cdl-deploy") from error
