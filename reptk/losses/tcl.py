"""Tuned contrastive loss: SupCon with a harder pull on hard positives (k1) and a harder push on negatives (k2)."""

import math

from torch import Tensor, nn

from reptk.config.registry import LOSSES
from reptk.losses.arguments import (
    NonNegativeFloat,
    PositiveFloat,
    check_not_negative,
    current_value,
    logit_scale_of,
    temperature_argument,
)
from reptk.losses.core.row_statistics import RowStatistics, Term, mean_over_anchors


def tcl(
    z: Tensor,
    ids: Tensor,
    *,
    temperature: float | Tensor,
    k1: float,
    k2: float,
    keys: Tensor | None = None,
    key_ids: Tensor | None = None,
) -> Tensor:
    """TCL loss (Animesh and Chandraker, arXiv 2305.10675).

    With unit rows, s_ij = z_i . z_j, P(i) the rows that share i's id without i and N(i) the rows of other ids:

        L_i = -1/|P(i)| sum_{p in P(i)} log( exp(s_ip / t) / D_i )
        D_i = sum_{p in P(i)} ( exp(s_ip / t) + k1 exp(-s_ip) ) + k2 sum_{n in N(i)} exp(s_in / t)

    The result is the mean of L_i over the anchors that have a positive. Self-supervised TCL is the same formula with
    the image's number as id. k1 = 0 and k2 = 1 is SupCon's `out` form. The formula is that of the authors' published
    code, whose denominators are transposed (D_j where D_i is meant): its mean agrees with this one, its per-anchor
    values do not. Note that the k1 term carries no temperature.

    Args:
        z: (N, D) embeddings of any scale and floating type.
        ids: (N,) integers; rows that share an id are positives.
        temperature: t > 0; a scalar tensor gets its gradient.
        k1: weight of the hard-positive term, at least 0 (the published code's default: 5000).
        k2: weight of the negatives, at least 0 (the published code's default: 1).
        keys: (K, D) further rows to compare with, e.g. a queue; they are not anchors and get no gradient.
        key_ids: (K,) their ids.

    Returns:
        Scalar in float32 or wider; 0, attached to the graph, if no row has a positive.

    Raises:
        ValueError: wrong shapes or types, temperature not positive, negative k1 or k2.

    Example:
        >>> import torch
        >>> z = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
        >>> round(tcl(z, torch.tensor([0, 0, 1, 1]), temperature=0.5, k1=0.0, k2=1.0).item(), 4)
        0.2395
    """
    logit_scale = logit_scale_of(temperature)
    check_not_negative("k1", k1)
    check_not_negative("k2", k2)
    denominator = [Term("positives", logit_scale)]  # exp(s_ip / t)
    # A weight of 0 has no logarithm; its term is left out.
    if k1 > 0:
        denominator.append(Term("positives", -1.0, math.log(k1)))  # k1 exp(-s_ip), without a temperature
    if k2 > 0:
        denominator.append(Term("negatives", logit_scale, math.log(k2)))  # k2 exp(s_in / t)
    rows = RowStatistics(z, ids, keys, key_ids)
    mean_similarity, log_denominator = rows.measure(denominator)
    return mean_over_anchors(log_denominator - logit_scale * mean_similarity, rows.positives())


@LOSSES.register("tcl")
class TCL(nn.Module):
    """Tuned contrastive learning, `tcl` as a module: forward(z (N, D), ids (N,)) -> scalar.

    The defaults are those of the published code.

    Args:
        temperature: t > 0; where learning starts, if it is learned.
        k1: weight of the hard-positive term, at least 0.
        k2: weight of the negatives, at least 0.
        learn_temperature: learn the temperature, through its logarithm.
    """

    computes_local_rows = True

    def __init__(
        self,
        temperature: PositiveFloat = 0.1,
        k1: NonNegativeFloat = 5000.0,
        k2: NonNegativeFloat = 1.0,
        learn_temperature: bool = False,
    ) -> None:
        super().__init__()
        self.temperature = temperature_argument(temperature, learn_temperature)
        self.k1 = check_not_negative("k1", k1)
        self.k2 = check_not_negative("k2", k2)

    def forward(self, z: Tensor, ids: Tensor, keys: Tensor | None = None, key_ids: Tensor | None = None) -> Tensor:
        return tcl(
            z, ids, temperature=current_value(self.temperature), k1=self.k1, k2=self.k2, keys=keys, key_ids=key_ids
        )
