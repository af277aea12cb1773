"""Every error a user can cause. The command line prints exactly these as one line and exits with code 2.

A message says what is wrong, what was found, what was expected, and what to do.
"""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable
from itertools import islice

LONGEST = 1_000
"""Characters of a message: what it quotes may be of any length."""


class CdlError(Exception):
    """Root of the tree: something the user can put right."""

    def __init__(self, message: str = "") -> None:
        if len(message) > LONGEST:  # what it is about comes first, what to do last
            message = f"{message[: LONGEST * 2 // 3]} … {message[-LONGEST // 4 :]}"
        super().__init__(message)


class OptionError(CdlError):
    """An option or a configuration value that cannot be used."""


class DataError(CdlError):
    """Images, folders or class lists that cannot be used."""


class PassingError(CdlError):
    """A file that the machine cannot read just now: no memory, too many open files, a lost server, a failing disk.

    That says nothing about the file. Whoever passes over what cannot be read must not pass over this.
    """


class WeightsError(CdlError):
    """A backbone or a weights file that cannot be used."""


class RunError(CdlError):
    """A run directory that cannot be read, written or continued."""


class PeerError(RunError):
    """Another process of the same run has failed, and tells the user why itself."""


class BundleError(CdlError):
    """An exported model that cannot be read or run."""


class UpdateError(CdlError):
    """An update of an exported model that cannot be made or applied."""


class ParityError(CdlError):
    """An exported graph that does not compute what the trained model computes."""


class QuantisationError(CdlError):
    """A model that cannot be quantised, or that predicts too differently once it is."""


class MissingExtraError(CdlError):
    """A command needs packages that are not installed."""

    def __init__(self, command: str, extra: str, module: str) -> None:
        super().__init__(f"{command} needs {module}, which is not installed: pip install 'cdl-deploy[{extra}]'")


_PASSING_NAMES = (
    *("EAGAIN", "EBUSY", "EINTR", "EIO", "EMFILE", "ENFILE", "ENOBUFS", "ENOLCK", "ENOMEM", "ESTALE", "ETIMEDOUT"),
    *("ECONNABORTED", "ECONNREFUSED", "ECONNRESET", "EHOSTDOWN", "EHOSTUNREACH", "ENETDOWN", "ENETUNREACH"),
    *("ENOTCONN", "EREMOTEIO", "ESHUTDOWN"),
)
PASSING = frozenset(getattr(errno, name) for name in _PASSING_NAMES if hasattr(errno, name))
"""Error numbers that say nothing about a file, only that it cannot be had now: no memory, too many open files, a lost
server, a disk that fails."""


def is_passing(error: BaseException) -> bool:
    """Whether the machine failed, and not the file: what is tried again later may succeed."""
    return isinstance(error, OSError) and error.errno in PASSING


def nearest(name: str, known: Iterable[str]) -> str:
    """`"; did you mean 'coda'?"` when a known name is close to `name`, otherwise the empty string."""
    close = difflib.get_close_matches(name[:100], list(islice(known, 10_000)), n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else ""
