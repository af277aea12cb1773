"""Frozen linear layers on a CPU, their weights laid out once as oneDNN's kernels read them.

The same products in fp32, and faster: PyTorch's own `F.linear` takes weights as they lie. It pays where weights never
change, as those of a frozen backbone. `torch.compile` does the same to a model it was told to freeze.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

mkldnn: Any = torch.ops.mkldnn
"""Operators of PyTorch's own compiler; `can_pack` says whether they are there."""
SMALLEST_WIDTH = 256
"""Of a model whose layers are worth packing."""


class PackedLinear:
    """x Wᵀ + b for constant W [out, in] and b [out]; a gradient reaches x alone, by a packed product as well."""

    def __init__(self, weight: Float[Tensor, "out in"], bias: Float[Tensor, "out"] | None) -> None:
        self.weight, self.bias = weight.detach(), None if bias is None else bias.detach()
        self.packed = _pack(self.weight)
        self.packed_transpose: Tensor | None = None

    @classmethod
    def of(cls, layer: nn.Linear) -> PackedLinear:
        """A layer's weights, packed."""
        return cls(layer.weight, layer.bias)

    def __call__(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        if torch.is_grad_enabled() and x.requires_grad:
            return _Product.apply(x, self)
        return self.product(x)

    def then_gelu(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        """GELU(x Wᵀ + b). Without a gradient it is part of the product, and no pass over memory of its own."""
        if torch.is_grad_enabled() and x.requires_grad:
            return F.gelu(self(x))
        return _multiply(x, self.packed, self.bias, "gelu")

    def product(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        """x Wᵀ + b, without gradient."""
        return _multiply(x, self.packed, self.bias)

    def gradient(self, gradient: Float[Tensor, "*batch out"]) -> Float[Tensor, "*batch in"]:
        """Of x, from that of the product. Wᵀ is packed when it is needed for the first time."""
        if self.packed_transpose is None:
            self.packed_transpose = _pack(self.weight.T.contiguous())
        return _multiply(gradient, self.packed_transpose, None)


class PackedMlp:
    """The two layers of a block's MLP with the GELU between them."""

    def __init__(self, first: PackedLinear, second: PackedLinear) -> None:
        self.first, self.second = first, second

    def __call__(self, x: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch D"]:
        return self.second(self.first.then_gelu(x))


class _Product(torch.autograd.Function):
    """A product of `PackedLinear` that remembers nothing of its input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: PackedLinear) -> Tensor:
        ctx.layer = layer
        return layer.product(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return ctx.layer.gradient(gradients[0]), None


def can_pack(device: torch.device) -> bool:
    """Whether this PyTorch has the kernels: oneDNN on an x86 CPU."""
    return device.type == "cpu" and torch.backends.mkldnn.is_available() and _kernels_there()


def _kernels_there() -> bool:
    """Tried once with a small product, since PyTorch promises nothing about operators of its compiler."""
    try:
        weight = torch.eye(16)
        packed = _pack(weight)
        same = torch.equal(_multiply(weight, packed, None), weight)
        return same and torch.allclose(_multiply(weight, packed, None, "gelu"), F.gelu(weight))
    except (AttributeError, RuntimeError):
        return False


def _pack(weight: Tensor) -> Tensor:
    packed: Tensor = mkldnn._reorder_linear_weight(weight)
    return packed


def _multiply(x: Tensor, packed: Tensor, bias: Tensor | None, then: str = "none") -> Tensor:
    """`then`: what is done to the product, `none` or `gelu`, whose algorithm `none` is the exact one."""
    product: Tensor = mkldnn._linear_pointwise(x, packed, bias, then, [], "none" if then == "gelu" else "")
    return product
