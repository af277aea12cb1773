"""Writes constraints-device.txt: what a device installs, each file by its hash, for every system that we name.

    python tools/device_constraints.py      (`make constraints` does it)

pip says which files it would install on each system and their hashes; nothing is installed. Versions are those of
constraints.txt, where it has one.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[1]
FILE = PROJECT / "constraints-device.txt"
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
SYSTEMS = {
    "Linux x86_64": ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64"),
    "Linux aarch64": (
        "manylinux_2_28_aarch64",
        "manylinux_2_27_aarch64",
        "manylinux_2_17_aarch64",
        "manylinux2014_aarch64",
    ),
    "macOS 14, Apple silicon": ("macosx_14_0_arm64", "macosx_11_0_arm64", "macosx_10_9_universal2"),
}
HEAD = """\
# What a device installs, each file by its hash. Written by `make constraints`.
#     pip install --require-hashes -r constraints-device.txt && pip install --no-deps cdl-deploy
# For {systems}; CPython {first} to {last}.
"""


def would_install(python: str, platforms: tuple[str, ...], requirements: list[str]) -> list[dict[str, Any]]:
    """pip's report of what it would install there."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed", "--report", "-"]
    command += ["--disable-pip-version-check", "--only-binary=:all:", "--target", "nowhere", "--python-version", python]
    command += [word for platform in platforms for word in ("--platform", platform)]
    done = subprocess.run(
        [*command, "-c", str(PROJECT / "constraints.txt"), *requirements], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"Python {python}, {platforms[0]}: {done.stderr.strip().splitlines()[-1]}")
    installed: list[dict[str, Any]] = json.loads(done.stdout)["install"]
    return installed


def main() -> None:
    """Ask for every system and write the file."""
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    markers: dict[str, str] = {}
    for requirement in project["dependencies"]:
        text, _, marker = requirement.partition(";")
        markers[normal(re.match(r"[\w.-]+", text)[0])] = marker.strip()  # type: ignore[index]
    hashes: dict[tuple[str, str], set[str]] = {}
    for python in PYTHONS:
        wanted = [requirement for requirement in project["dependencies"] if applies(requirement, python)]
        for system, platforms in SYSTEMS.items():
            found = would_install(python, platforms, [line.partition(";")[0].strip() for line in wanted])
            print(f"Python {python}, {system}: {len(found)} packages", file=sys.stderr)
            for item in found:
                key = normal(item["metadata"]["name"]), item["metadata"]["version"]
                hashes.setdefault(key, set()).add(item["download_info"]["archive_info"]["hashes"]["sha256"])
    *others, last = SYSTEMS
    lines = [HEAD.format(systems=f"{', '.join(others)} and {last}", first=PYTHONS[0], last=PYTHONS[-1])]
    for (name, version), found_hashes in sorted(hashes.items()):
        marker = f" ; {markers[name]}" if markers.get(name) else ""
        lines.append(f"{name}=={version}{marker}")
        lines[-1] += "".join(f" \\\n    --hash=sha256:{value}" for value in sorted(found_hashes)) + "\n"
    FILE.write_text("".join(lines), encoding="utf-8")


def applies(requirement: str, python: str) -> bool:
    """Whether a dependency is one for this version of Python; the only marker that ours have."""
    from packaging.requirements import Requirement

    marker = Requirement(requirement).marker
    return marker is None or marker.evaluate({"python_version": python, "python_full_version": f"{python}.0"})


def normal(name: str) -> str:
    """The name as package indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    main()
