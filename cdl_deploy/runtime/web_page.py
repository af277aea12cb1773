"""A folder with a web page that has an exported model in it, ready for any static host.

The page itself is built from `examples/web` by `tools/web_page.py` and comes with the package, in `web/`: this needs
neither npm nor a network. What is large there is kept compressed (`.xz`) and is expanded here.

Beside a model that can learn lie its statistics, as they do beside the export: with them the page can be taught.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import shutil
from pathlib import Path
from typing import Any

from cdl_deploy.closed_form.statistics_file import MAX_BYTES
from cdl_deploy.documents import parse_json
from cdl_deploy.errors import BundleError, OptionError
from cdl_deploy.folders import files_in, place_for, publish, scratch_folder
from cdl_deploy.regular_file import read_regular
from cdl_deploy.runtime.bundle import TOPK_LABEL_NAME, Bundle, bundle_of
from cdl_deploy.runtime.session import open_session
from cdl_deploy.runtime.session_input import input_shape

TEMPLATE = Path(__file__).parent.with_name("web")
"""The built page."""

DESCRIPTION = "page.json"
"""What the page needs to know before it has loaded the model, and by which we recognise a folder of ours."""

SERVICE_WORKER = "sw.js"
NOTICES = "THIRD-PARTY-NOTICES.txt"
MAX_LIST = 64 << 20
"""Bytes that are read of the list of a page's files."""


def write_page(model: Path, out: Path, teachable: bool = True) -> Bundle:
    """Write the page for the exported `model` into the folder `out`, and return what the model says about itself.

    Unless `teachable`, the model's statistics are left out. `out` is new, empty, or holds an earlier page, which is
    replaced all at once, after everything has been written beside it. Of what is there, only the files that the earlier
    page lists go. Raises `OptionError` for any other folder, `BundleError` for a model that the page cannot feed, or
    whose statistics are those of another file.
    """
    session = open_session(model, optimise=False)
    bundle = bundle_of(session, model)
    if bundle.preprocessing.input != "image":
        raise BundleError(
            f"{model} takes a preprocessed tensor, the web page gives it pixels: export it again without --input tensor"
        )
    if TOPK_LABEL_NAME not in [node.name for node in session.get_outputs()]:
        raise BundleError(f"{model} gives no names, which the web page shows: export it again without --labels none")
    if input_shape(session, bundle.preprocessing) != (None, None):
        raise BundleError(
            f"{model} takes images of one size or number, the web page has others: export it again without --batch and "
            "--image-size"
        )
    statistics = statistics_beside(bundle) if teachable else None
    earlier = check_page_folder(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with scratch_folder(".cdl-web-", place_for(out.resolve())) as staging:
            _fill(staging, bundle, statistics)
            # The service worker comes last: browsers take its change for the sign of a new version to fetch.
            publish(staging, out.resolve(), earlier, last=lambda name: name.name == SERVICE_WORKER)
    except OSError as error:
        raise OptionError(f"--web {out}: {error.strerror or error}; no page was written") from error
    return bundle


def check_page_folder(out: Path) -> frozenset[Path]:
    """The files in `out` that an earlier page put there, relative to it, as it lists them itself.

    Raise `OptionError` if `out` is in use by anything but a page of ours.
    """
    if not out.exists():
        return frozenset()
    if not out.is_dir():
        raise OptionError(f"--web {out} is a file, expected a new or empty folder, or one with an earlier page")
    found = files_in(out)
    if not found:
        return frozenset()
    listed = _listed(out)
    if listed is None:
        raise OptionError(
            f"--web {out} has other files in it, expected a new or empty folder, or one with an earlier page"
        )
    links = [out / name for name in found if (out / name).is_symlink() and any(name in file.parents for file in listed)]
    if links:
        raise OptionError(f"--web: {links[0]} is a link, and what it leads to is not ours: remove the link")
    return frozenset(found) & listed


def _listed(out: Path) -> frozenset[Path] | None:
    """The names of a page's files as its service worker knows them; None where there is no page of ours."""
    try:
        with (out / SERVICE_WORKER).open("rb") as file:
            line = file.readline(MAX_LIST)
        names = parse_json(line.removeprefix(b"const SITE = ").rstrip().removesuffix(b";"))["files"]
        about = parse_json((out / DESCRIPTION).read_bytes()[:MAX_LIST])
        if not isinstance(names, list) or DESCRIPTION not in names or about["model"] not in names:
            return None
        return frozenset({*map(Path, names), Path(SERVICE_WORKER), Path(NOTICES)})
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None


def statistics_beside(bundle: Bundle) -> bytes | None:
    """The statistics that a model names; None where it names none, or where they are not beside it.

    Raises `BundleError` where a file of that name is there, and is another one.
    """
    named = bundle.statistics
    if named is None or Path(named.file).name != named.file:
        return None
    beside = bundle.path.parent / named.file
    try:
        content = read_regular(beside, MAX_BYTES)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise BundleError(f"{beside}: {error.strerror or error}; a page that can be taught needs it") from error
    if hashlib.sha256(content).hexdigest() != named.sha256:
        raise BundleError(
            f"{beside} is not the file of statistics that {bundle.path.name} names; copy model and statistics "
            "together, or take it away: the page cannot be taught then"
        )
    return content


def describe(bundle: Bundle, statistics: bool = False) -> dict[str, Any]:
    """`page.json`: what the page shows before it has the model. `statistics`: whether they lie beside it."""
    return {
        "model": f"{bundle.role}.onnx",
        "bytes": bundle.path.stat().st_size,
        "classes": bundle.classes,
        "tasks": bundle.tasks,
        "selects_tasks": bundle.method.task_scores is not None,
        "producer": f"{bundle.producer.name} {bundle.producer.version}",
        "statistics": bundle.statistics.file if statistics and bundle.statistics else None,
    }


def _fill(folder: Path, bundle: Bundle, statistics: bytes | None) -> None:
    for source in TEMPLATE.rglob("*"):
        target = folder / source.relative_to(TEMPLATE)
        if source.is_dir():
            target.mkdir(parents=True, exist_ok=True)
        elif source.suffix == ".xz":
            target.parent.mkdir(parents=True, exist_ok=True)
            with lzma.open(source) as packed, target.with_suffix("").open("wb") as file:
                shutil.copyfileobj(packed, file)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
    page = describe(bundle, statistics is not None)
    shutil.copyfile(bundle.path, folder / page["model"])
    if statistics is not None:
        (folder / page["statistics"]).write_bytes(statistics)
    (folder / DESCRIPTION).write_text(json.dumps(page, ensure_ascii=False), encoding="utf-8")
    _tell_service_worker(folder)


def _tell_service_worker(folder: Path) -> None:
    """Put the names of all files, and a version that changes with any of them, in front of the service worker."""
    worker = folder / SERVICE_WORKER
    names = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
    version = hashlib.sha256()
    for name in names:
        with (folder / name).open("rb") as file:
            version.update(f"{name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    names = [name for name in names if name not in (SERVICE_WORKER, NOTICES)]
    site = json.dumps({"version": version.hexdigest()[:16], "files": names})
    worker.write_text(f"const SITE = {site};\n{worker.read_text(encoding='utf-8')}", encoding="utf-8")
