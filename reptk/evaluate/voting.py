"""The vote of a query's neighbors on its class: weighted, and by majority."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from reptk.core.numba_jit import load_kernels
from reptk.core.threads import parallel_for


class Vote(NamedTuple):
    """The outcome for b queries."""

    weighted: Tensor
    """(b,) the class with the most weight."""

    weight: Tensor
    """(b,) float64, the weight of that class."""

    majority: Tensor
    """(b,) the class with the most votes."""


WEIGHTING = "exp(similarity / temperature)"
"""What `vote_weights` computes, for the description of results."""


def vote_weights(similarities: Tensor, temperature: float) -> Tensor:
    """Return exp(similarity / temperature) of (b, k) neighbors in float64, relative to the nearest one's.

    A missing neighbor (similarity -inf) has weight 0, also if all are missing.
    """
    relative = similarities - similarities[:, :1]
    # Relative to the nearest: exp(similarity / 0.001) itself would overflow. NaN is -inf minus -inf, all are missing.
    return (relative / temperature).double().exp().nan_to_num_(nan=0.0)


def predict(neighbor_labels: Tensor, weights: Tensor, ks: Sequence[int], num_classes: int) -> list[Vote]:
    """Let the first k neighbors vote, for every k.

    Equal numbers of votes are decided by weight; of equal classes the first one wins.

    Args:
        neighbor_labels: (b, depth) classes of the neighbors, nearest first; `num_classes` for a neighbor that does not vote.
        weights: (b, depth) float64, at least 0 (the compiled loop relies on sums that only rise); 0 for a missing neighbor.
        ks: rising numbers of neighbors, at most `depth`.
        num_classes: C.

    Returns:
        One vote for each k. Compiled loops and torch operations count alike, but for queries none of whose neighbors vote.
    """
    kernels = load_kernels("reptk.evaluate.vote_kernels")
    if kernels is None:
        return _predict_torch(neighbor_labels, weights, ks, num_classes)
    shape = (len(ks), len(neighbor_labels))
    weighted, majority = np.empty(shape, np.int64), np.empty(shape, np.int64)
    weight = np.empty(shape, np.float64)
    inputs = (neighbor_labels.numpy(), weights.contiguous().numpy(), np.array(ks), num_classes)

    # Every thread writes to the queries of its own range alone.
    def count_range(first: int, last: int) -> None:
        kernels.count_votes(*inputs, weighted, weight, majority, first, last)

    parallel_for(count_range, len(neighbor_labels))
    votes = []
    for i in range(len(ks)):
        vote = Vote(torch.from_numpy(weighted[i]), torch.from_numpy(weight[i]), torch.from_numpy(majority[i]))
        votes.append(vote)
    return votes


def _predict_torch(neighbor_labels: Tensor, weights: Tensor, ks: Sequence[int], num_classes: int) -> list[Vote]:
    """`predict` with a (b, C + 1) table of weights and one of counts, whose last column is never elected."""
    table = torch.zeros(len(weights), num_classes + 1, dtype=torch.float64)
    counts = torch.zeros_like(table)
    votes = []
    # The first k neighbors include those of the smaller k, which are in the tables already.
    counted = 0
    for k in ks:
        new_labels, new_weights = neighbor_labels[:, counted:k], weights[:, counted:k]
        table.scatter_add_(1, new_labels, new_weights)
        counts.scatter_add_(1, new_labels, torch.ones_like(new_weights))
        # Weights scaled to stay below one vote decide between equal numbers of votes.
        scores = counts + table / (table.sum(1, keepdim=True) + 1)
        weight, weighted = table[:, :num_classes].max(1)
        votes.append(Vote(weighted, weight, scores[:, :num_classes].argmax(1)))
        counted = k
    return votes
