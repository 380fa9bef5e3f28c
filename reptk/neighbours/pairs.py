"""Inner products of listed pairs of rows, in float64 and in one order, so that equal rows are exactly equal.

BLAS sums float32 products in an order that depends on how the work was cut, so that two copies of a row can differ in the
last bits, and one row from one search to the next. Here a pair's products, which float64 holds exactly, are summed in an
order that depends on the width alone, then rounded to float32: the same bits for every engine, block size and number of
ranks. Another kind of processor may sum in another order, which one in some 250,000 of the rounded values shows.
"""

import warnings
from itertools import pairwise

import torch
from torch import Tensor

CHUNK_BYTES = 4 << 20
"""Rows of the bank in float64 at a time, few enough for caches."""

BLOCK_VALUES = 1 << 24
"""Values of gathered rows at a time on a GPU."""


def similarities_of(bank: Tensor, queries: Tensor, rows: Tensor) -> Tensor:
    """Inner products of queries with rows of the bank.

    Args:
        bank: (n, F), any precision, may be memory-mapped.
        queries: (q, F).
        rows: (q, k) numbers of rows.

    Returns:
        (q, k) float32, on the queries' device.
    """
    numbers = torch.arange(len(queries), device=rows.device)[:, None].expand_as(rows)
    return pair_similarities(bank, queries, numbers.reshape(-1), rows.reshape(-1)).view(rows.shape)


def pair_similarities(bank: Tensor, queries: Tensor, numbers: Tensor, rows: Tensor) -> Tensor:
    """(P,) float32 inner products of queries[numbers] (P,) with bank[rows] (P,), on the queries' device."""
    if queries.device.type == "cpu":
        return _sampled(bank, queries, numbers, rows)
    return _gathered(bank, queries, numbers, rows)


def _sampled(bank: Tensor, queries: Tensor, numbers: Tensor, rows: Tensor) -> Tensor:
    """Chunk by chunk of the bank, whose rows are converted once for all queries that want them."""
    order = rows.argsort()
    numbers, rows = numbers[order], rows[order]
    wanted, firsts = _runs(rows, len(bank))
    made = torch.empty(len(rows), dtype=torch.float64)
    size = max(1, CHUNK_BYTES // (8 * bank.shape[1]))
    asked = queries.float().double()
    room = torch.empty(size, bank.shape[1], dtype=torch.float64)
    ends = firsts[::size].tolist()
    if (len(firsts) - 1) % size:
        ends.append(len(rows))
    for part, (low, high) in enumerate(pairwise(ends)):
        first = part * size
        count = min(size, len(firsts) - 1 - first)
        if wanted is None:
            room[:count].copy_(bank[first : first + count].float())
        else:
            room[:count].copy_(bank[wanted[first : first + count].to(bank.device)].float())
        pattern = (firsts[first : first + count + 1] - low, numbers[low:high])
        made[low:high] = _products(room[:count], asked, *pattern)
    placed = torch.empty(len(rows))
    placed[order] = made.float() + 0.0  # -0 becomes 0
    return placed


def _runs(rows: Tensor, count: int) -> tuple[Tensor | None, Tensor]:
    """Of sorted row numbers: the distinct ones, and where each one's run begins and the last one ends.

    None and the runs of all `count` rows, empty ones too, where most rows are wanted: then chunks need not be gathered.
    """
    if 2 * len(rows) >= count:
        return None, torch.searchsorted(rows, torch.arange(count + 1))
    wanted, lengths = rows.unique_consecutive(return_counts=True)
    return wanted, torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])


def _products(rows: Tensor, queries: Tensor, firsts: Tensor, numbers: Tensor) -> Tensor:
    """Of row i with the queries numbers[firsts[i]:firsts[i + 1]], float64; each summed in an order of its own width."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that sparse tensors are in beta, and unchecked
        pattern = torch.sparse_csr_tensor(
            firsts, numbers, torch.zeros(len(numbers), dtype=torch.float64), (len(rows), len(queries))
        )
        return torch.sparse.sampled_addmm(pattern, rows, queries.T, beta=0.0).values()


def _gathered(bank: Tensor, queries: Tensor, numbers: Tensor, rows: Tensor) -> Tensor:
    """Block by block of pairs; halves are added until one value is left, which no device does in another order."""
    made = torch.empty(len(rows), device=queries.device)
    size = max(1, BLOCK_VALUES // bank.shape[1])
    for first in range(0, len(rows), size):
        block = slice(first, first + size)
        left = bank[rows[block].to(bank.device)].to(queries.device).float().double()
        made[block] = _tree_sum(left.mul_(queries[numbers[block]].float().double())).float() + 0.0
    return made


def _tree_sum(values: Tensor) -> Tensor:
    """(P, F) -> (P,), by elementwise additions alone."""
    while values.shape[1] > 1:
        half = (values.shape[1] + 1) // 2
        rest = values[:, half:]
        values = torch.cat([values[:, : rest.shape[1]] + rest, values[:, rest.shape[1] : half]], dim=1)
    return values[:, 0]
