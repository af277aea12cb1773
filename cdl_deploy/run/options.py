"""Options, declared once: a field of a frozen dataclass with `option(…)` as its default.

The command line, its help, the checks, configuration files and the record all read it there. A continual-learning
method or a distillation has a subclass of `Options` of its own, its `Config`.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from cdl_deploy.errors import OptionError, nearest

KEY = "option"
GROUPS = ("Data", "Models", "Method", "Distillation", "Head", "Optimisation", "Machine")
"""Headings of the help, in their order."""


@dataclass(frozen=True)
class Option:
    """What is said of an option beside its name, type and default, which the field has."""

    help: str
    """A line for `--help`, without the default."""
    metavar: str = ""
    choices: tuple[str, ...] = ()
    several: bool = False
    """Any number of the choices, with a comma between."""
    low: float = -math.inf
    high: float = math.inf
    above: float = -math.inf
    below: float = math.inf
    """Bounds: `low` and `high` are themselves allowed, `above` and `below` are not."""
    expected: str | None = None
    """What is expected of a number, in the words of the error; by default what the bounds say."""
    default: str | None = None
    """What the help says is the default, where the field's is none or says little."""
    teacher: bool = False
    """Whether it decides what a teacher is; the others concern what the student makes of it."""
    was: str | None = None
    """The field's name one version ago, which still works."""
    group: str | None = None
    """Heading of the help; by default that of the class."""

    def allows(self, value: float) -> bool:
        """Whether a number lies within the bounds; one that is none does not."""
        return self.low <= value <= self.high and value > self.above and (value < self.below or self.below == math.inf)

    def bounds(self) -> str:
        """The bounds in words."""
        if self.expected is not None:
            return self.expected
        if self.above > -math.inf:
            return f"more than {self.above:g}"
        return f"at least {self.low:g}" if math.isinf(self.high) else f"from {self.low:g} to {self.high:g}"


def option(default: Any, help: str, **more: Any) -> Any:
    """A field that is an option; `more` are the other fields of `Option`, its `default` as `default_text`."""
    if "default_text" in more:
        more["default"] = more.pop("default_text")
    return dataclasses.field(default=default, metadata={KEY: Option(help, **more)})


@dataclass(frozen=True)
class Options:
    """Base of every section of a configuration: its fields are options, checked when it is built."""

    group = "Method"
    """Heading of the help."""

    def __post_init__(self) -> None:
        for declared in options_of(type(self)):
            declared.check(getattr(self, declared.name))
        for part in reversed(type(self).__mro__):
            if "check" in vars(part):
                vars(part)["check"](self)


@dataclass(frozen=True)
class Declared:
    """An option with everything about it."""

    name: str
    kind: type
    """`int`, `float`, `str` or `bool`."""
    optional: bool
    """Whether it may be None: decided by what is trained."""
    default: Any
    about: Option
    group: str

    @property
    def hint(self) -> Any:
        """The annotation."""
        return self.kind | None if self.optional else self.kind

    @property
    def flag(self) -> str:
        """As it is typed."""
        return flag(self.name)

    @property
    def metavar(self) -> str:
        """What stands for its value in the help."""
        return self.about.metavar or "|".join(self.about.choices)

    @property
    def help(self) -> str:
        """For `--help`, with the default."""
        default = self.about.default
        if default is None and self.default is not None and self.default is not False:
            default = f"{self.default:g}" if self.kind is float else str(self.default)
        text = self.about.help
        return f"{text} Default: {default}." if default else text

    def check(self, value: Any) -> None:
        """Raise OptionError unless the option can have this value."""
        if value is None and self.optional:
            return
        if self.about.choices:
            for name in value.split(",") if self.about.several else [value]:
                check_name(self.flag, name.strip() if self.about.several else name, self.about.choices)
        elif self.kind in (int, float) and not self.about.allows(value):
            raise OptionError(f"{self.flag} is {value:g}, expected {self.about.bounds()}")


def flag(name: str) -> str:
    """The command-line name of a field."""
    return f"--{name.replace('_', '-')}"


def options_of(section: type[Options]) -> list[Declared]:
    """The options of a section, in the order of the help."""
    found = _declared.get(section)
    if found is None:
        found = _declared[section] = list(_read(section))
    return found


_declared: dict[type[Options], list[Declared]] = {}


def _read(section: type[Options]) -> Iterator[Declared]:
    hints = typing.get_type_hints(section)
    for item in dataclasses.fields(section):
        about = item.metadata.get(KEY)
        if about is None:
            continue
        kind = hints[item.name]
        optional = typing.get_origin(kind) in (types.UnionType, typing.Union)  # only `X | None` is used
        owner = next(part for part in reversed(section.__mro__) if item.name in vars(part).get("__annotations__", {}))
        group = about.group or getattr(owner, "group", Options.group)
        yield Declared(item.name, typing.get_args(kind)[0] if optional else kind, optional, item.default, about, group)


def check_name(option: str, name: str, known: tuple[str, ...]) -> None:
    """Raise OptionError, with the nearest known name, unless `name` is one of `known`."""
    if name not in known:
        raise OptionError(f"{option} '{name}' is unknown, expected one of {', '.join(known)}{nearest(name, known)}")


def refuse_unknown(where: str, given: Mapping[str, Any], known: tuple[str, ...]) -> None:
    """Raise OptionError, with the nearest known name or all, for a key of `given` that is not in `known`."""
    for key in given:
        if key not in known:
            remedy = nearest(key, known) or f", expected one of {', '.join(known)}"
            raise OptionError(f"{where} has the unknown key '{key}'{remedy}")
