"""The shape checks that tests run with: arguments against one another, what is returned against the arguments."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from jaxtyping import Float, TypeCheckError
from torch import Tensor

from cdl_deploy.training.backbones.protocol import NetworkShape
from cdl_deploy.training.methods.l2p import L2P
from tests.conftest import no_shape_checks
from tests.shape_checker import jaxtyped


@jaxtyped
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


def within(width: int) -> Float[Tensor, "D"]:
    @jaxtyped
    def defined_in_each_call(row: Float[Tensor, "D"], count: int) -> Float[Tensor, "D"]:
        return row[:count]

    return defined_in_each_call(torch.ones(width), 3)


def test_functions_of_functions_are_checked_in_every_call():
    assert within(3).shape == (3,)
    with pytest.raises(TypeCheckError, match="checking the return value of"):
        within(5)


@jaxtyped
@dataclass(frozen=True)
class Pair:
    rows: Float[Tensor, "B D"]
    scale: Float[Tensor, "D"]


def test_dataclasses_are_checked():
    assert Pair(torch.ones(2, 3), torch.ones(3)).scale.shape == (3,)
    with pytest.raises(TypeCheckError, match="checking the parameters of"):
        Pair(torch.ones(2, 3), torch.ones(2))


def test_the_package_is_checked_unless_it_is_traced():
    """A query has two dimensions, by the annotation alone: the method does not look at it."""
    method = L2P(NetworkShape(4, 1, 2), torch.Generator(), pool_size=3, top_k=2, prompt_length=1)
    with pytest.raises(TypeCheckError, match=r"checking the parameters of cdl_deploy\.training\.methods\.l2p\."):
        method.similarities(torch.ones(1, 1, 2))
    with no_shape_checks():
        assert len(method.similarities(torch.ones(1, 1, 2))) == 1
