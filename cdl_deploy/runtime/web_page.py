"""A folder with a web page that has an exported model in it, ready for any static host.

The page itself is built from `examples/web` by `tools/web_page.py` and comes with the package, in `web/`: this needs
neither npm nor a network. What is large there is kept compressed (`.xz`) and is expanded here.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import shutil
import tempfile
from pathlib import Path
from typing import Any

from cdl_deploy.errors import BundleError, OptionError
from cdl_deploy.runtime.bundle import ROLES, Bundle, read_bundle

TEMPLATE = Path(__file__).parent.with_name("web")
"""The built page."""

DESCRIPTION = "page.json"
"""What the page needs to know before it has loaded the model, and by which we recognise a folder of ours."""

SERVICE_WORKER = "sw.js"


def write_page(model: Path, out: Path) -> Bundle:
    """Write the page for the exported `model` into the folder `out`, and return what the model says about itself.

    `out` is new, empty, or holds an earlier page, which is replaced. It is filled only after everything has been
    written beside it. Raises `OptionError` for any other folder, `BundleError` for a model that the page cannot feed.
    """
    bundle = read_bundle(model)
    if bundle.preprocessing.input != "image":
        raise BundleError(
            f"{model} takes a preprocessed tensor, the web page gives it pixels: export it again without --input tensor"
        )
    check_page_folder(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=".cdl-web-", dir=out.parent))
    try:
        _fill(staging, bundle)
        _replace(staging, out)
    except OSError as error:
        raise OptionError(f"--web {out}: {error.strerror or error}; no page was written") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return bundle


def check_page_folder(out: Path) -> None:
    """Raise `OptionError` if `out` is in use by anything but a page of ours."""
    if out.is_dir() and (not any(out.iterdir()) or (out / DESCRIPTION).is_file()):
        return
    if out.exists():
        what = "has other files in it" if out.is_dir() else "is a file"
        raise OptionError(f"--web {out} {what}, expected a new or empty folder, or one with an earlier page")


def describe(bundle: Bundle) -> dict[str, Any]:
    """`page.json`: JavaScript cannot read a model's metadata, so what it shows of them stands beside the model."""
    return {
        "model": f"{bundle.role}.onnx",
        "bytes": bundle.path.stat().st_size,
        "classes": bundle.classes,
        "tasks": bundle.tasks,
        "selects_tasks": bundle.method.task_scores is not None,
        "producer": f"{bundle.producer.name} {bundle.producer.version}",
    }


def _fill(folder: Path, bundle: Bundle) -> None:
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
    page = describe(bundle)
    shutil.copyfile(bundle.path, folder / page["model"])
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
    names = [name for name in names if name not in (SERVICE_WORKER, "THIRD-PARTY-NOTICES.txt")]
    site = json.dumps({"version": version.hexdigest()[:16], "files": names})
    worker.write_text(f"const SITE = {site};\n{worker.read_text(encoding='utf-8')}", encoding="utf-8")


def _replace(staging: Path, out: Path) -> None:
    """Move a finished page to `out`. A visitor in between finds old and new files, never half of one.

    The service worker comes last: browsers take its change for the sign that there is a new version to fetch.
    """
    files = [file.relative_to(staging) for file in staging.rglob("*") if file.is_file()]
    for name in sorted(files, key=lambda name: (name.name == SERVICE_WORKER, name)):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (staging / name).replace(out / name)
    # Of an earlier page there may be a model of the other role, and assets: their names contain hashes.
    for stale in (*(out / "assets").iterdir(), *(out / f"{role}.onnx" for role in ROLES)):
        if stale.relative_to(out) not in files:
            stale.unlink(missing_ok=True)
