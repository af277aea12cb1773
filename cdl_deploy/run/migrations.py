"""What earlier formats of a run directory called things, and what they are called now.

Format 1 (up to 0.1.0) had other names for some options and tensors; nothing else differs, so it is read by renaming.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cdl_deploy.data.class_names import composed, is_composed

RENAMED_OPTIONS = {
    "prompt_rows": "prompt_length",
    "shared_prompt_rows": "shared_prompt_length",
    "kd_prompt_rows": "kd_prompt_length",
    "pull_weight": "key_loss_weight",
}
"""Fields of the record's `config.method`, by their name in format 1."""

NAMES = ("classes", "known_classes")
"""Fields of a task, planned or finished, that hold names of classes."""

RENAMED_TENSORS = {
    ".earlier": ".frozen",
    ".current": ".trainable",
    ".reopened_at": ".unfrozen_at",
    ".reopened": ".unfrozen",
    "student/distillation.rows": "student/distillation.prompts",
}
"""How the names of tensors in a checkpoint end, by format 1."""


def current_tensor_name(name: str) -> str:
    """The name that a tensor of any format has now."""
    for old, new in RENAMED_TENSORS.items():
        if name.endswith(old):
            return name.removesuffix(old) + new
    return name


def migrated_record(values: dict[str, Any]) -> dict[str, Any]:
    """The content of a run.json of any known format as this version of the package writes it.

    What is damaged stays as it is, for the reader to name.
    """
    values = _composed_names(values)
    config = values.get("config")
    method = config.get("method") if isinstance(config, dict) else None
    if not isinstance(config, dict) or not isinstance(method, dict):
        return values
    renamed = {RENAMED_OPTIONS.get(name, name): value for name, value in method.items()}
    return {**values, "config": {**config, "method": renamed}}


def _composed_names(values: dict[str, Any]) -> dict[str, Any]:
    """Names of classes in composed form: runs of 0.1.0 took them as the file system spelt them.

    Where two of one name would come of it, they stay two.
    """
    found = {key: values[key] for key in ("tasks", "plans") if isinstance(values.get(key), list)}
    tasks = [task for entries in found.values() for task in entries if isinstance(task, dict)]
    names = {name for task in tasks for key in NAMES for name in _texts(task.get(key))}
    if all(map(is_composed, names)) or len({composed(name) for name in names}) < len(names):
        return values
    for key, entries in found.items():
        values = {**values, key: [_respelt(task, NAMES) if isinstance(task, dict) else task for task in entries]}
    return _respelt(values, ("forgotten",))


def _texts(value: Any) -> list[str]:
    return [name for name in value if isinstance(name, str)] if isinstance(value, list) else []


def _respelt(values: dict[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    """`values` with the lists of names under `keys` in composed form."""
    lists = {key: values[key] for key in keys if isinstance(values.get(key), list)}
    return values | {
        key: [composed(name) if isinstance(name, str) else name for name in names] for key, names in lists.items()
    }


def first_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A run's configuration under the names of format 1: what its fingerprint has always been taken of."""
    old = {new: name for name, new in RENAMED_OPTIONS.items()}
    return {**config, "method": {old.get(name, name): value for name, value in config["method"].items()}}
