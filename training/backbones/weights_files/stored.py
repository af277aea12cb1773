"""What lies in a file of weights, or in several that belong together: names and tensors, nested as they are stored.

safetensors, torch checkpoints of tensors (no code is run: `weights_only`), and the folder of a hub's snapshot.
"""

from __future__ import annotations

import argparse
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from cdl_deploy.documents import parse_json
from cdl_deploy.errors import WeightsError
from cdl_deploy.regular_file import read_regular
from cdl_deploy.training.backbones.weights_files.first_look import first_bytes

IN_A_FOLDER = (
    *("model.safetensors", "model.safetensors.index.json", "open_clip_model.safetensors"),
    *("pytorch_model.bin", "pytorch_model.bin.index.json", "open_clip_pytorch_model.bin"),
)
"""What a hub's snapshot has, the best first."""
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar", ".npz", ".onnx")
TORCH = (b"PK\x03\x04", b"\x80")
"""First bytes of what torch saves: an archive, and before version 1.6 a pickle."""
BEFORE_1_6 = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"
"""What follows the protocol's two bytes in such a pickle, and in no other."""
MAX_INDEX = 64 << 20
MOST_SHARDS = 1_000
LONGEST_NAME = 200
NAMED = 5


def file_of(path: Path) -> Path:
    """The file itself, or the one in a folder. Raises WeightsError where there is none, or no telling which."""
    if not path.is_dir():
        return path
    for name in IN_A_FOLDER:
        if (path / name).is_file():
            return path / name
    inside = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES and file.is_file())
    if len(inside) == 1:
        return inside[0]
    if inside:
        names = ", ".join(file.name for file in inside[:NAMED])
        raise WeightsError(f"weights {path} is a folder with several files of weights ({names}): give one of them")
    names = ", ".join(sorted(file.name for file in path.iterdir())[:NAMED]) or "nothing"
    raise WeightsError(f"weights {path} is a folder without weights: expected {IN_A_FOLDER[0]} in it, found {names}")


def read_stored(file: Path) -> Mapping[Any, Any]:
    """Names → tensors, and mappings of them. Raises WeightsError, saying what the file is, where it holds none."""
    head = first_bytes(file)
    if file.name.endswith(".index.json"):
        return {name: value for shard in shards(file) for name, value in read_stored(shard).items()}
    try:
        if file.suffix == ".safetensors" or (head[8:9] == b"{" and not head.startswith(b"PK")):
            return safetensors.torch.load_file(file)
        if not head.startswith(TORCH):
            raise WeightsError(_no_weights(file))
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():  # options of timm, DINO
            warnings.simplefilter("ignore")  # on the protocol of a pickle
            content = torch.load(file, map_location="cpu", weights_only=True)  # noqa: TID251  tensors, and runs no code
    except WeightsError:
        raise
    except Exception as error:  # noqa: BLE001  safetensors, zip, unpickler and OS errors have no common base
        other = _saved_by_others(file, head)
        if other is not None:
            raise WeightsError(f"cannot read weights file {file}: it is {other}") from None
        if type(error).__name__ == "UnpicklingError":
            raise WeightsError(_pickled(file, error)) from None
        reason = " ".join(str(error).split(". ")[0].split())[:160] or type(error).__name__
        if "TorchScript" in str(error):
            reason = "it is a TorchScript archive, which is code; save the state dict of the module"
        elif any(word in str(error) for word in _TORN):
            reason = f"it is torn, or no such file ({reason}); download or copy it again"
        raise WeightsError(f"cannot read weights file {file}: {reason}") from None
    if not isinstance(content, Mapping):
        raise WeightsError(
            f"weights file {file} holds no state dict: expected a mapping of names to tensors, "
            f"found {type(content).__name__}"
        )
    return content


_TORN = (
    *("central directory", "incomplete metadata", "HeaderTooSmall", "header too", "InvalidHeader"),
    *("MetadataIncomplete", "Ran out of input", "unexpected EOF", "file not fully covered", "invalid header", "buffer"),
    "invalid JSON in header",
)


def _saved_by_others(file: Path, head: bytes) -> str | None:
    """What begins like a checkpoint of torch's and is none."""
    if head.startswith(b"\x80") and not head[2:].startswith(BEFORE_1_6):
        return (
            "a pickle that torch did not save, which may hold code and is never run; "
            "save its state dict alone, as .safetensors"
        )
    if head.startswith(b"PK") and zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            if not any(name.endswith(("data.pkl", "constants.pkl")) for name in archive.namelist()):
                return "an archive that torch did not save: unpack it first"
    return None


def _pickled(file: Path, error: Exception) -> str:
    try:
        code = torch.serialization.get_unsafe_globals_in_checkpoint(str(file))
    except Exception:  # noqa: BLE001  of a file that is no checkpoint at all
        code = []
    if code:
        named = ", ".join(code[:3])
        return (
            f"cannot read weights file {file}: it is a pickle with code ({named}), which is never run; "
            "save its state dict alone, as .safetensors"
        )
    if "global" in str(error).lower() and "weights_only" in str(error).lower():
        return (
            f"cannot read weights file {file}: it is a pickle with code, which is never run; save its state dict "
            "alone, as .safetensors"
        )
    return _no_weights(file)


def _no_weights(file: Path) -> str:
    return (
        f"cannot read weights file {file}: it is no file of weights, or torn; expected .safetensors, or a checkpoint "
        "that torch saved"
    )


def _is_name(name: Any) -> bool:
    """Of a file in the same folder, which any system can have."""
    return isinstance(name, str) and name == Path(name).name and len(name) <= LONGEST_NAME and name.isprintable()


def shards(index: Path, there: bool = True) -> Iterator[Path]:
    """The files that the index of weights in several files names; with `there`, each must lie beside it."""
    try:
        values = parse_json(read_regular(index, MAX_INDEX))
        names = sorted(set(values["weight_map"].values()))
    except OSError as error:
        raise WeightsError(f"cannot read weights file {index}: {error.strerror or error}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise WeightsError(
            f"weights {index} is no index of weights in several files: expected weight_map, names of tensors to files"
        ) from None
    if not names or len(names) > MOST_SHARDS or not all(_is_name(name) for name in names):
        raise WeightsError(f"weights {index} is an index that names no files beside it: download all of it again")
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing and there:
        raise WeightsError(
            f"weights {index} are in {len(names)} files, of which {len(missing)} are missing, first {missing[0]}: "
            "download them into the same folder"
        )
    for name in names:
        if name.endswith(".index.json"):
            raise WeightsError(f"weights {index} is an index that names another one: download all of it again")
        yield index.parent / name
