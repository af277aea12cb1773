"""Execution providers of onnxruntime: whether the build that is installed has those that are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

import onnxruntime

from cdl_deploy.errors import OptionError, nearest

BUILDS = {
    "CUDAExecutionProvider": "onnxruntime-gpu",
    "TensorrtExecutionProvider": "onnxruntime-gpu",
    "DmlExecutionProvider": "onnxruntime-directml",
    "OpenVINOExecutionProvider": "onnxruntime-openvino",
}
"""The package that brings each provider. All of them install the same files as the package onnxruntime does."""


def check_providers(names: Sequence[str]) -> None:
    """Raise OptionError for a provider that the installed onnxruntime does not have."""
    available = onnxruntime.get_available_providers()
    for name in names:
        if name in available:
            continue
        known = onnxruntime.get_all_providers()
        if name not in known:
            raise OptionError(f"onnxruntime knows no provider {name!r}, expected one of {', '.join(available)}"
                              f"{nearest(name, known)}")  # fmt: skip
        raise OptionError(f"this onnxruntime has no provider {name!r}, only {', '.join(available)}: {_remedy(name)}")


def _remedy(name: str) -> str:
    build = BUILDS.get(name)
    if build is None:
        return "it needs a build of onnxruntime that has it"
    again = f"pip uninstall -y onnxruntime {build} && pip install {build}"
    if _is_installed(build) and _is_installed("onnxruntime"):
        return f"{build} is installed, and onnxruntime beside it has replaced its files; do: {again}"
    if _is_installed(build):
        return f"{build} is installed but finds no such device, driver or library"
    return f"it comes with {build}, which takes onnxruntime's place: {again}"


def _is_installed(package: str) -> bool:
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True
