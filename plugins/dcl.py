"""Decoupled contrastive learning: NT-Xent without the positives in the denominator.

python -m reptk.recipe simclr_photos --plugin reptk.plugins.dcl loss.name=dcl loss.temperature=0.2
"""

import math

from torch import Tensor, nn

from reptk import LOSSES
from reptk.losses import RowStatistics, Term, mean_over_anchors


@LOSSES.register("dcl")
class DCL(nn.Module):
    """DCL (Yeh et al. 2022, arXiv 2110.06848): NT-Xent whose denominator holds the negatives alone.

    With unit rows, s_ij = z_i . z_j, P(i) the other rows that share i's id and N(i) the rows of other ids:

        L_i = -mean_{p in P(i)} s_ip / t + log sum_{n in N(i)} exp(s_in / t)

    The paper has two views and hence one positive; with more, this is the mean over them. An anchor without a positive or
    without a negative contributes nothing. Because the positives are not in the denominator, the value may be below 0.

    Args:
        temperature: t > 0.
    """

    computes_local_rows = True

    def __init__(self, temperature: float = 0.1) -> None:
        super().__init__()
        if not 0 < temperature < math.inf:
            raise ValueError(f"temperature must be a finite number above 0, got {temperature}")
        self.temperature = temperature

    def forward(self, z: Tensor, ids: Tensor) -> Tensor:
        rows = RowStatistics(z, ids)
        logit_scale = 1 / self.temperature
        mean_similarity, log_negatives = rows.measure(Term("negatives", logit_scale))
        per_anchor = log_negatives - mean_similarity / self.temperature
        # A logarithm of an empty sum; without negatives an anchor has no loss.
        has_negatives = log_negatives != -math.inf
        return mean_over_anchors(per_anchor, rows.positives() * has_negatives)
