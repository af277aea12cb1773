"""The version of the package, for its code and its build."""

__version__ = "0.1.0"
