"""Queries that more rows are equally near to than candidates were taken, up to all rows (a collapsed encoder)."""

import torch
from torch import Tensor

from reptk.neighbors import order
from reptk.neighbors.pairs import pair_similarities

SCORES = 1 << 22
"""Similarities in float64 at a time."""


def scan(bank: Tensor, queries: Tensor, own: Tensor, known: Tensor) -> Tensor:
    """The nearest rows by a pass over the whole bank in float64, in row order, so that of equal rows the first are kept.

    Args:
        bank: (n, F).
        queries: (b, F).
        own: (b,) a row that is not to be found, or -1.
        known: (b, k) keys of rows, which may not be the nearest: at least k rows are as near as the last of them.

    Returns:
        (b, k) keys of the nearest rows, greatest first.
    """
    asked = queries.float().double()
    least = order.similarities(known[:, -1:])
    best = torch.full_like(known, order.NONE)
    error = 2.02 * bank.shape[1] * 2.0**-53 * torch.linalg.vector_norm(asked, dim=1, keepdim=True)
    # The first chunk is short: until k rows are known, every one of its rows is a candidate.
    first, size = 0, known.shape[1] + 1
    while first < len(bank):
        rows = bank[first : first + size].to(asked.device).float().double()
        upper = asked @ rows.T + error * torch.linalg.vector_norm(rows, dim=1)
        # Later rows have to be nearer than the k-th that is known; rounded, as similarities are compared.
        wanted = (upper.float() >= least) & (upper.float() > order.similarities(best[:, -1:]))
        wanted &= torch.arange(first, first + len(rows), device=own.device) != own[:, None]
        best = _merged(best, bank, queries, wanted, first)
        first += len(rows)
        size = max(known.shape[1] + 1, min(2 * size, SCORES // len(queries)))
    return best


def _merged(best: Tensor, bank: Tensor, queries: Tensor, wanted: Tensor, first: int) -> Tensor:
    """`best` with the wanted rows (b, c), numbered from `first`, among them."""
    numbers, columns = wanted.nonzero(as_tuple=True)
    if not len(numbers):
        return best
    counts = wanted.sum(1)
    places = torch.arange(len(numbers), device=numbers.device) - (counts.cumsum(0) - counts)[numbers]
    rows = columns + first
    made = torch.full((len(best), int(counts.max())), order.NONE, device=best.device)
    made[numbers, places] = order.keys(pair_similarities(bank, queries, numbers, rows), rows)
    return order.nearest(torch.cat([best, made], 1), best.shape[1])
