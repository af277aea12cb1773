"""Type-check the code under the names it is imported by: `python tools/typecheck.py`.

`training/` is imported as `cdl_deploy.training` and `export/` as `cdl_deploy.export`. An installed package gets that
from its build; in a checkout mypy would find the two folders under their bare names only, report every
`import cdl_deploy.training` as missing, and check each such use as `Any`. So the package is laid out once more under
build/typecheck/, as links to the real files, and mypy (whose `mypy_path` in pyproject.toml starts there) checks that.
Paths in its messages are turned back into the real ones.

The code around the package (tests, tools, …) is checked with it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
TREE = PROJECT / "build" / "typecheck"
AROUND = ("tests", "benchmarks", "examples", "tools")


def package_roots() -> dict[str, str]:
    """Package name → folder, as the build maps them."""
    config = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))
    roots: dict[str, str] = config["tool"]["setuptools"]["package-dir"]
    return roots


def lay_out(roots: dict[str, str]) -> dict[str, str]:
    """Bring the links below TREE up to date. Returns link → what it stands for, both relative to PROJECT.

    Only what differs is touched, so that two checks may run at the same time.
    """
    wanted: dict[Path, Path] = {}
    for name, folder in roots.items():
        if "." in name:
            wanted[TREE / name.replace(".", "/")] = PROJECT / folder
        else:  # a real folder of links, so that the subpackages from elsewhere fit in
            entries = (entry for entry in (PROJECT / folder).iterdir() if entry.name != "__pycache__")
            wanted |= {TREE / name / entry.name: entry for entry in entries}
    for parent in {link.parent for link in wanted}:
        parent.mkdir(parents=True, exist_ok=True)
        for stale in set(parent.iterdir()) - set(wanted):
            stale.unlink(missing_ok=True)
    for link, target in wanted.items():
        relative = os.path.relpath(target, link.parent)
        if not link.is_symlink() or os.readlink(link) != relative:
            link.unlink(missing_ok=True)
            link.symlink_to(relative)
    return {str(link.relative_to(PROJECT)): str(target.relative_to(PROJECT)) for link, target in wanted.items()}


def main() -> int:
    """Run mypy, print what it says with real paths, and return its exit status."""
    roots = package_roots()
    links = lay_out(roots)
    packages = sorted({name.partition(".")[0] for name in roots})
    packages += [name for name in AROUND if any((PROJECT / name).rglob("*.py"))]
    command = [sys.executable, "-m", "mypy", *(word for name in packages for word in ("-p", name))]
    environment = os.environ | ({"MYPY_FORCE_COLOR": "1"} if sys.stdout.isatty() else {})
    result = subprocess.run(command, cwd=PROJECT, env=environment, stdout=subprocess.PIPE, text=True)
    text = result.stdout
    for link in sorted(links, key=len, reverse=True):  # the longest first: one link's name may begin another's
        text = text.replace(link, links[link])
    print(text, end="")
    return result.returncode


if __name__ == "__main__":
    sys.exit(main())
