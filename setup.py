"""Lists the packages; everything else about the build is in pyproject.toml.

Setuptools finds packages by itself only below one root, or below folders that keep their own names. Ours are three
sibling folders, two of them under another name (`training/` is `cdl_deploy.training`), so the list is computed from
the `package-dir` table. A new subpackage needs an `__init__.py` and nothing else; tests/packaging/test_wheel.py
proves that no file is left out.
"""

import tomllib
from pathlib import Path

from setuptools import find_packages, setup

config = tomllib.loads(Path(__file__).with_name("pyproject.toml").read_text(encoding="utf-8"))
roots = config["tool"]["setuptools"]["package-dir"]
packages = [f"{name}.{found}" for name, folder in roots.items() for found in find_packages(folder)]

setup(packages=[*roots, *packages])
