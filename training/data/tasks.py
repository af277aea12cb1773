"""How the classes of a data set are dealt out to tasks."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import torch

from cdl_deploy.data.class_names import composed
from cdl_deploy.documents import parse_yaml
from cdl_deploy.errors import DataError, nearest
from cdl_deploy.regular_file import read_regular
from cdl_deploy.run.config import DataConfig
from cdl_deploy.run.config_file import MAX_BYTES
from cdl_deploy.training.seeds import generator

Tasks = tuple[tuple[str, ...], ...]
"""Class names by task; their order is the order of the logits."""

DEFAULT_TASKS = 5


def make_tasks(classes: tuple[str, ...], config: DataConfig, seed: int) -> Tasks:
    """The tasks that `config` asks for. Raises DataError for more tasks than classes, or a file that does not fit."""
    if len(classes) < 2:
        raise DataError(f"{config.data} has one class, '{classes[0]}': at least two are needed to learn from")
    if config.task_file is not None:
        return read_task_file(Path(config.task_file), classes)
    order = list(classes)
    if config.class_order == "shuffled":
        shuffled = torch.randperm(len(order), generator=generator(seed, "class order")).tolist()
        order = [order[i] for i in shuffled]
    elif config.class_order_file is not None:
        order = read_class_order(Path(config.class_order_file), classes)
    else:
        order.sort(key=_natural_key)
    if config.classes_per_task is not None:
        size = config.classes_per_task
        if size > len(order):
            raise DataError(f"--classes-per-task {size} is more than the {len(order)} classes there are: ask for fewer")
        return tuple(tuple(order[i : i + size]) for i in range(0, len(order), size))
    count = config.tasks if config.tasks is not None else min(DEFAULT_TASKS, len(order))
    if count > len(order):
        raise DataError(
            f"--tasks {count} is more than the {len(order)} classes there are: ask for {len(order)} or fewer"
        )
    small, larger = divmod(len(order), count)
    tasks, start = [], 0
    for number in range(count):
        size = small + (number < larger)
        tasks.append(tuple(order[start : start + size]))
        start += size
    return tuple(tasks)


def read_class_order(path: Path, classes: tuple[str, ...]) -> list[str]:
    """Every class once, in the order in which they are learned: one a line, or a list in a `.yaml` or `.json` file.

    Raises DataError where it is not all classes of the data, and nothing else.
    """
    try:
        text = read_regular(path, MAX_BYTES).decode("utf-8-sig")
        structured = path.suffix.lower() in (".yaml", ".yml", ".json")
        listed = parse_yaml(text, scalars_as_text=True) if structured else text.split("\n")
    except OSError as error:
        raise DataError(f"cannot read --class-order {path}: {error.strerror}") from None
    except ValueError as error:
        raise DataError(f"--class-order {path} cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(listed, list) or not all(isinstance(name, str) for name in listed):
        raise DataError(f"--class-order {path} must be a list of class names, such as [cat, dog, owl]")
    named = [composed(name.strip()) for name in listed]
    order = named if structured else [name for name in named if name]
    _check_names(f"--class-order {path}", order, classes, set())
    missing = [name for name in classes if name not in set(order)]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise DataError(
            f"--class-order {path} leaves out '{missing[0]}'{more}: list every class, or choose some by --task-file"
        )
    return order


def _check_names(where: str, names: Sequence[str], classes: tuple[str, ...], seen: set[str]) -> None:
    """Raise DataError unless each name is a class that was not `seen` before."""
    known = set(classes)
    for name in names:
        if name not in known:
            raise DataError(f"{where}: no class '{name}' in the data{nearest(name, classes)}")
        if name in seen:
            raise DataError(f"{where}: class '{name}' is listed twice: keep one")
        seen.add(name)


def _natural_key(name: str) -> list[tuple[int, str]]:
    """Numbers within names are compared as numbers: 2 comes before 10."""
    return [(int(part), "") if part.isdecimal() else (0, part) for part in re.split(r"([0-9]+)", name)]


def read_task_file(path: Path, classes: tuple[str, ...]) -> Tasks:
    """A YAML list of tasks, each a list of class names, as they are written; each must be a class and occur once.

    Classes of the data set that the file does not name are left out of the run.
    """
    try:
        content = parse_yaml(read_regular(path, MAX_BYTES).decode("utf-8-sig"), scalars_as_text=True)
    except OSError as error:
        raise DataError(f"cannot read --task-file {path}: {error.strerror}") from None
    except ValueError as error:
        raise DataError(f"--task-file {path} is not YAML: {' '.join(str(error).split())}") from None
    if isinstance(content, dict) and set(content) == {"tasks"}:
        content = content["tasks"]
    if not isinstance(content, list) or not content or not all(isinstance(task, list) and task for task in content):
        raise DataError(
            f"--task-file {path} must be a list of tasks, each a list of class names, such as [[cat, dog], [owl]]"
        )
    if not all(isinstance(name, str) for task in content for name in task):
        raise DataError(
            f"--task-file {path} has lists within a task: expected class names, such as [[cat, dog], [owl]]"
        )
    tasks = tuple(tuple(composed(name) for name in task) for task in content)
    seen = set[str]()
    for number, task in enumerate(tasks, start=1):
        _check_names(f"--task-file {path}, task {number}", task, classes, seen)
    return tasks
