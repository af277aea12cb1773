"""A configuration in layers: preset, then file, then command line; what comes later wins."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from cdl_deploy.errors import OptionError
from cdl_deploy.run.config import RunConfig, check_name
from cdl_deploy.training.presets import PRESETS, Sections

EXCLUSIVE = ("tasks", "classes_per_task", "task_file")
"""One of them displaces all of them in the layers below."""

KINDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}


def layered_config(preset: str | None, file: Path | None, given: Sections) -> RunConfig:
    """The preset's values, under those of the file, under `given`, those of the command line.

    Raises OptionError for a preset that does not exist, and for a file that cannot be used.
    """
    layers: list[Sections] = []
    if preset is not None:
        check_name("--preset", preset, tuple(PRESETS))
        layers.append(PRESETS[preset])
    if file is not None:
        layers.append(read_config_file(file))
    merged: Sections = {}
    for layer in (*layers, given):
        for name, values in layer.items():
            section = merged.setdefault(name, {})
            if any(values.get(key) is not None for key in EXCLUSIVE):
                for key in EXCLUSIVE:
                    section.pop(key, None)
            section.update(values)
    return RunConfig.from_dict(merged)


def read_config_file(path: Path) -> Sections:
    """Sections of `RunConfig.to_dict()`, or some of them, from YAML or JSON; a run's own `config` is such a file.

    Raises OptionError, naming the place, for what is no such file, unknown keys, and values that cannot be.
    """
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except OSError as error:
        raise OptionError(f"cannot read --config {path}: {error.strerror}") from None
    except (ValueError, yaml.YAMLError) as error:
        kind = "JSON" if path.suffix == ".json" else "YAML"
        raise OptionError(f"--config {path} is not {kind}: {' '.join(str(error).split())}") from None
    try:
        sections = typed_sections({} if content is None else content)
        RunConfig.from_dict(sections)
    except OptionError as error:
        raise OptionError(f"--config {path}: {error}") from None
    return sections


def typed_sections(content: Any) -> Sections:
    """`content` with every value checked against the type of its field; unknown keys are left to `RunConfig`."""
    if isinstance(content, Mapping):  # `optim:` with nothing below it is an empty section
        content = {name: {} if values is None else values for name, values in content.items()}
    if not isinstance(content, Mapping) or not all(isinstance(values, Mapping) for values in content.values()):
        names = ", ".join(f.name for f in dataclasses.fields(RunConfig))
        raise OptionError(f"expected sections ({names}), each with values by name, such as 'optim: {{epochs: 5}}'")
    sections: Sections = {str(name): {str(key): v for key, v in values.items()} for name, values in content.items()}
    for name, section in typing.get_type_hints(RunConfig).items():
        hints = typing.get_type_hints(section)
        for key, value in sections.get(name, {}).items():
            if key in hints:
                sections[name][key] = _value(hints[key], value, f"{name}.{key}")
    return sections


def _value(hint: Any, value: Any, where: str) -> Any:
    """`value` as the type `hint` says. YAML reads 1e-3 as text, so text that is a number counts as one."""
    optional = typing.get_origin(hint) is types.UnionType  # only `X | None` is used
    kind = typing.get_args(hint)[0] if optional else hint
    if value is None and optional:
        return None
    if kind is float and not isinstance(value, bool):
        try:
            return float(value)
        except (TypeError, ValueError):
            pass
    elif type(value) is kind:
        return value
    raise OptionError(f"{where} is {value!r}, expected {KINDS[kind]}")
