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
    if head.lstrip()[:15].lower().startswith((b"<!doctype html", b"<html", b"<?xml")):
        raise WeightsError(f"weights {file} is a web page, not what was to be downloaded: download it again")
    if file.suffix.lower() == ".json" and not file.name.endswith(".index.json"):
        raise WeightsError(
            f"weights {file} is JSON, expected weights: give the folder that it lies in, or the .safetensors beside it"
        )
    packed = next((kind for start, kind in _PACKED.items() if head.startswith(start)), None)
    if packed:
        raise WeightsError(f"weights {file} is {packed}: unpack it first")
    other = next((kind for start, kind in _BEGINNINGS.items() if head.startswith(start)), None)
    other = other or _OTHERS.get(file.suffix.lower())
    if other:
        raise WeightsError(
            f"weights {file} is {other}, expected .safetensors, .pth, .npz or .onnx: "
            "convert it with the tool that wrote it"
        )
    return head


_PACKED = {b"\x1f\x8b": "a compressed file", b"\xfd7zXZ": "a compressed file", b"7z\xbc\xaf": "an archive"}
_BEGINNINGS = {b"\x89HDF": "an HDF5 file, as Keras writes them", b"GGUF": "a GGUF file"}
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
