"""Arithmetic of losses in float32 or wider, whatever the precision of the encoder."""

import torch
from torch import Tensor
from torch.nn import functional


def in_float32_or_wider(x: Tensor) -> Tensor:
    """Return x in float64 if that is its type, else in float32: half precision has too few digits for a loss."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def row_cosines(first: Tensor, second: Tensor) -> Tensor:
    """Return (B,) the cosines of two embeddings (B, D) row by row, in float32 or wider."""
    return functional.cosine_similarity(in_float32_or_wider(first), in_float32_or_wider(second), dim=1)
