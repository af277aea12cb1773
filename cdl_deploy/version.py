"""The version of the package, for its code and its build, and how files that it writes name their writer."""

from dataclasses import dataclass

__version__ = "0.1.0"


@dataclass(frozen=True)
class Producer:
    """The program that wrote a file."""

    name: str = "cdl-deploy"
    """Package name."""
    version: str = __version__
    """Its version."""
