"""Counting votes, as machine code."""

import numpy as np

from reptk.core.numba_jit import njit_exact


@njit_exact
def winners(votes, given, ks, classes, by_weight, by_count, first, last):
    """Which class wins among the first k neighbours of each query, `first` to `last`: by weight, and by number of votes.

    Equal numbers are decided by weight; of equals the first class wins.

    Args:
        votes: (b, depth) each neighbour's class; `classes` for none.
        given: (b, depth) float64 weights.
        ks: rising numbers of neighbours.
        by_weight, by_count: (len(ks), b) classes, to be filled.
    """
    weight, count = np.zeros(classes + 1), np.zeros(classes + 1)
    for query in range(first, last):
        heaviest, most, done = 0, 0, 0
        for place in range(len(ks)):
            for neighbour in range(done, ks[place]):
                vote = votes[query, neighbour]
                weight[vote] += given[query, neighbour]
                count[vote] += 1
                if vote < classes:  # sums only rise, so nobody else can have taken the lead
                    if _is_ahead(weight[vote], 0, vote, weight[heaviest], 0, heaviest):
                        heaviest = vote
                    if _is_ahead(count[vote], weight[vote], vote, count[most], weight[most], most):
                        most = vote
            done = ks[place]
            by_weight[place, query], by_count[place, query] = heaviest, most
        for neighbour in range(done):
            weight[votes[query, neighbour]], count[votes[query, neighbour]] = 0, 0


@njit_exact
def _is_ahead(score, second, number, other_score, other_second, other):
    if score != other_score:
        return score > other_score
    return second > other_second if second != other_second else number < other
