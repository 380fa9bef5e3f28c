"""The pairwise sigmoid loss of SigLIP, among the rows of one batch."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from reptk.config.registry import LOSSES
from reptk.losses.arguments import LearnedTemperature, PositiveFloat, check_positive, current_value
from reptk.losses.core.positives import Groups
from reptk.losses.core.row_statistics import mean_over_anchors
from reptk.losses.unit_rows import by_blocks_of_anchors, candidates, unit_rows


def siglip(
    z: Tensor,
    ids: Tensor,
    *,
    scale: float | Tensor,
    bias: float | Tensor,
    keys: Tensor | None = None,
    key_ids: Tensor | None = None,
) -> Tensor:
    """Pairwise sigmoid loss (Zhai et al. 2023, arXiv 2303.15343, section 3.2).

    With unit rows, s_ij = z_i . z_j, and y_ij = 1 if rows i and j share an id, else -1:

        L_i = -sum_{j != i} log sigmoid( y_ij (t s_ij + b) )

    The result is the mean of L_i over the anchors that have a positive; the other rows are negatives alone. The paper
    compares images with texts, one positive each, and divides by the number of images. Here all rows are compared with
    each other, and those of one id are positives. Unlike in a softmax, every pair counts by itself.

    Args:
        z: (N, D) embeddings of any scale and floating type.
        ids: (N,) integers; rows that share an id are positives.
        scale: t, which the paper writes as a factor; a scalar tensor gets its gradient.
        bias: b; about -log(N) weighs a few positives and many negatives equally. A scalar tensor gets its gradient.
        keys: (K, D) further rows to compare with, e.g. a queue; they are not anchors and get no gradient.
        key_ids: (K,) their ids.

    Returns:
        Scalar in float32 or wider; 0, attached to the graph, if no row has a positive.

    Raises:
        ValueError: wrong shapes or types.

    Example:
        >>> import torch
        >>> z = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
        >>> round(siglip(z, torch.tensor([0, 0, 1, 1]), scale=10.0, bias=-5.0).item(), 4)
        0.0201
    """
    unit = unit_rows(z, ids)
    others, other_ids = candidates(unit, ids, keys, key_ids)

    def of_anchors(first: int, last: int) -> Tensor:
        with torch.autocast(z.device.type, enabled=False):
            logits = scale * (unit[first:last] @ others.T) + bias
        signs = torch.where(ids[first:last, None] == other_ids, 1.0, -1.0)
        values = functional.softplus(-signs.to(logits.dtype) * logits)
        return values.masked_fill(_is_self(first, last, len(others), z.device), 0.0).sum(1)

    values = by_blocks_of_anchors(of_anchors, len(z), len(others))
    return mean_over_anchors(values, Groups(other_ids, len(z)).num_positives)


def _is_self(first: int, last: int, num_others: int, device: torch.device) -> Tensor:
    """Return the mask (last - first, num_others) of each anchor's comparison with itself."""
    return torch.arange(first, last, device=device)[:, None] == torch.arange(num_others, device=device)


@LOSSES.register("siglip")
class SigLIP(nn.Module):
    """The pairwise sigmoid loss of SigLIP (Zhai et al. 2023), `siglip` as a module: forward(z (N, D), ids (N,)) -> scalar.

    The defaults are where learning starts in the paper; a bias of -10 suits its batches of 32,768 pairs.

    Args:
        scale: t > 0; where learning starts, if it is learned.
        bias: b; where learning starts, if it is learned.
        learn_scale: learn the scale, through its logarithm.
        learn_bias: learn the bias.
    """

    def __init__(
        self, scale: PositiveFloat = 10.0, bias: float = -10.0, learn_scale: bool = True, learn_bias: bool = True
    ) -> None:
        super().__init__()
        check_positive("scale", scale)
        if not math.isfinite(bias):
            raise ValueError(f"bias must be a finite number, got {bias}")
        # No attribute `temperature`: advice on it is for softmaxes.
        if learn_scale:
            self.scale = LearnedTemperature(scale)
        else:
            self.scale = scale
        if learn_bias:
            self.bias = nn.Parameter(torch.tensor(float(bias)))
        else:
            self.bias = bias

    def forward(self, z: Tensor, ids: Tensor, keys: Tensor | None = None, key_ids: Tensor | None = None) -> Tensor:
        return siglip(z, ids, scale=current_value(self.scale), bias=self.bias, keys=keys, key_ids=key_ids)
