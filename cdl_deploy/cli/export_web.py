"""The part of `cdl export` that writes a web page; an exported model needs nothing but the base install for it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cdl_deploy.cli.output import echo, echo_json
from cdl_deploy.counted import counted
from cdl_deploy.errors import OptionError
from cdl_deploy.printable import as_typed
from cdl_deploy.require_extra import require_extra


def check_page_options(
    run: Path, web: Path, graph_input: str, onnx: bool, out: Path | None, labels: str = "graph", fixed: bool = False
) -> None:
    """Raise `OptionError`, before anything takes long, for options that `--web` cannot go with."""
    with require_extra("cdl export --web"):
        from cdl_deploy.runtime.web_page import check_page_folder
    if graph_input != "image":
        raise OptionError(f"--input {graph_input} does not go with --web: the page gives the model pixels")
    if labels == "none":
        raise OptionError("--labels none does not go with --web: the page shows the names that the model gives")
    if fixed:
        raise OptionError("--batch and --image-size do not go with --web: the page gives the model images of any size")
    if run.suffix == ".onnx" and onnx:
        raise OptionError(f"{run} is exported already: leave out --onnx")
    if out is not None and not onnx:
        raise OptionError(f"--out {out} is where --onnx writes: add --onnx, or leave out --out")
    check_page_folder(web)


def check_no_more_options(model: Path, given: Mapping[str, bool]) -> None:
    """Raise `OptionError` for options of exporting a run, where the model is exported already."""
    asked = [name for name, is_given in given.items() if is_given]
    if asked:
        raise OptionError(
            f"{model} is exported already, and its page carries it as it is: leave out {' and '.join(asked)}, or give "
            "the run"
        )


def write_model_page(model: Path, web: Path, teachable: bool = True) -> None:
    """Write the page for an exported model, with its statistics if it is to be `teachable`."""
    with require_extra("cdl export --web"):
        from cdl_deploy.learn.opened import why_not
        from cdl_deploy.runtime.web_page import write_page
    bundle = write_page(model, web, teachable)
    if not teachable or _described(web)["statistics"] is not None:
        return
    if bundle.statistics is not None:
        told = f"{model.name} names {bundle.statistics.file}, which is not beside it: the page cannot be taught"
    else:
        told = f"note: the page cannot be taught new classes: {why_not(bundle)}"
    echo(told, err=True)


def print_page(web: Path, as_json: bool) -> None:
    """Say what was written, and how to look at it."""
    size = sum(file.stat().st_size for file in web.rglob("*") if file.is_file())
    page = _described(web)
    if as_json:
        echo_json({"folder": str(web), "bytes": size, "page": page})
        return
    echo(
        f"Page written to {web}: {size / 1e6:.1f} MB, {page['bytes'] / 1e6:.1f} MB of it {page['model']}, "
        f"{counted(len(page['classes']), 'class')}"
    )
    if page["statistics"]:
        echo("Whoever opens it can teach it new classes, in their browser")
    echo(f"Next: python -m http.server --directory {as_typed(web)}")


def _described(web: Path) -> dict[str, Any]:
    page: dict[str, Any] = json.loads((web / "page.json").read_text(encoding="utf-8"))
    return page
