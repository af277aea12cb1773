"""`--tokens SHARE`: patch tokens that are alike are merged, so that later blocks have fewer to compute.

Token merging (ToMe, arXiv 2210.09461), between attention and MLP of one block after another until few enough are left:

    patch tokens in turn belong to A and to B                    at most all of A can go in a block
    score of a in A     the largest cosine of its key with that of a b in B; keys are averaged over heads
    the `gone` of A with the highest scores merge, each into its b: the mean of all patches that a token stands for

Class token, registers, the KD token and prompts never merge. Later attention sees a token of m patches m times (log m
is added to its scores), and the mean of the patches weighs it by m. Of equal scores the earlier token's is the higher,
and of equally near b the earlier is taken: TopK and ArgMax settle ties so. How many are left is the same for every
image.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cdl_deploy.errors import OptionError
from cdl_deploy.export.attention import FoldedAttention, Projected
from cdl_deploy.export.block import ConstantPrompt, Sizes, gather, project
from cdl_deploy.training.backbones.protocol import Backbone
from cdl_deploy.training.features import early_blocks
from cdl_deploy.training.methods.folded import HeadRows
from cdl_deploy.training.models.learner import Learner


def check_share(share: float) -> None:
    """Raise OptionError for a share that is none."""
    if not 0 < share <= 1:
        raise OptionError(
            f"--tokens is {share:g}, expected the share of patch tokens that are left: above 0, at most 1"
        )


def patch_count(backbone: Backbone) -> int:
    """Patch tokens of an image."""
    return backbone.layout.count - backbone.layout.first_patch


def patches_left(backbone: Backbone, share: float) -> int:
    """How many are left after the last merging: no more than `share` of all."""
    return math.floor(share * patch_count(backbone) + 1e-9)


def check_merging(learner: Learner, share: float) -> None:
    """Raise OptionError where the learner's patch tokens cannot be merged to a `share` of them."""
    head = learner.closed_form
    read = () if head is None else early_blocks(head.features)
    if share < 1 and head is not None and read:
        raise OptionError(
            f"--tokens: the {learner.role}'s head reads patches@{read[0]}, and merged ones are others: leave --tokens "
            f"out, or give the run a head without it (cdl head RUN --head {head.rule.kind} --features "
            "class+patches --out RUN2)"
        )
    plan_merging(learner.backbone, share, learner.first_block)


def plan_merging(backbone: Backbone, share: float, first_block: int = 0) -> dict[int, int]:
    """Block → patch tokens that go there, from `first_block` on, as early as can be; the last block merges none.

    Raises OptionError where no token would be left, where there are too few blocks, and for backbones that cannot.
    """
    if share == 1:
        return {}
    reason = backbone.cannot_merge()
    if reason is not None:
        name = type(backbone.vit).__name__
        raise OptionError(f"--tokens: the patch tokens of this {name} cannot merge ({reason}): leave --tokens out")
    count = patches = patch_count(backbone)
    left = patches_left(backbone, share)
    if left < 1:
        raise OptionError(
            f"--tokens {share:g} leaves none of the {patches} patch tokens: give at least {_up(1 / patches)}"
        )
    steps: dict[int, int] = {}
    for index in range(first_block, backbone.depth - 1):
        gone = min(count - left, (count + 1) // 2)
        if gone:
            steps[index] = gone
        count -= gone
    if count > left:
        raise OptionError(
            f"--tokens {share:g} is to leave {left} of {patches} patch tokens, but half of them can go in a block, and "
            f"{max(0, backbone.depth - 1 - first_block)} of the {backbone.depth} blocks can merge (prompts begin in "
            f"block {first_block}, and the last has nothing to save): give at least {_up(count / patches)}"
        )
    return steps


def _up(share: float) -> str:
    """A share that is enough, in few digits."""
    return f"{math.ceil(1000 * share - 1e-9) / 1000:g}"


class Merging(nn.Module):
    """In one block: `gone` of `patches` tokens behind the first `first`."""

    key_bias: Tensor | None

    def __init__(self, attention: FoldedAttention, first: int, patches: int, gone: int) -> None:
        super().__init__()
        self.first, self.patches, self.gone = first, patches, gone
        bias = attention.key_shift.mean(dim=1)  # keys are computed without it
        self.register_buffer("key_bias", bias.clone() if bool(bias.any()) else None)

    def forward(
        self, keys: Float[Tensor, "B H N d"], tokens: Float[Tensor, "B N D"], sizes: Sizes | None
    ) -> tuple[Float[Tensor, "B left D"], Sizes]:
        """The tokens that are left, and how many patches each stands for.

        The patches among them are those of A that stay, in any order, and then B. Where a later block merges as well,
        none of A stays (`plan_merging`): so that order, which decides what is A and B there, is that of the image.
        """
        stop, batch = self.first + self.patches, tokens.shape[0]
        into, stay = self.choose(keys[:, :, self.first : stop].mean(dim=1))
        patches = tokens[:, self.first : stop]
        a, b = patches[:, ::2], patches[:, 1::2]
        counts = torch.ones(batch, self.patches) if sizes is None else sizes[:, self.first : stop]
        count_a, count_b = counts[:, ::2].unsqueeze(2), counts[:, 1::2].unsqueeze(2)
        taken = into.transpose(1, 2)  # [B, b, a]
        count = count_b + taken @ count_a
        merged = (b * count_b + taken @ (a * count_a)) / count if sizes is not None else (b + taken @ a) / count
        parts, left = [merged], [count]
        if stay is not None:
            parts, left = [stay @ a, merged], [stay @ count_a, count]
        ones = torch.ones(batch, self.first), torch.ones(batch, tokens.shape[1] - stop)
        kept = [tokens[:, : self.first], *parts, tokens[:, stop:]]
        every = [ones[0], *(it.squeeze(2) for it in left), ones[1]]
        return tuple(torch.cat([it for it in rows if it.shape[1]], dim=1) for rows in (kept, every))  # type: ignore[return-value]

    def choose(self, keys: Float[Tensor, "B P d"]) -> tuple[Float[Tensor, "B a b"], Float[Tensor, "B stay a"] | None]:
        """1 where a token of A merges into one of B; and 1 where one of A stays, a row each, if any stays."""
        if self.key_bias is not None:
            keys = keys + self.key_bias
        unit = nn.functional.normalize(keys, dim=2)
        scores = unit[:, ::2] @ unit[:, 1::2].transpose(1, 2)
        best, nearest = scores.max(dim=2)
        into = one_hot(nearest, scores.shape[2])
        count = scores.shape[1]
        if self.gone == count:
            return into, None
        staying = best.topk(count, dim=1).indices[:, self.gone :]
        stay = one_hot(staying, count)
        return into * (1 - stay.sum(dim=1)).unsqueeze(2), stay


def one_hot(positions: Tensor, count: int) -> Float[Tensor, "B n count"]:
    """Positions [B, n] as rows with a single 1."""
    return (positions.unsqueeze(2) == torch.arange(count)).float()


def mergings(backbone: Backbone, attentions: Mapping[int, FoldedAttention], steps: Mapping[int, int]) -> nn.ModuleDict:
    """By block, for one pass through `backbone`."""
    made, count = nn.ModuleDict(), patch_count(backbone)
    for index, gone in steps.items():
        made[str(index)] = Merging(attentions[index], backbone.layout.first_patch, count, gone)
        count -= gone
    return made


def run_merging_block(
    backbone: Backbone,
    attention: FoldedAttention,
    index: int,
    tokens: Float[Tensor, "B N D"],
    merging: Merging,
    prefix: HeadRows | None = None,
    constant: ConstantPrompt | None = None,
    projected: Projected | None = None,
    sizes: Sizes | None = None,
) -> tuple[Float[Tensor, "B left D"], Sizes]:
    """As `run_block`, with `merging` between attention and MLP; and the sizes of the tokens that are left."""
    query, key, value = projected or project(backbone, attention, index, tokens, None)
    mixed = gather(query, key, value, prefix, constant, sizes)
    tokens = backbone.add_attention(index, tokens, attention.output(mixed))
    tokens, sizes = merging(key, tokens, sizes)
    return backbone.mlp(index, tokens), sizes
