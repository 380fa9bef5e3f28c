"""Smooth-AP: average precision whose ranks are sums of sigmoids."""

import torch
from torch import Tensor, nn

from reptk.config.registry import LOSSES
from reptk.losses.arguments import PositiveFloat, check_positive
from reptk.losses.core.positives import Groups
from reptk.losses.core.row_statistics import mean_over_anchors
from reptk.losses.unit_rows import by_blocks_of_anchors, candidates, unit_rows


def smooth_ap(
    z: Tensor,
    ids: Tensor,
    *,
    anneal: float,
    keys: Tensor | None = None,
    key_ids: Tensor | None = None,
) -> Tensor:
    """Smooth-AP (Brown et al. 2020, arXiv 2007.12163, equations 3 to 7).

    With unit rows, s_qi = z_q . z_i, P(q) the other rows that share q's id, A(q) all rows but q, and
    G(x) = 1 / (1 + exp(-x / tau)):

        R(i, S) = 1 + sum_{j in S, j != i} G(s_qj - s_qi)
        L_q = 1 - 1/|P(q)| sum_{i in P(q)} R(i, P(q)) / R(i, A(q))

    The result is the mean of L_q over the rows that have a positive. The authors' code, and pytorch-metric-learning's, count
    the query among its own positives, where it always ranks first; here, as in evaluation, it is left out. The authors' code
    and pytorch-metric-learning 2.9.0 take classes of one size alone; here classes may differ in size.

    Args:
        z: (N, D) embeddings of any scale and floating type.
        ids: (N,) integers; rows that share an id are positives.
        anneal: tau > 0, the width of the sigmoid (0.01 in the paper).
        keys: (K, D) further rows to rank, e.g. a queue; they are not queries and get no gradient.
        key_ids: (K,) their ids.

    Returns:
        Scalar in float32 or wider, from 0 to 1; 0, attached to the graph, if no row has a positive.

    Raises:
        ValueError: wrong shapes or types, anneal not positive.

    Example:
        >>> import torch
        >>> z = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]])
        >>> round(smooth_ap(z, torch.tensor([0, 1, 0, 1]), anneal=0.01).item(), 4)
        0.5833
    """
    check_positive("anneal", anneal)
    unit = unit_rows(z, ids)
    others, other_ids = candidates(unit, ids, keys, key_ids)
    num_positives = Groups(other_ids, len(z)).num_positives

    def of_queries(first: int, last: int) -> Tensor:
        return _average_precision(unit, others, ids, other_ids, (first, last), anneal)

    most_positives = int(num_positives.max())
    precision = by_blocks_of_anchors(of_queries, len(z), len(others) * max(1, most_positives))
    return mean_over_anchors(1 - precision, num_positives)


def _average_precision(
    unit: Tensor, others: Tensor, ids: Tensor, other_ids: Tensor, queries: tuple[int, int], anneal: float
) -> Tensor:
    """Return the smooth average precision (b,) of the queries first .. last - 1; 0 for one without positives.

    Args:
        unit: (N, D) rows of the batch.
        others: (M, D) rows that are ranked, those of the batch first.
        ids, other_ids: of both.
        queries: (first, last).
        anneal: tau.
    """
    first, last = queries
    with torch.autocast(unit.device.type, enabled=False):
        similarity = unit[first:last] @ others.T
    numbers = torch.arange(len(others), device=unit.device)
    is_self = torch.arange(first, last, device=unit.device)[:, None] == numbers
    is_positive = (ids[first:last, None] == other_ids) & ~is_self
    # One row for each query q with each of its positives i.
    q, i = is_positive.nonzero(as_tuple=True)
    ahead = torch.sigmoid((similarity[q] - similarity[q, i][:, None]) / anneal)  # (pairs, M)
    ahead = ahead.masked_fill(is_self[q] | (numbers == i[:, None]), 0.0)
    rank = 1 + ahead.sum(1)
    rank_among_positives = 1 + (ahead * is_positive[q]).sum(1)
    total = similarity.new_zeros(last - first).index_add(0, q, rank_among_positives / rank)
    return total / is_positive.sum(1).clamp_min(1)


@LOSSES.register("smooth_ap")
class SmoothAP(nn.Module):
    """Smooth-AP (Brown et al. 2020), `smooth_ap` as a module: forward(z (N, D), ids (N,)) -> scalar.

    Args:
        anneal: tau > 0, the width of the sigmoid that replaces the comparison of two similarities.
    """

    def __init__(self, anneal: PositiveFloat = 0.01) -> None:
        super().__init__()
        self.anneal = check_positive("anneal", anneal)

    def forward(self, z: Tensor, ids: Tensor, keys: Tensor | None = None, key_ids: Tensor | None = None) -> Tensor:
        return smooth_ap(z, ids, anneal=self.anneal, keys=keys, key_ids=key_ids)
