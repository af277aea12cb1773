"""What shapes do not say of a network, and the configuration beside its weights does: heads, activation, epsilon."""

from __future__ import annotations

from typing import Any, cast

from timm.layers import QuickGELU
from torch import nn

from cdl_deploy.training.backbones.weights_files.weights import Weights

SAME_EPSILON = 1.5
"""Times that two epsilons may differ and be the same number, rounded."""


def differences(weights: Weights, network: nn.Module) -> tuple[list[str], list[str]]:
    """In words: what makes it another network, and what makes features differ slightly."""
    said, vit = weights.description, cast(Any, network)
    wrong: list[str] = []
    slight: list[str] = []
    block = vit.blocks[0]
    heads = getattr(getattr(block, "attn", None), "num_heads", None)
    if weights.heads is not None and heads is not None and weights.heads != heads:
        wrong.append(f"attention with {weights.heads} heads, the model's has {heads}")
    quick = isinstance(getattr(getattr(block, "mlp", None), "act", None), QuickGELU)
    if said.activation is not None and (said.activation == "quick_gelu") != quick:
        wrong.append(
            f"activation {said.activation}, the model's is {'quick_gelu' if quick else 'gelu'}: choose a model "
            f"{'without' if quick else 'with'} 'quickgelu' in its name"
        )
    epsilon = getattr(getattr(block, "norm1", None), "eps", None)
    if said.epsilon is not None and epsilon and not 1 / SAME_EPSILON < said.epsilon / epsilon < SAME_EPSILON:
        slight.append(f"its norms add {said.epsilon:g}, timm's {epsilon:g}: features differ in the fourth digit")
    return wrong, slight
