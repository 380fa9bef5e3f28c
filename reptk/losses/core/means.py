"""Mean similarity of every row to its positives, from class sums: O(N D), whatever the number of pairs.

With S the sum of a row's class, keys included, mean_i = z_i . (S - z_i) / positives_i.
"""

from collections.abc import Iterator

import torch
from torch import Tensor


def class_sums(unit: Tensor, keys: Tensor, group: Tensor) -> Tensor:
    """(N + K, D) sum of the rows and keys of every group, of which the first ones are filled."""
    sums = unit.new_zeros(group.shape[0], unit.shape[1]).index_add_(0, group[: unit.shape[0]], unit)
    return sums.index_add_(0, group[unit.shape[0] :], keys) if keys.shape[0] else sums


def mean_over_positives(unit: Tensor, sums: Tensor, group: Tensor, positives: Tensor) -> Tensor:
    """(N,) for unit (N, D) rows, their class sums, group (N + K,) and number of positives (N,); 0 without any."""
    total = torch.empty_like(positives, dtype=unit.dtype)
    # In pieces: gathering every row's class sum at once would be a second and third N x D.
    for i in _pieces(0, unit.shape[0]):
        torch.sum(sums.index_select(0, group[i]).sub_(unit[i]).mul_(unit[i]), 1, out=total[i])
    return total.mul_(_inverse(positives, unit.dtype))


def add_mean_gradient(
    made: Tensor, by_mean: Tensor, unit: Tensor, sums: Tensor, group: Tensor, positives: Tensor, first: int
) -> None:
    """Add to `made`, for rows first .. first + len(made) - 1: each is an anchor and a candidate of its class's anchors."""
    weight = (by_mean * _inverse(positives, unit.dtype))[:, None]
    anchors = torch.zeros_like(sums)
    for i in _pieces(0, unit.shape[0]):
        anchors.index_add_(0, group[i], unit[i] * weight[i])
    for i in _pieces(first, first + made.shape[0]):
        others = sums.index_select(0, group[i]).sub_(unit[i], alpha=2)
        part = made[i.start - first : i.stop - first]
        part.add_(anchors.index_select(0, group[i])).addcmul_(others, weight[i])


def _inverse(positives: Tensor, dtype: torch.dtype) -> Tensor:
    """1 / positives, 0 for 0."""
    return positives.to(dtype).reciprocal_().masked_fill_(positives == 0, 0.0)


def _pieces(start: int, stop: int, size: int = 4096) -> Iterator[slice]:
    return (slice(at, min(at + size, stop)) for at in range(start, stop, size))
