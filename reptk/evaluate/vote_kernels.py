"""Counting of votes, compiled with numba; see `voting.predict`."""

import numpy as np

from reptk.core.numba_jit import njit_exact


@njit_exact
def count_votes(neighbor_labels, weights, ks, num_classes, weighted, winning_weight, majority, first, last):
    """Elect the classes of queries `first` to `last` (exclusive).

    Args:
        neighbor_labels: (b, depth) classes; `num_classes` for a neighbor that does not vote.
        weights: (b, depth) float64.
        ks: rising numbers of neighbors.
        num_classes: C.
        weighted, winning_weight, majority: (len(ks), b) to be filled: the class with the most weight, that weight, and
            the class with the most votes.
    """
    # One entry more than classes, for neighbors that do not vote.
    weight, count = np.zeros(num_classes + 1), np.zeros(num_classes + 1)
    for query in range(first, last):
        heaviest, most, counted = 0, 0, 0
        for i in range(len(ks)):
            for neighbor in range(counted, ks[i]):
                label = neighbor_labels[query, neighbor]
                weight[label] += weights[query, neighbor]
                count[label] += 1
                # Sums only rise, so no class but this one can have taken the lead.
                if label < num_classes:
                    if _is_ahead(weight[label], 0, label, weight[heaviest], 0, heaviest):
                        heaviest = label
                    if _is_ahead(count[label], weight[label], label, count[most], weight[most], most):
                        most = label
            counted = ks[i]
            weighted[i, query], winning_weight[i, query] = heaviest, weight[heaviest]
            majority[i, query] = most
        # Cheaper than zeroing tables of all classes.
        for neighbor in range(counted):
            label = neighbor_labels[query, neighbor]
            weight[label], count[label] = 0, 0


@njit_exact
def _is_ahead(score, tie_break, label, other_score, other_tie_break, other_label):
    if score != other_score:
        return score > other_score
    if tie_break != other_tie_break:
        return tie_break > other_tie_break
    return label < other_label
