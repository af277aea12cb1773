"""What a frozen ViT has to offer so that its blocks can run with prompts (method, section 2) and be exported."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from cdl_deploy.training.features import Feature, at_the_end
from cdl_deploy.training.shapes import Pixels, PromptVectors, Tokens

POOLED = {"avg": "the mean of its patches", "map": "what its attention pooling makes of all tokens"}
"""What stands for an image where it is not the class token, by timm's name."""


@dataclass(frozen=True)
class TokenLayout:
    """What a backbone's tokens are: the class token, register tokens, then patches row by row."""

    registers: int
    grid: tuple[int, int]
    """Patches in a column and in a row of the image."""
    class_token: bool = True
    """Whether there is one."""

    @property
    def first_patch(self) -> int:
        """Its position, which is the number of tokens before it."""
        return int(self.class_token) + self.registers

    @property
    def count(self) -> int:
        """All tokens, without any that are appended."""
        return self.first_patch + self.grid[0] * self.grid[1]


@dataclass(frozen=True)
class NetworkShape:
    """What a method or a distillation must know of the network it prompts."""

    width: int
    """D, of the prompted backbone."""
    depth: int
    """L, of the prompted backbone."""
    query_width: int
    """Q, the student's width: keys have it in teacher and student alike."""
    first_block: int = 0
    """Prompts that sit in block b for a full query sit in block b + first_block (method, section 9)."""
    layout: TokenLayout = TokenLayout(registers=0, grid=(0, 0))
    """Only distillations that compare tokens look at it."""
    pooling: str | None = None
    """`Backbone.pooling`."""

    def remedies(self, wanted: int) -> str:
        """What else than a deeper model helps where so many blocks are to follow `first_block`, and fewer do."""
        smaller = ", or a smaller K for --query block:K" if self.first_block and wanted <= self.depth else ""
        return f", or more --student-blocks where that is given{smaller}"


@dataclass(frozen=True)
class BlockPrompt:
    """What one block's attention gets besides its tokens. Each pair is (key prompts, value prompts)."""

    prefix: tuple[PromptVectors, PromptVectors] | None = None
    """Prefix prompts, put before the keys and values of the tokens."""
    suffix: tuple[Float[Tensor, "1 r D"], Float[Tensor, "1 r D"]] | None = None
    """KD prompts, put after them; the same for every image."""
    cls_bias: tuple[Float[Tensor, "D"], Float[Tensor, "D"]] | None = None
    """Added to the class token's key and value (APT)."""


Prompts = Mapping[int, BlockPrompt]

OutputTokens = tuple[int, ...] | None
"""Positions of the tokens that somebody reads, counted from the end where negative; None for all."""


PatchSizes = Float[Tensor, "B patches"]
"""How many patches each patch token stands for."""


class AttentionWeights(NamedTuple):
    """A block's projections [D, D] with their biases [D], and the factor of its scores: what export folds."""

    query: Tensor
    key: Tensor
    value: Tensor
    query_bias: Tensor
    key_bias: Tensor
    value_bias: Tensor
    output: Tensor
    output_bias: Tensor | None
    scale: float


class PatchProjection(NamedTuple):
    """Patches embedded by one plain projection: what export folds the pixel statistics into."""

    weight: Float[Tensor, "D 3 height width"]
    bias: Float[Tensor, " D"] | None
    stride: tuple[int, int]
    norm: nn.Module
    """Between projection and position embedding."""
    position: Float[Tensor, "1 P D"] | None
    """Added to the patches."""
    prefix_tokens: Float[Tensor, "1 r D"]
    """What comes before the patches, positions included."""
    norm_pre: nn.Module
    """Of all tokens, before block 0."""


AnyBackbone = TypeVar("AnyBackbone", bound="Backbone")


class Backbone(nn.Module, ABC):
    """A frozen ViT with its own pixel statistics. Subclasses are registered in `backbones/__init__.py`.

    Never trains: no parameter asks for a gradient, always in eval mode. The tokens are the class token, where there is
    one, registers, patches row by row, and whatever is appended to them.
    """

    vit: Any
    """The network itself: its state is what a run stores."""
    mean: Tensor
    std: Tensor
    key_bias_can_be_dropped: bool = True
    """Whether a key's bias adds the same to all scores of a query: not where keys are normalised or rotated."""
    keys_and_values_can_be_absorbed: bool = True
    """Whether keys are plain products of tokens, so that few queries can be brought to the tokens instead. Values
    always are, and `gathered_is_projected` says whether they may stay uncomputed."""
    scale_can_be_folded: bool = True
    """Whether `position` of a multiple of a query is that multiple: not where queries are normalised."""
    gathered_is_projected: bool = True
    """Whether what the heads gathered goes into the projection as it is, so that a value's bias can be part of that
    projection's: not where it is normalised first."""
    pooling: str | None = None
    """How one feature is made of all tokens, where it is not the class token that query and heads read."""

    def __init__(
        self,
        vit: nn.Module,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        width: int,
        depth: int,
        heads: int,
        layout: TokenLayout,
    ) -> None:
        """`vit`: the network whose state a run stores, without a classifier."""
        super().__init__()
        self.vit = vit.eval().requires_grad_(False)
        self.width, self.depth, self.heads, self.layout = width, depth, heads, layout
        self.bf16 = False
        """Whether matrix products run in bf16 (autocast). What comes out, and every parameter, is fp32 all the same."""
        self.compiled = False
        """Whether the blocks are compiled."""
        self.first_pixel = 0
        """Where its own pixels begin among those of two networks; see `own_pixels`."""
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    # what a family of networks has to say

    @classmethod
    @abstractmethod
    def check(cls, vit: nn.Module) -> None:
        """Raise WeightsError for a network that this class would compute wrongly."""

    @property
    @abstractmethod
    def image_size(self) -> tuple[int, int]:
        """Height and width of the images it takes."""

    @abstractmethod
    def embed_normalised(self, images: Float[Tensor, "B 3 height width"]) -> Tokens:
        """Normalised pixels → tokens before block 0."""

    @abstractmethod
    def norm(self, index: int, tokens: Float[Tensor, "*shape D"]) -> Float[Tensor, "*shape D"]:
        """What block `index` does to tokens before its attention."""

    @abstractmethod
    def qkv(self, index: int, tokens: Tokens, first: int, count: int) -> Float[Tensor, "count B H N head"]:
        """`count` of a block's projections to query, key and value (0, 1, 2) of normalised tokens, from `first` on.

        Split into heads; before what is done to queries and keys.
        """

    @abstractmethod
    def position(
        self, index: int, rows: Float[Tensor, "B H n head"], key: bool, output_tokens: OutputTokens = None
    ) -> Float[Tensor, "B H n head"]:
        """Queries, or keys, of all tokens or of those at `output_tokens`, as scores are computed of them: normalised,
        rotated, or as they are."""

    def gathered(self, index: int, mixed: Float[Tensor, "B n D"]) -> Float[Tensor, "B n D"]:
        """What the heads gathered, as it enters the projection: as it is, or normalised."""
        return mixed

    @abstractmethod
    def attention_output(self, index: int, mixed: Float[Tensor, "B n D"]) -> Float[Tensor, "B n D"]:
        """The projection of what the heads gathered, `gathered` included."""

    @abstractmethod
    def add_attention(
        self, index: int, tokens: Float[Tensor, "B n D"], output: Float[Tensor, "B n D"]
    ) -> Float[Tensor, "B n D"]:
        """Tokens with what attention found added to them."""

    @abstractmethod
    def mlp(self, index: int, tokens: Float[Tensor, "B n D"]) -> Float[Tensor, "B n D"]:
        """The second half of a block."""

    @abstractmethod
    def final_norm(self, tokens: Float[Tensor, "*shape D"]) -> Float[Tensor, "*shape D"]:
        """The norm between the last block and the heads."""

    @abstractmethod
    def attention_weights(self, index: int) -> AttentionWeights:
        """What export folds into constants."""

    def patch_projection(self) -> PatchProjection | None:
        """The same of the patch embedding; None where it is no plain projection and has to run as it is."""
        return None

    def plain_block(self, index: int, tokens: Tokens) -> Tokens | None:
        """A block without prompts as the network itself computes it, where that is faster; otherwise None."""
        return None

    @contextmanager
    def packed_layers(self) -> Iterator[None]:
        """While it lasts, linear layers may be laid out as this machine computes them fastest."""
        yield

    # pooling: which tokens of the last block are read, and what becomes of them

    def output_tokens(self, features: Collection[Feature]) -> OutputTokens:
        """Which tokens the last block has to give for these features: the class token, the one appended, or all."""
        if "patches" in features:
            return None
        return (0, -1) if "kd" in features else (0,)

    def pool(
        self, tokens: Float[Tensor, "B N D"], features: Collection[Feature], sizes: PatchSizes | None = None
    ) -> Float[Tensor, "B n D"]:
        """The features after the last block, in their order, of its tokens: of all, or of those `output_tokens` names.

        `sizes`: how many patches each of the patch tokens stands for, where some were merged.
        """
        wanted = self.output_tokens(features)
        if wanted is not None:
            return self.final_norm(tokens if tokens.shape[1] == len(wanted) else pick(tokens, wanted))
        normed = self.final_norm(tokens)
        found = {"class": normed[:, 0], "patches": self.mean_patch(normed, sizes), "kd": normed[:, -1]}
        return torch.stack([found[name] for name in at_the_end(features)], dim=1)

    def mean_patch(self, normed: Float[Tensor, "B N D"], sizes: PatchSizes | None = None) -> Float[Tensor, "B D"]:
        """The mean of the patches among all tokens; `sizes` as in `pool`."""
        first = self.layout.first_patch
        if sizes is None:
            return normed[:, first : self.layout.count].mean(dim=1)
        patches = normed[:, first : first + sizes.shape[1]]
        return (patches * sizes.unsqueeze(2)).sum(dim=1) / (self.layout.count - first)

    def cannot_merge(self) -> str | None:
        """Why patch tokens cannot be merged, as `cdl export --tokens` does; None where they can."""
        return "merging is not known for this family of networks"

    # what holds for all

    def train(self: AnyBackbone, mode: bool = True) -> AnyBackbone:  # beartype cannot check typing.Self
        """Stay in eval mode: a frozen backbone drops nothing."""
        return super().train(False)

    def embed(self, images: Pixels) -> Tokens:
        """Pixels uint8, its own or those of two networks → tokens before block 0."""
        return self.embed_normalised((self.own_pixels(images).float() / 255 - self.mean) / self.std)

    def own_pixels(self, images: Pixels) -> UInt8[Tensor, "B 3 height width"]:
        """What it sees of images: all of it, or its part where two networks see them at sizes of their own."""
        if images.dim() == 4:
            return images
        height, width = self.image_size
        first = self.first_pixel
        return images[:, first : first + 3 * height * width].unflatten(1, (3, height, width))

    @torch.no_grad()
    def class_token(self, block: int = 0) -> Float[Tensor, "1 D"]:
        """The class token as it enters `block`, position embedding included.

        It is the same for every image before block 0; before a later block, that of an image of the mean colour.
        A network without one has the mean of the patches of such an image in its place.
        """
        tokens = self.embed_normalised(torch.zeros(1, 3, *self.image_size, device=self.mean.device))
        entering = self.run_blocks(tokens, 0, block)[0]
        if not self.layout.class_token:
            return entering[self.layout.first_patch :].mean(dim=0, keepdim=True)
        return entering[:1].clone()

    def run_block(
        self, index: int, tokens: Tokens, prompt: BlockPrompt | None = None, output_tokens: OutputTokens = None
    ) -> Float[Tensor, "B n D"]:
        """One block; it returns as many tokens as it got, or only those at the positions `output_tokens`."""
        plain = self.plain_block(index, tokens) if prompt is None and output_tokens is None else None
        if plain is not None:
            return plain
        output = self._attention(index, self.norm(index, tokens), prompt or BlockPrompt(), output_tokens)
        return self.mlp(index, self.add_attention(index, pick(tokens, output_tokens), output))

    def run_blocks(
        self,
        tokens: Tokens,
        start: int,
        stop: int,
        prompts: Prompts | None = None,
        output_tokens: OutputTokens = None,
        after: Callable[[int, Tensor], None] | None = None,
    ) -> Float[Tensor, "B n D"]:
        """Blocks `start` to `stop - 1`. Of the last one, only the tokens at the positions `output_tokens` are computed.

        `after` is told a block's number and the tokens after it, one block after the other.
        """
        prompts = prompts or {}
        with self.precision():
            for index in range(start, stop):
                tokens = self.run_block(index, tokens, prompts.get(index), output_tokens if index == stop - 1 else None)
                if after is not None:
                    after(index, tokens.float())
        return tokens.float()

    def precision(self) -> torch.autocast:
        """In which matrix products run."""
        return torch.autocast(self.mean.device.type, torch.bfloat16, enabled=self.bf16)

    def _attention(
        self, index: int, tokens: Tokens, prompt: BlockPrompt, output_tokens: OutputTokens = None
    ) -> Float[Tensor, "B n D"]:
        """Multi-head attention with prompts around the keys and values; queries are untouched.

        With `output_tokens` only the tokens there ask; all of them answer.
        """
        batch, heads = tokens.shape[0], self.heads
        # Apart, so that what keys and values were before rows joined them is not kept for the backward pass.
        query = self.qkv(index, pick(tokens, output_tokens), 0, 1)[0]
        key, value = self.qkv(index, tokens, 1, 2).unbind(0)
        query, key = self.position(index, query, False, output_tokens), self.position(index, key, True)
        if prompt.cls_bias is not None:
            shift_key, shift_value = (row.view(heads, 1, -1).to(key) for row in prompt.cls_bias)
            key = torch.cat([key[:, :, :1] + shift_key, key[:, :, 1:]], dim=2)
            value = torch.cat([value[:, :, :1] + shift_value, value[:, :, 1:]], dim=2)
        keys, values = [key], [value]
        if prompt.prefix is not None:
            keys.insert(0, _split_heads(prompt.prefix[0], batch, heads, key.dtype))
            values.insert(0, _split_heads(prompt.prefix[1], batch, heads, key.dtype))
        if prompt.suffix is not None:
            keys.append(_split_heads(prompt.suffix[0], batch, heads, key.dtype))
            values.append(_split_heads(prompt.suffix[1], batch, heads, key.dtype))
        mixed = F.scaled_dot_product_attention(query, torch.cat(keys, dim=2), torch.cat(values, dim=2))
        return self.attention_output(index, mixed.transpose(1, 2).flatten(2))


def _split_heads(rows: PromptVectors, batch: int, heads: int, dtype: torch.dtype) -> Float[Tensor, "B H p head"]:
    """PromptVectors [B or 1, p, D] → [B, H, p, D / H], as they are: prompts pass no projection."""
    split = rows.unflatten(-1, (heads, -1)).transpose(1, 2)
    return split.to(dtype).expand(batch, -1, -1, -1)


def pick(tokens: Tokens, output_tokens: OutputTokens) -> Float[Tensor, "B n D"]:
    """The tokens at the positions `output_tokens`, in that order."""
    return tokens if output_tokens is None else torch.stack([tokens[:, position] for position in output_tokens], dim=1)
