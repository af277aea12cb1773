"""Environments with other runtimes, one a file of tests/runtimes/: `python tools/runtime_environments.py .runtimes`.

A file lists pinned wheels; a comment says what else it takes: `# python: 3.12`, `# needs: clang` (a program), and
`# pip: --no-deps`. What is there and as new as its file stays as it is. What cannot be had is said and left out.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

FILES = Path(__file__).parents[1] / "tests" / "runtimes"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*", help="only these")
    options = parser.parse_args()
    for file in sorted(FILES.glob("*.txt")):
        if options.names and file.stem not in options.names:
            continue
        why = installed(file, options.folder.absolute() / file.stem)
        print(f"{file.stem}: {'installed' if why is None else f'left out, its tests are skipped: {why}'}", flush=True)


def installed(file: Path, place: Path) -> str | None:
    """Make the environment `place` as `file` says; None, or why there is none."""
    done = place / ".installed"
    if done.exists() and done.stat().st_mtime >= file.stat().st_mtime:
        return None
    asked = options_of(file)
    lacking = [program for program in asked.get("needs", "").split() if shutil.which(program) is None]
    if lacking:
        return f"it needs {' and '.join(lacking)}: apt-get install {' '.join(lacking)}"
    python = python_of(asked.get("python"))
    if python is None:
        return f"it needs Python {asked['python']}, and python{asked['python']} is not on the path"
    shutil.rmtree(place, ignore_errors=True)
    own = place / "bin" / "python"
    pip: list[str | Path] = [
        own,
        "-m",
        "pip",
        "--disable-pip-version-check",
        "--no-input",
        "-qq",
        "install",
        "--no-cache-dir",
    ]
    commands: list[list[str | Path]] = [
        [python, "-m", "venv", place],
        [*pip, *asked.get("pip", "").split(), "-r", file],
    ]
    for command in commands:
        ended = subprocess.run(command, capture_output=True, text=True, errors="replace")
        if ended.returncode:
            shutil.rmtree(place, ignore_errors=True)
            errors = [line for line in ended.stderr.splitlines() if line.startswith("ERROR")] or [ended.stderr[-300:]]
            return errors[-1][:300]
    done.touch()
    return None


def options_of(file: Path) -> dict[str, str]:
    """What its comments say."""
    lines = [line[1:].strip() for line in file.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    pairs = [line.partition(": ") for line in lines]
    return {key: value for key, mark, value in pairs if mark and key in ("python", "needs", "pip")}


def python_of(version: str | None) -> str | None:
    """An interpreter of this version; this one where none is asked for."""
    if version is None or sys.version.startswith(f"{version}."):
        return sys.executable
    found = shutil.which(f"python{version}")
    if found is not None and subprocess.run([found, "-c", ""], capture_output=True).returncode == 0:
        return found  # pyenv's stand-ins are on the path and fail
    others = sorted(Path("~/.pyenv/versions").expanduser().glob(f"{version}.*/bin/python"))
    return str(others[-1]) if others else None


if __name__ == "__main__":
    main()
