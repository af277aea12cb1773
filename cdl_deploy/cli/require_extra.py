"""A missing package becomes one line that says how to install it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from cdl_deploy.errors import CdlError, MissingExtraError


@contextmanager
def require_extra(command: str, extra: str | None = None) -> Iterator[None]:
    """Around a command's heavy imports: raise `MissingExtraError` if a package of `extra` is not installed.

    Without `extra`, the packages are those of the base install, and the error says to repair it. A module of our own
    that is missing is a bug and keeps its traceback.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        if not module or module == "cdl_deploy":
            raise
        if extra is not None:
            raise MissingExtraError(command, extra, module) from error
        raise CdlError(f"{command} needs {module}, which is not installed: pip install --upgrade cdl-deploy") from error
