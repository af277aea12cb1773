"""What a file is that somebody hands in, as far as its name and first bytes tell."""

from __future__ import annotations

from pathlib import Path

from cdl_deploy.errors import WeightsError
from cdl_deploy.regular_file import open_regular

_HEAD = 512


def first_bytes(file: Path) -> bytes:
    """Of a file that may be weights. Raises WeightsError for what is none: a line that says what it is instead."""
    if not file.exists():
        raise WeightsError(f"weights file {file} does not exist: give a file, a folder, or a name such as timm/MODEL")
    try:
        with open_regular(file) as opened:
            head = opened.read(_HEAD)
    except OSError as error:
        raise WeightsError(f"cannot read weights file {file}: {error.strerror or error}") from None
    if not head:
        raise WeightsError(f"weights {file} is empty: the download or the copy did not begin, do it again")
    if head.startswith(b"version https://git-lfs"):
        raise WeightsError(f"weights {file} is a Git LFS pointer and not the file: fetch it with git lfs pull")
    if head.lstrip()[:15].lower().startswith((b"<!doctype html", b"<html")):
        raise WeightsError(f"weights {file} is a web page, not what was to be downloaded: download it again")
    if file.suffix.lower() == ".json" and not file.name.endswith(".index.json"):
        raise WeightsError(
            f"weights {file} is JSON, expected weights: give the folder that it lies in, or the .safetensors beside it"
        )
    if file.suffix.lower() in _OTHERS:
        raise WeightsError(
            f"weights {file} is {_OTHERS[file.suffix.lower()]}, expected .safetensors, .pth, .npz or .onnx: "
            "convert it with the tool that wrote it"
        )
    return head


_OTHERS = {
    ".h5": "a Keras file",
    ".keras": "a Keras file",
    ".msgpack": "a Flax file",
    ".tflite": "a TensorFlow Lite file",
    ".pb": "a TensorFlow file",
    ".gguf": "a GGUF file",
    ".npy": "a single NumPy array",
    ".orbax": "an Orbax checkpoint",
}
