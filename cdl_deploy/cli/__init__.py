"""The command line. One file a command; this one registers them and turns the errors a user can cause into one line.

A command's file defines `command`, a function with typer's annotations whose docstring is the help, and `EXAMPLES`, the
lines that end it; where it needs another, `CLASS`, typer's class for the command. It imports nothing heavy (numpy,
onnxruntime, torch) at its top: `cdl --help` imports all of them.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import warnings
from collections.abc import Sequence
from contextlib import suppress
from typing import Annotated, Any, NoReturn

import typer

from cdl_deploy.cli.output import echo
from cdl_deploy.cli.streams import failure, finish_output, open_closed_streams
from cdl_deploy.errors import CdlError, OptionError, PeerError
from cdl_deploy.version import __version__

COMMANDS = {
    "train": "train",
    "head": "head",
    "runs": "runs",
    "compare": "compare",
    "export": "export",
    "bench-latency": "bench",
    "predict": "predict",
    "evaluate": "evaluate",
    "inspect": "inspect",
    "weights": "weights",
    "update": "update",
    "learn": "learn",
    "merge": "merge",
}
"""Name of every command and the module of this package that defines it, in the order of the help."""

EXAMPLES = """
cdl train --data digits --out runs/digits
cdl export runs/digits --onnx
cdl bench-latency runs/digits
cdl predict runs/digits/export/student.onnx photo.jpg
"""

# A usage error of typer's, whichever copy of click it was built on.
_USAGE_ERROR: type[Any] = typer.BadParameter.__mro__[1]


def _examples(lines: str) -> str:
    """Examples as an epilogue; the backspace keeps the line breaks."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines.strip().splitlines())


app = typer.Typer(
    name="cdl",
    add_completion=False,
    rich_markup_mode=None,  # plain help: no boxes, and examples that can be copied
    pretty_exceptions_enable=False,
    context_settings={"max_content_width": 100, "help_option_names": ["-h", "--help"]},
    epilog=_examples(EXAMPLES),
)


def _print_version(wanted: bool) -> None:
    if wanted:
        echo(f"cdl-deploy {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Continual distillation learning for small vision models: train task by task, export, run anywhere."""
    if context.invoked_subcommand is None:
        echo(context.get_help())


for _name, _module in COMMANDS.items():
    if importlib.util.find_spec(f"{__name__}.{_module}") is not None:
        _loaded = importlib.import_module(f"{__name__}.{_module}")
        app.command(_name, epilog=_examples(_loaded.EXAMPLES), cls=getattr(_loaded, "CLASS", None))(_loaded.command)


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Run `cdl` with `args` (default: the process's own) and exit.

    Exit codes: 0 done; 1 done, but some items failed; 2 an error the user can put right, on one line; 3 slower than the
    baseline; 130 Ctrl-C.
    """
    # Pillow's remarks on damaged images, and on large ones: what matters of them we say ourselves, in a line.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    try:
        open_closed_streams()
        if list(args if args is not None else sys.argv[1:])[:1] == ["train"]:
            from cdl_deploy.cli import train

            train.offer_options(with_plugins=True)
        code = app(args=list(args) if args is not None else None, prog_name="cdl", standalone_mode=False)
        sys.stdout.flush()
    except CdlError as error:
        # Every process of a run reads the same options and finds the same fault in them: the first one speaks.
        if isinstance(error, PeerError) or (isinstance(error, OptionError) and not is_main_process()):
            sys.exit(2)
        _fail(str(error))
    except typer.Abort:
        sys.exit(130)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # whoever read what is printed has seen enough
        finish_output()
        sys.exit(1)
    except OSError as error:
        _fail(failure(error))
    except MemoryError:
        _fail("there is not enough memory for this: close other programs, or take a machine with more")
    except _USAGE_ERROR as error:
        if not is_main_process():
            sys.exit(2)
        where = error.ctx.command_path if error.ctx is not None else "cdl"
        _fail(f"{error.format_message()} (see: {where} --help)")
    finally:
        _stop_runs()
    sys.exit(code if isinstance(code, int) else 0)


def _stop_runs() -> None:
    """Let no thread be waited for whose graph has no end."""
    if running := sys.modules.get("cdl_deploy.runtime.running"):
        running.stop_runs()


def is_main_process() -> bool:
    """Whether this process is the only one, or the first of those that a launcher such as torchrun started."""
    return os.environ.get("RANK", "0") == "0"


def _fail(message: str) -> NoReturn:
    with suppress(OSError):  # of a standard error that is full, or that nobody reads
        echo(f"error: {' '.join(message.split())}", err=True)
    sys.exit(2)
