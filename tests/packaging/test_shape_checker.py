"""The shape checks that tests run with: arguments against one another, what is returned against the arguments."""

from __future__ import annotations

import pytest
import torch
from jaxtyping import Float, TypeCheckError, jaxtyped
from torch import Tensor

from tests.shape_checker import checked


@jaxtyped(typechecker=checked)
def scaled(rows: Float[Tensor, "B D"], scale: Float[Tensor, "D"], factor: float = 1.0) -> Float[Tensor, "B D"]:
    return (rows * scale * factor)[: 2 if factor else None]


def test_what_fits_passes():
    assert scaled(torch.ones(2, 3), torch.ones(3), 2).shape == (2, 3)  # an int is a float
    assert scaled(torch.ones(5, 3), torch.ones(3), 0.0).shape == (5, 3)


def test_arguments_are_checked_against_one_another():
    with pytest.raises(TypeCheckError, match=r"checking the parameters of .*scaled"):
        scaled(torch.ones(2, 3), torch.ones(1))
    with pytest.raises(TypeCheckError, match=r"checking the parameters of .*scaled"):
        scaled(torch.ones(2, 3), torch.ones(3), "2")


def test_what_is_returned_is_checked_against_the_arguments():
    with pytest.raises(TypeCheckError, match=r"checking the return value of .*scaled"):
        scaled(torch.ones(5, 3), torch.ones(3))
