"""A configuration in layers: preset, then file, then command line; what comes later wins."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cdl_deploy.documents import parse_json, parse_yaml
from cdl_deploy.errors import OptionError
from cdl_deploy.regular_file import read_regular
from cdl_deploy.run.config import SECTIONS, ChoiceOptions, RunConfig, option_sections
from cdl_deploy.run.options import Declared, check_name, flag
from cdl_deploy.run.presets import BENCHMARKS, DEFAULT, FROZEN, PRESETS, Sections, asks_for_more, paper_models
from cdl_deploy.typed_json import short

EXCLUSIVE = (("tasks", "classes_per_task", "task_file"), ("components", "components_per_task"))
"""One of each group displaces all of it in the layers below."""

MAX_BYTES = 1 << 20
"""Of a file for --config or --task-file."""

KINDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}


def layered_config(preset: str | None, file: Path | None, given: Sections) -> RunConfig:
    """The preset's values (without one: those of `default`), under those of the file, under `given`, those of the
    command line. By default the backbone is frozen, unless file or command line name a method, a distillation, a
    teacher, or an option of theirs.

    Raises OptionError for a preset that does not exist, and for a file that cannot be used.
    """
    preset = "default" if preset is None else preset
    check_name("--preset", preset, tuple(PRESETS))
    of_file: Sections = {} if file is None else read_config_file(file)
    benchmark = _benchmark(preset, of_file, given)
    layers: list[Sections] = [PRESETS[preset], *([BENCHMARKS[benchmark].sections] if benchmark else []), of_file]
    if preset == "default" and not any(asks_for_more(layer) for layer in (*layers, given)):
        layers.insert(0, FROZEN)
    _refuse_both("components", "components_per_task", given)
    merged: Sections = {}
    for layer in (*layers, given):
        for name, values in layer.items():
            section = merged.setdefault(name, {})
            for key in _displaced(values):
                section.pop(key, None)
            section.update(values)
    if benchmark:
        distils = merged.get("method", {}).get("distill", ChoiceOptions.distill) != "none"
        models, batch = paper_models(merged.get("models", {}), distils)
        merged.setdefault("models", {}).update(models)
        if batch and not any("batch_size" in layer.get("optim", {}) for layer in (of_file, given)):
            merged["optim"]["batch_size"] = batch
    return RunConfig.from_dict(merged)


def _displaced(values: Mapping[str, Any]) -> list[str]:
    """What does not go with some of a layer's values, where it comes from a layer below."""
    keys = [key for group in EXCLUSIVE if any(values.get(one) is not None for one in group) for key in group]
    keys += ["crop"] if values.get("resize") is not None else []
    keys += ["resize"] if values.get("crop") == "none" else []
    keys += ["entries"] if values.get("unseen_keys") == "masked" else []
    return keys


def _benchmark(preset: str, of_file: Sections, given: Sections) -> str | None:
    """The benchmark that is asked for. A run's own configuration as a file names one and has all that it sets."""
    name: str | None = given.get("data", {}).get("benchmark")
    if name is None:
        name = of_file.get("data", {}).get("benchmark")
    elif preset != "paper":
        raise OptionError(f"--benchmark {name} sets what the paper's runs had: give --preset paper with it")
    if name is not None:
        check_name("--benchmark", name, tuple(BENCHMARKS))
    return name


def _refuse_both(name: str, other: str, given: Sections) -> None:
    method = given.get("method", {})
    if method.get(name) is not None and method.get(other) is not None:
        raise OptionError(f"{flag(name)} and {flag(other)} exclude each other: give one of them")


def read_config_file(path: Path) -> Sections:
    """Sections of `RunConfig.to_dict()`, or some of them, from YAML or JSON; a run's own `config` is such a file.

    Raises OptionError, naming the place, for what is no such file, unknown keys, and values that cannot be.
    """
    try:
        text = read_regular(path, MAX_BYTES).decode("utf-8-sig")
        content = parse_json(text) if path.suffix == ".json" else parse_yaml(text)
    except OSError as error:
        raise OptionError(f"cannot read --config {path}: {error.strerror}") from None
    except ValueError as error:
        kind = "JSON" if path.suffix == ".json" else "YAML"
        raise OptionError(f"--config {path} is not {kind}: {' '.join(str(error).split())}") from None
    try:
        sections = typed_sections({} if content is None else content)
        RunConfig.from_dict({**sections, "method": {**DEFAULT["method"], **sections.get("method", {})}})
    except OptionError as error:
        raise OptionError(f"--config {path}: {error}") from None
    return sections


def typed_sections(content: Any) -> Sections:
    """`content` with every value checked against the type of its option; unknown keys are left to `RunConfig`."""
    if isinstance(content, Mapping):  # `optim:` with nothing below it is an empty section
        content = {name: {} if values is None else values for name, values in content.items()}
    if not isinstance(content, Mapping) or not all(isinstance(values, Mapping) for values in content.values()):
        raise OptionError(
            f"expected sections ({', '.join(SECTIONS)}), each with values by name, such as 'optim: {{epochs: 5}}'"
        )
    sections: Sections = {str(name): {str(key): v for key, v in values.items()} for name, values in content.items()}
    known = {name: {it.name for it in options} for name, options in option_sections().items()}
    foreign = any(key not in known["method"] for key in sections.get("method", {}))
    for name, options in option_sections(with_plugins=foreign).items():
        given = sections.get(name, {})
        for declared in options:
            if declared.about.was in given:
                if declared.name in given:
                    raise OptionError(
                        f"{name}.{declared.about.was} is the old name of {declared.name}: give one of them"
                    )
                given[declared.name] = given.pop(declared.about.was)
            if declared.name in given:
                given[declared.name] = _value(declared, given[declared.name], f"{name}.{declared.name}")
    return sections


def _value(declared: Declared, value: Any, where: str) -> Any:
    """`value` as the option's type. YAML reads 1e-3 as text, so text that is a number counts as one."""
    if value is None and declared.optional:
        return None
    if declared.kind is float and not isinstance(value, bool):
        try:
            return float(value)
        except (TypeError, ValueError, OverflowError):
            pass
    elif type(value) is declared.kind:
        return value
    found = repr(value[:1000]) if isinstance(value, str) else value
    raise OptionError(f"{where} is {short(found)}, expected {KINDS[declared.kind]}")
