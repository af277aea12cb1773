"""What learned heads make of tasks of one class, with and without the rows of earlier classes to learn against.

python benchmarks/one_class.py
python benchmarks/one_class.py --from-the-start --without
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from cdl_deploy.run.config_file import layered_config
from cdl_deploy.training.loop import train
from cdl_deploy.training.models.learner import Learner


def main() -> None:
    """Print the accuracy on every task of the digits, and over all classes, in percent."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--from-the-start", action="store_true", help="ten tasks of one class; default: five at once")
    parser.add_argument("--without", action="store_true", help="cross-entropy over the one class alone")
    parser.add_argument("--epochs", type=int, default=5)
    given = parser.parse_args()
    if given.without:
        Learner.learns_one_class = property(lambda self: False)  # type: ignore[assignment,method-assign]
    first = ["[0]"] if given.from_the_start else ["[0, 1, 2, 3, 4]"]
    later = range(1 if given.from_the_start else 5, 10)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "tasks.yaml"
        file.write_text(f"[{', '.join([*first, *(f'[{digit}]' for digit in later)])}]", encoding="utf-8")
        sections = {
            "data": {"data": "digits", "task_file": str(file)},
            "method": {"head": "learned", "distill": "none"},
            "optim": {"epochs": given.epochs},
        }
        record = train(layered_config(None, None, sections), Path(folder) / "run")
    row = record.matrices["student"][-1]
    mean = sum(value * len(task.classes) for value, task in zip(row, record.tasks, strict=True)) / len(record.classes)
    print(f"by task: {' '.join(f'{value:.0f}' for value in row)}; over all classes: {mean:.1f} %")


if __name__ == "__main__":
    main()
