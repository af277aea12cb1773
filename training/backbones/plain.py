"""A plain pre-norm ViT of timm's, as prompts and export expect it."""

from __future__ import annotations

from jaxtyping import Float
from timm.layers.attention import Attention
from timm.models.vision_transformer import Block, VisionTransformer
from timm.models.vision_transformer_hybrid import HybridEmbed
from torch import Tensor, nn

from cdl_deploy.errors import WeightsError
from cdl_deploy.training.backbones.timm_vit import TimmViT, check_pooling
from cdl_deploy.training.shapes import Tokens


class PlainViT(TimmViT):
    """timm's `VisionTransformer`: DeiT, DINO, DINOv2, CLIP, MAE, SigLIP, RADIO and most `vit_*`."""

    vit: VisionTransformer

    @classmethod
    def check(cls, vit: nn.Module) -> None:
        """Refuse what is not a plain pre-norm ViT."""
        check_plain(vit)

    def embed_normalised(self, images: Float[Tensor, "B 3 height width"]) -> Tokens:
        with self.precision():
            tokens = self.vit._pos_embed(self.vit.patch_embed(images))
            return self.vit.norm_pre(self.vit.patch_drop(tokens)).float()

    def add_attention(
        self, index: int, tokens: Float[Tensor, "B n D"], output: Float[Tensor, "B n D"]
    ) -> Float[Tensor, "B n D"]:
        added: Tensor = tokens + self.block(index).ls1(output)
        return added

    def mlp(self, index: int, tokens: Float[Tensor, "B n D"]) -> Float[Tensor, "B n D"]:
        block = self.block(index)
        added: Tensor = tokens + block.ls2(block.mlp(block.norm2(tokens)))
        return added

    def cannot_merge(self) -> str | None:
        return "it pools its tokens by attention" if self.pooling == "map" else None

    def plain_block(self, index: int, tokens: Tokens) -> Tokens | None:
        return None if self.packed else self.block(index)(tokens)


def check_plain(vit: nn.Module) -> None:
    """Refuse what is not a plain pre-norm ViT: prompts would silently land in the wrong place."""
    name = type(vit).__name__
    if type(vit) is not VisionTransformer:
        raise WeightsError(f"the model is a {name}, expected a plain timm VisionTransformer, or its Eva")
    if isinstance(vit.patch_embed, HybridEmbed):
        raise WeightsError("the model is a hybrid, whose patches a convolutional network makes")
    check_pooling(vit)
    for block in vit.blocks:
        attention = getattr(block, "attn", None)
        if type(block) is not Block or type(attention) is not Attention:
            how = "" if attention is None else f" with {type(attention).__name__}"
            own = KINDS.get(type(block).__name__) or KINDS.get(type(attention).__name__)
            raise WeightsError(
                f"the ViT's blocks are {type(block).__name__}{how}{f' ({own})' if own else ''}, expected Block with "
                "Attention"
            )
        if getattr(attention, "gate", None) is not None:  # timm 1.0.20 knows none
            raise WeightsError("the ViT gates its attention output")


KINDS = {
    "ParallelScalingBlock": "attention and MLP side by side",
    "ParallelThingsBlock": "attention and MLPs side by side",
    "DiffParallelScalingBlock": "differential attention and MLP side by side",
    "DiffAttention": "differential attention",
    "ResPostBlock": "normalised after attention and MLP",
}
"""What blocks of timm's are that are not ours."""
