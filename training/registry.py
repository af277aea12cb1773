"""Classes by name: the package's own, and those that other packages register by an entry point."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from typing import TypeVar

from cdl_deploy.run import plugins

Class = TypeVar("Class")


class Registry(MutableMapping[str, Class]):
    """`own`, and the classes in the group of entry points `group`, which are loaded when they are first asked for."""

    def __init__(self, group: str, own: Mapping[str, Class]) -> None:
        self.group, self.own = group, dict(own)

    def __getitem__(self, name: str) -> Class:
        return self.own[name] if name in self.own else self.others()[name]

    def __setitem__(self, name: str, value: Class) -> None:
        self.own[name] = value

    def __delitem__(self, name: str) -> None:
        del self.own[name]

    def __iter__(self) -> Iterator[str]:
        return iter({**self.own, **self.others()})

    def __len__(self) -> int:
        return len({**self.own, **self.others()})

    def others(self) -> Mapping[str, Class]:
        """Those of other packages. Raises OptionError for one that cannot be imported."""
        return plugins.registered(self.group)
