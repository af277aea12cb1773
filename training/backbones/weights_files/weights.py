"""A file of weights that somebody hands in → tensors as timm's filters take them, and all that is known of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cdl_deploy.errors import WeightsError
from cdl_deploy.training.backbones.weights_files.big_vision import is_npz, read_big_vision
from cdl_deploy.training.backbones.weights_files.description import Description, describe
from cdl_deploy.training.backbones.weights_files.first_look import first_bytes
from cdl_deploy.training.backbones.weights_files.layouts.layout import State
from cdl_deploy.training.backbones.weights_files.networks import find_network
from cdl_deploy.training.backbones.weights_files.stored import file_of, read_stored


@dataclass(frozen=True)
class Weights:
    """One network: its tensors as timm's filters take them, in float32."""

    file: Path
    """Where it was read, inside the folder that was given."""
    tensors: State
    layout: str
    """Whose names the file has, as it is told to a reader."""
    like: str = ""
    """Regular expression for the timm model that is meant, where several fit."""
    place: str = ""
    """Container and prefix that were taken off, with dots."""
    others: tuple[str, ...] = ()
    """Where the networks were that were not taken."""
    beside: tuple[str, ...] = ()
    """Names of tensors that are no part of the network."""
    description: Description = field(default_factory=Description)
    heads: int | None = None
    checked: str | None = None
    """How it is known that the network computes what the file's own graph does."""

    @property
    def pixels(self) -> dict[str, Any]:
        """`mean`, `std`, `input_size`, `interpolation`, as far as they are said."""
        return self.description.pixels

    def words(self) -> str | None:
        """What a user has to know of how the file was read; None where it is timm's as it stands."""
        said = [] if self.layout == "timm's names" else [self.layout]
        said += [f"'{self.place}' taken off its names"] if self.place else []
        said += [f"not taken: {', '.join(self.others[:3])}"] if self.others else []
        said += [self.checked] if self.checked else []
        return "; ".join(said) or None


def read_weights(path: Path) -> Weights:
    """A file, or a folder of a hub's snapshot. Raises WeightsError for what is no weights, saying what it is."""
    file = file_of(path)
    head = first_bytes(file)
    if file.suffix.lower() == ".onnx":
        from cdl_deploy.training.backbones.weights_files.onnx_vit import read_onnx

        found = read_onnx(file)
        said = Description(activation=found.activation)
        return Weights(
            file,
            found.tensors,
            found.layout,
            found.like,
            beside=found.beside,
            description=said,
            heads=found.heads,
            checked=found.checked,
        )
    if is_npz(file, head):
        jax = read_big_vision(file)
        like = r"_siglip_(?!gap)" if "attn_pool.latent" in jax.tensors else r"^vit_\w+_patch\d+_\d+$"
        return Weights(file, jax.tensors, "big_vision's arrays", like, jax.prefix, beside=jax.left_out, heads=jax.heads)
    network = find_network(file, read_stored(file))
    description = describe(file)
    try:
        tensors = network.layout.convert({name: value.float() for name, value in network.tensors.items()})
    except (RuntimeError, ValueError, IndexError) as error:
        reason = " ".join(str(error).split())[:160]
        raise WeightsError(
            f"weights file {file} has names of {network.layout.name}, but shapes that do not go together: {reason}"
        ) from None
    return Weights(
        file,
        tensors,
        network.layout.name,
        network.layout.like,
        network.place,
        network.others,
        network.beside,
        description,
        description.heads,
    )
