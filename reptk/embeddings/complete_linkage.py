"""Divide connected images into groups in which all are alike: complete linkage, in the order of the rows.

A chain of images connects ones that have nothing in common: of the frames of a zoom, each is like the next, and the first is
not like the last.
"""

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

BLOCK = 256
"""Rows whose similarities to all earlier ones are held in memory at a time."""


def complete_linkage(vectors: Tensor, limit: float) -> list[NDArray[np.int64]]:
    """Divide rows into groups in which every pair has a similarity of at least `limit`.

    Each row joins the group of the most similar earlier row, of those groups to all of whose rows it is similar enough; if
    there is none, it begins another group.

    Args:
        vectors: (n, D) of unit length.
        limit: cosine similarity.

    Returns:
        The rows of each group, ascending; groups in the order of their first rows, with those of a single row.
    """
    # As in the comparison of all pairs: half precision rounds the length.
    unit = normalize(vectors.float(), dim=1)
    count = len(unit)
    group_of = np.zeros(count, np.int64)
    num_groups = 0
    for top in range(0, count, BLOCK):
        end = min(top + BLOCK, count)
        similarities = (unit[top:end] @ unit[:end].T).numpy()
        for row in range(top, end):
            group_of[row] = _group_to_join(similarities[row - top, :row], group_of[:row], num_groups, limit)
            num_groups = max(num_groups, int(group_of[row]) + 1)
    return [np.flatnonzero(group_of == group) for group in range(num_groups)]


def _group_to_join(similarities: NDArray[np.float32], groups: NDArray[np.int64], num_groups: int, limit: float) -> int:
    """Return the group of a row by its similarities to earlier rows and the groups of those."""
    lowest = np.full(num_groups, np.inf, np.float32)
    np.minimum.at(lowest, groups, similarities)
    accepts = lowest >= limit
    if not accepts.any():
        return num_groups
    return int(groups[np.where(accepts[groups], similarities, -np.inf).argmax()])
