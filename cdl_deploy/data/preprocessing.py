"""How an image becomes what a network sees: the one description that training, export, bundle and runtime share."""

from __future__ import annotations

from dataclasses import dataclass

from cdl_deploy.errors import BundleError

INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming")
INPUTS = ("image", "tensor")
MAX_SIDE = 4096
"""Pixels: what a network sees, and what an image is resized to. A model that asks for more asks for gigabytes."""


@dataclass(frozen=True)
class ResizeCrop:
    """Which pixels of an image are seen: the shorter edge is resized, then a rectangle is cut from the centre.

    This is all that training's evaluation needs: each network normalises the pixels for itself.
    """

    height: int
    """Rows the network sees, in pixels."""
    width: int
    """Columns the network sees, in pixels."""
    resize: int
    """Length of the shorter edge after resizing and before the centre crop, in pixels."""
    interpolation: str
    """PIL filter, lower case: one of `INTERPOLATIONS`; always antialiased."""

    def __post_init__(self) -> None:
        for name in ("height", "width", "resize"):
            if not 1 <= getattr(self, name) <= MAX_SIDE:
                raise BundleError(f"{name} is {getattr(self, name)}, expected 1 to {MAX_SIDE}")
        if self.interpolation not in INTERPOLATIONS:
            raise BundleError(f"interpolation is {self.interpolation!r}, expected one of {', '.join(INTERPOLATIONS)}")

    @classmethod
    def square(cls, size: int, resize: int, interpolation: str) -> ResizeCrop:
        """A crop of `size` × `size` pixels."""
        return ResizeCrop(size, size, resize, interpolation)


Views = ResizeCrop | tuple[ResizeCrop, ResizeCrop]
"""What two networks see of an image: the same, or the first's and the second's own."""


@dataclass(frozen=True)
class Preprocessing(ResizeCrop):
    """From a decoded image to the input of an exported graph; who does it is `input`: see `cdl_deploy.data.images`."""

    mean: tuple[float, float, float]
    """Subtracted from each channel (R, G, B), on the scale 0 to 1."""
    std: tuple[float, float, float]
    """Divides each channel (R, G, B) after the mean is subtracted."""
    input: str = "tensor"
    """What the graph takes. `"image"`: uint8 RGB [B, any height, any width, 3]; the graph resizes, crops, normalises.
    `"tensor"`: normalised float32 [B, 3, height, width]; the caller has done all that."""

    def __post_init__(self) -> None:
        if self.input not in INPUTS:
            known = " or ".join(map(repr, INPUTS))
            raise BundleError(f"input is {self.input!r}, expected {known}; a newer cdl-deploy may know it")
        super().__post_init__()
        if not all(value > 0 for value in self.std):
            raise BundleError(f"std is {list(self.std)}, expected three numbers above 0")
        if self.input == "image" and self.resize < max(self.height, self.width):
            raise BundleError(f"resize is {self.resize}, expected at least height and width: the graph pads nothing")
