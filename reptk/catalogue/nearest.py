"""Exact neighbours in a bank that may be larger than memory: a part of it at a time."""

import torch
from torch import Tensor

from reptk.neighbours import search

PART_BYTES = 1 << 28
"""How much of the bank, as float32, is searched at once."""

GATHER_BYTES = 1 << 26


def exact(bank: Tensor, queries: Tensor, k: int, exclude: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The k rows most similar to each query, best first, equal ones in the order of the bank.

    Args:
        bank: (n, F), may be mapped and of half precision.
        queries: (q, F).
        k: neighbours.
        exclude: (q,) the row of the bank that is the query itself, -1 for none.

    Returns:
        similarities and rows, (q, k).
    """
    wanted, part = min(k + (exclude is not None), len(bank)), max(1, PART_BYTES // (4 * bank.shape[1]))
    similarities = rows = None
    for first in range(0, len(bank), part):
        piece = bank[first : first + part]
        blocks = [*search(piece, queries.float(), min(wanted, len(piece)))]
        found = torch.cat([block[0] for block in blocks]), torch.cat([block[1] for block in blocks]) + first
        if similarities is not None:
            found = torch.cat([similarities, found[0]], 1), torch.cat([rows, found[1]], 1)
        similarities, order = found[0].sort(dim=1, descending=True, stable=True)
        similarities, rows = similarities[:, :wanted], found[1].gather(1, order)[:, :wanted]
    return (similarities[:, :k], rows[:, :k]) if exclude is None else without(exclude, similarities, rows, k)


def without(own: Tensor, similarities: Tensor, rows: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The first k neighbours that are not row `own` (q,)."""
    last = (rows == own[:, None]).long()  # 0 in its place, 1 for what is to go to the end
    order = last.argsort(dim=1, stable=True)[:, : min(k, rows.shape[1])]
    return similarities.gather(1, order), rows.gather(1, order)


def ranked(bank: Tensor, queries: Tensor, rows: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The best k of candidate rows (q, c) by the stored vectors; -1 where there are fewer."""
    step = max(1, GATHER_BYTES // (4 * rows.shape[1] * bank.shape[1]))
    made = [
        _ranked(bank, queries[one : one + step].float(), rows[one : one + step]) for one in range(0, len(rows), step)
    ]
    similarities, order = torch.cat([part[0] for part in made]), torch.cat([part[1] for part in made])
    return similarities[:, :k], order[:, :k]


def _ranked(bank: Tensor, queries: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    rows = rows.sort(dim=1).values  # so that equal ones keep the order of the bank
    vectors = bank[rows.clamp(min=0)].float()
    similarities = torch.einsum("qcf,qf->qc", vectors, queries).masked_fill(rows < 0, -torch.inf)
    similarities, order = similarities.sort(dim=1, descending=True, stable=True)
    return similarities, rows.gather(1, order)
