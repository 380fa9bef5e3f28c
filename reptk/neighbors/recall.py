"""Which share of the exact nearest neighbors a search finds."""

from collections.abc import Callable

import torch
from torch import Tensor

from reptk.neighbors.ranking import candidate_similarities

ROUNDING = 1e-6
"""A row counts as found if it is less similar than the k-th exact neighbor by no more: engines may scale vectors again."""


def found_shares(
    queries: Tensor, rows: Tensor, exact: Tensor, exclude: Tensor, vectors_of: Callable[[list[int]], Tensor]
) -> Tensor:
    """Return for each query the share (q,) of its exact neighbors that an index returned.

    A row that is as similar as the k-th exact neighbor counts as found, since exact copies are interchangeable.

    Args:
        queries: (q, F).
        rows: (q, k) that the index returned, or fewer, in any order; below 0 for none. A row that is there twice counts once.
        exact: (q, k) similarities of the exact neighbors, best first.
        exclude: (q,) the row that is the query itself, which never counts; -1 for a query that is no row.
        vectors_of: returns the vectors (r, F) of rows.
    """
    rows = rows.sort(dim=1).values
    is_repeated = torch.zeros_like(rows, dtype=torch.bool)
    is_repeated[:, 1:] = rows[:, 1:] == rows[:, :-1]
    is_absent = (rows < 0) | is_repeated | (rows == exclude[:, None])
    distinct, positions = rows.clamp_min(0).unique(return_inverse=True)
    similarities = candidate_similarities(vectors_of(distinct.tolist()), queries, positions.masked_fill(is_absent, -1))
    # Not more than k rows are as similar as the k-th or more, unless the index returned equal ones in place of nearer ones.
    num_found = (similarities >= exact[:, -1:] - ROUNDING).sum(dim=1)
    return num_found / exact.shape[1]
