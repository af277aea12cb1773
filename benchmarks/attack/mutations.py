"""Damaged and hostile files of every kind that is read: what happens is one line, or a right answer, in bounded time.

    python benchmarks/attack/mutations.py --out mutations.json
    python benchmarks/attack/mutations.py --files 20 --only models,updates

Each kind is read in a child process with a limit on memory; the parent gives each file a few seconds, and ends a child
that takes longer. The same seed gives the same files. Exits 1 where anything but one line came of a file ("traceback"),
a file outside its folder was read ("outside"), or time or memory went beyond the limit ("unbounded").
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import resource
import shutil
import sys
import tempfile
import time
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

SECONDS = 15.0
"""For one file; the slowest takes a tenth."""
STARTING = 180.0
"""For a child to import what it needs."""
MEMORY = 3 << 30
"""Bytes that a child may add to what it has when it begins."""
BAD = ("traceback", "outside", "unbounded", "died")
OUTCOMES = ("right", "refused", *BAD)
EXAMPLES = 3


def attack(world: Any, arguments: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Every kind, or those in `arguments.only`; `arguments.files` of each. Works in the `world`, if there is one."""
    from benchmarks.attack.readers import KINDS

    only = [name for name in arguments.only.split(",") if name]
    report = {}
    for kind in KINDS:
        if not only or kind in only:
            folder = Path(tempfile.mkdtemp(prefix="cdl-mutations-", dir=world.root if world else None))
            try:
                report[kind] = attack_kind(kind, folder, arguments.files, arguments.seed)
            finally:
                shutil.rmtree(folder, ignore_errors=True)
    return report


def attack_kind(kind: str, folder: Path, files: int, seed: int) -> dict[str, Any]:
    """`files` damaged files of one kind."""
    began, outcomes, slowest, examples = time.monotonic(), Counter[str](), 0.0, dict[str, list[str]]()
    number, memory = 0, 0
    while number < files:
        ours, theirs = multiprocessing.get_context("spawn").Pipe()
        child = multiprocessing.get_context("spawn").Process(
            target=_read_all, args=(kind, str(folder), number, files, seed, theirs)
        )
        child.start()
        theirs.close()
        limit = STARTING
        while number < files:
            begun = time.monotonic()
            try:
                if not ours.poll(limit):
                    raise TimeoutError
                outcome, told, memory = ours.recv()
            except (TimeoutError, EOFError) as error:
                outcome, told = ("unbounded" if isinstance(error, TimeoutError) else "died"), f"file {number}"
            if outcome == "ready":
                limit = SECONDS
                continue
            slowest = max(slowest, time.monotonic() - begun)
            outcomes[outcome] += 1
            if outcome in BAD and len(examples.setdefault(outcome, [])) < EXAMPLES:
                examples[outcome].append(f"file {number}: {told}")
            number += 1
            if outcome in ("unbounded", "died"):
                break
        child.kill()
        child.join()
        ours.close()
    return {
        "files": files,
        **{outcome: outcomes[outcome] for outcome in OUTCOMES},
        "failures": sum(outcomes[outcome] for outcome in BAD),
        "slowest_seconds": round(slowest, 2),
        "memory_mb": round(memory / 1e6),
        "seconds": round(time.monotonic() - began, 1),
        **({"examples": examples} if examples else {}),
    }


def _read_all(kind: str, folder: str, first: int, files: int, seed: int, answers: Connection) -> None:
    """In a child: read one file after another, and tell what came of each."""
    from benchmarks.attack.readers import KINDS
    from cdl_deploy.process_memory import peak_memory

    reader = KINDS[kind](Path(folder))
    used = _memory()
    resource.setrlimit(resource.RLIMIT_DATA, (used + MEMORY, used + MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    answers.send(("ready", "", 0))
    for number in range(first, files):
        rng = random.Random(f"{seed}/{kind}/{number}")
        outcome, told = outcome_of(reader, rng)
        answers.send((outcome, told, peak_memory() or 0))


def outcome_of(reader: Any, rng: random.Random) -> tuple[str, str]:
    """What comes of one damaged file, and what was said."""
    from cdl_deploy.errors import CdlError
    from cdl_deploy.printable import printable

    try:
        reader.read(rng)
    except CdlError as error:
        said = str(error)
        one_line = printable(" ".join(said.split())) if len(said) < 2_000 else ""
        return ("refused", said) if one_line else ("traceback", f"a message of {len(said)} characters")
    except OutsideError as error:
        return "outside", str(error)
    except MemoryError:
        return "unbounded", "memory"
    except Exception as error:  # noqa: BLE001  this is what is counted
        return "traceback", f"{type(error).__name__}: {error}"[:300]
    return "right", ""


class OutsideError(Exception):
    """Something was read that lies outside the folder of the attacked file."""


def _memory() -> int:
    """Bytes of this process's data segment, as RLIMIT_DATA counts them."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmData:"):
            return 1024 * int(line.split()[1])
    return 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=300, help="damaged files of each kind")
    parser.add_argument("--only", default="", help="kinds, with commas; default: all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="also write the figures to this file, as JSON")
    arguments = parser.parse_args()
    report = attack(None, arguments)
    failures = sum(kind["failures"] for kind in report.values())
    text = json.dumps({"mutations": report, "failures": failures}, indent=2)
    print(text)
    if arguments.out is not None:
        arguments.out.write_text(text + "\n", encoding="utf-8")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    from benchmarks.attack.mutations import main as run  # under the name that the readers know

    run()
