"""Candidates of an approximate index, ranked by the rows themselves."""

import torch
from torch import Tensor

from reptk.neighbors import order
from reptk.neighbors.pairs import pair_similarities


def rerank(bank: Tensor, queries: Tensor, rows: Tensor, k: int, exclude: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The best k of candidate rows (q, c), of which -1 are none, as exact search would rank them.

    Returns:
        similarities and rows, (q, k); -inf and -1 where there are fewer.
    """
    there = rows >= 0
    numbers, found = there.nonzero()[:, 0], rows[there]
    keys = torch.full(rows.shape, order.NONE)
    keys[there] = order.keys(pair_similarities(bank, queries, numbers, found), found)
    if exclude is not None:
        keys = keys.masked_fill(rows == exclude[:, None], order.NONE)
    keys = order.nearest(keys, k)
    return order.similarities(keys), order.rows(keys)
