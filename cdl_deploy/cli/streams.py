"""Standard input, output and error as a command finds them: closed, on a full disk, without a reader."""

from __future__ import annotations

import os
import sys
import traceback
from contextlib import suppress
from pathlib import Path


def open_closed_streams() -> None:
    """Give a program the standard streams that it was started without, before a file of its own gets their numbers.

    What is read from such a stream, or printed to it, fails as the system has it fail: `OSError`, bad file descriptor.
    Messages about errors are lost.
    """
    for number, name, wrong in ((0, "stdin", os.O_WRONLY), (1, "stdout", os.O_RDONLY), (2, "stderr", os.O_RDWR)):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, wrong)  # the lowest number that is free
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
        if getattr(sys, name) is None:
            stream = open(number, "w" if number else "r", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115  it is never closed
            setattr(sys, name, stream)


def failure(error: OSError) -> str:
    """One line about an error of the system that nobody else has told: which file, and what is wrong with it."""
    reason = error.strerror or str(error) or type(error).__name__
    if error.filename is not None:
        return f"{os.fsdecode(error.filename) if isinstance(error.filename, bytes) else error.filename}: {reason}"
    finish_output()
    return f"standard output: {reason}" if _while_printing(error) else reason


def _while_printing(error: OSError) -> bool:
    """Whether it came out of what writes to a terminal, and not to a file, which it would name."""
    files = [Path(frame.f_code.co_filename) for frame, _ in traceback.walk_tb(error.__traceback__)]
    # wandb, where it is imported, puts itself between a stream and who writes to it.
    printed = any("rich" in file.parts or file.parts[-2:] == ("cli", "output.py") for file in files)
    return printed or not {"click", "typer", "cli"}.isdisjoint(files[-1].parts)


def finish_output() -> None:
    """Write out what was printed, or give it up where that cannot be: Python would complain at exit."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
