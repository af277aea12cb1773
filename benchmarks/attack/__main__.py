"""What a kill, two processes at once, and damaged files do to runs, models, pages and predictions; figures as JSON.

    python -m benchmarks.attack                                   everything, about half an hour on one core
    python -m benchmarks.attack --parts kills --only update,add   some of it
    python -m benchmarks.attack --every 7 --races 3               a share of it

kills      every command is killed (SIGKILL) before each of its changes to files, then carried on: kills.py
moments    `cdl learn` is killed at random moments, also two at once: moments.py
races      two processes at once do what must not mix: races.py
mutations  damaged and hostile files: mutations.py

Prints one JSON object. Exits 1 where something was lost, mixed or left behind, or where anything but one line was said.
"""

from __future__ import annotations

import argparse
import importlib
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.attack.world import World

PARTS = ("kills", "moments", "races", "mutations")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(PARTS), help="of kills, moments, races, mutations")
    parser.add_argument("--only", default="", help="names of attacks, with commas; default: all of the parts")
    parser.add_argument("--every", type=int, default=1, help="kill before every N-th change to a file")
    parser.add_argument("--moments", type=int, default=100, help="random moments to kill at")
    parser.add_argument("--races", type=int, default=20, help="how often each race is run")
    parser.add_argument("--files", type=int, default=300, help="damaged files of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, help="folder to work in; default: one that is removed")
    arguments = parser.parse_args()
    folder = arguments.work or Path(tempfile.mkdtemp(prefix="cdl-attack-"))
    report, began, failures = {}, time.monotonic(), 0
    try:
        world = World(folder)
        for name in arguments.parts.split(","):
            part = importlib.import_module(f"benchmarks.attack.{name}")
            report[name] = part.attack(world, arguments)
            failures += sum(attack["failures"] for attack in report[name].values())
    finally:
        if arguments.work is None:
            shutil.rmtree(folder, ignore_errors=True)
    print(json.dumps({**report, "failures": failures, "seconds": round(time.monotonic() - began)}, indent=2))
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
