"""The one vocabulary of tensor shapes, used in every annotation and checked by jaxtyping while the tests run.

B   batch             N   tokens (class token + patches, plus the KD token where there is one)
D   width             Q   width of the query (the student's width)
H   heads             L   depth (number of blocks)
p   prompt length     M   components or pool entries
C   classes seen      K   classes of the current task
"""

from __future__ import annotations

from jaxtyping import Float, Int64, UInt8
from torch import Tensor

Tokens = Float[Tensor, "B N D"]
Query = Float[Tensor, "B Q"]
PromptVectors = Float[Tensor, "b p D"]  # b is B, or 1 where every image gets the same rows
Logits = Float[Tensor, "B C"]
Labels = Int64[Tensor, "B"]
Pixels = UInt8[Tensor, "B *seen"]
"""[B, 3, height, width]; or, where teacher and student see sizes of their own, the pixels of both, flat: the
student's first."""
Similarities = Float[Tensor, "B M"]
Scalar = Float[Tensor, ""]

__all__ = ["Labels", "Logits", "Pixels", "PromptVectors", "Query", "Scalar", "Similarities", "Tokens"]
