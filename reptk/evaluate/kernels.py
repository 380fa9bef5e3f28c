"""Counting votes, as machine code."""

import numpy as np

from reptk.machine_code import to_the_bit


@to_the_bit
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
        total, done = 0.0, 0
        for place in range(len(ks)):
            for neighbour in range(done, ks[place]):
                vote = votes[query, neighbour]
                weight[vote] += given[query, neighbour]
                count[vote] += 1
                total += given[query, neighbour]
            done = ks[place]
            heaviest, most, heavy, many = 0, 0, -1.0, -1.0
            for neighbour in range(done):
                vote = votes[query, neighbour]
                if vote == classes:
                    continue
                own = weight[vote]
                if own > heavy or (own == heavy and vote < heaviest):
                    heavy, heaviest = own, vote
                own = count[vote] + own / (total + 1)  # below one vote
                if own > many or (own == many and vote < most):
                    many, most = own, vote
            by_weight[place, query], by_count[place, query] = heaviest, most
        for neighbour in range(done):
            weight[votes[query, neighbour]], count[votes[query, neighbour]] = 0, 0
