"""Rows that share an id: their groups, how many positives a row has, and its mean similarity to them.

The means come from class sums and cost O(N D), however many pairs there are. With S the sum of the rows of i's id, keys
included,

    mean_i = z_i . (S - z_i) / number of i's positives
"""

from collections.abc import Iterator

import torch
from torch import Tensor

CHUNK_ROWS = 4096
"""Rows whose class sums are gathered at once: all of them would be a second and a third N x D."""


class Groups:
    """Which rows share an id.

    Args:
        ids: (N + K,) integers, those of the keys last.
        num_rows: N.

    Attributes:
        group: (N + K,) one number for each id, in the order of the ids: how many rows have a smaller id.
        num_positives: (N,) how many other rows share the row's id, keys included.
    """

    def __init__(self, ids: Tensor, num_rows: int) -> None:
        ids = ids.long().contiguous()
        # Sorted and searched, not `unique`: the number of ids is then never read, which would wait for a GPU.
        sorted_ids = ids.sort().values
        self.group = torch.searchsorted(sorted_ids, ids)
        # right=True: the place behind the last row of the id.
        group_end = torch.searchsorted(sorted_ids, ids[:num_rows], right=True)
        self.num_positives = group_end - self.group[:num_rows] - 1


def class_sums(unit: Tensor, keys: Tensor, group: Tensor) -> Tensor:
    """Return (N + K, D): in row g the sum of the rows and keys of group g, zeros where no group has that number."""
    num_rows = unit.shape[0]
    # As many rows as there can be groups: the shape must not depend on the ids.
    sums = unit.new_zeros(group.shape[0], unit.shape[1])
    sums.index_add_(0, group[:num_rows], unit)
    if keys.shape[0]:
        sums.index_add_(0, group[num_rows:], keys)
    return sums


def mean_over_positives(unit: Tensor, sums: Tensor, group: Tensor, num_positives: Tensor) -> Tensor:
    """Return the (N,) mean similarity of each row to its positives; 0 for a row without any.

    Args:
        unit: (N, D) unit rows.
        sums: (N + K, D) their class sums.
        group: (N + K,) group of every row.
        num_positives: (N,).
    """
    total = torch.empty_like(num_positives, dtype=unit.dtype)
    for chunk in _chunks(0, unit.shape[0]):
        # The sum of the class without the row itself.
        sum_of_positives = sums.index_select(0, group[chunk]).sub_(unit[chunk])
        torch.sum(sum_of_positives.mul_(unit[chunk]), 1, out=total[chunk])
    return total.mul_(_reciprocal_or_zero(num_positives, unit.dtype))


def add_gradient_of_means(
    grad: Tensor, grad_means: Tensor, unit: Tensor, sums: Tensor, group: Tensor, num_positives: Tensor, first: int
) -> None:
    """Add the gradient of the means with respect to the unit rows first .. first + len(grad) - 1 to `grad`.

    A row has two roles: an anchor with a mean of its own, and a positive of the anchors of its id.

    Args:
        grad: (n, D), changed in place.
        grad_means: (N,) gradient of the loss with respect to every row's mean.
        unit, sums, group, num_positives: as in `mean_over_positives`.
        first: number of the row that `grad` starts with.
    """
    weight = (grad_means * _reciprocal_or_zero(num_positives, unit.dtype))[:, None]
    weighted_sums = torch.zeros_like(sums)
    for chunk in _chunks(0, unit.shape[0]):
        weighted_sums.index_add_(0, group[chunk], unit[chunk] * weight[chunk])
    for chunk in _chunks(first, first + grad.shape[0]):
        # A row's own product is in both sums and has to leave both: hence twice.
        as_anchor = sums.index_select(0, group[chunk]).sub_(unit[chunk], alpha=2)
        as_positive = weighted_sums.index_select(0, group[chunk])
        grad_chunk = grad[chunk.start - first : chunk.stop - first]
        grad_chunk.add_(as_positive).addcmul_(as_anchor, weight[chunk])


def _reciprocal_or_zero(counts: Tensor, dtype: torch.dtype) -> Tensor:
    return counts.to(dtype).reciprocal_().masked_fill_(counts == 0, 0.0)


def _chunks(start: int, stop: int) -> Iterator[slice]:
    for chunk_start in range(start, stop, CHUNK_ROWS):
        yield slice(chunk_start, min(chunk_start + CHUNK_ROWS, stop))
