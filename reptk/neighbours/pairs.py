"""Inner products of listed pairs of rows, in float64 and in one order, so that equal rows are exactly equal.

BLAS sums float32 products in an order that depends on how the work was cut, so that two copies of a row can differ in the
last bits, and one row from one search to the next. Here a pair's products, which float64 holds exactly, are summed in an
order that depends on the width alone, then rounded to float32: the same bits for every engine, block size and number of
ranks. Another kind of processor may sum in another order, which one in some 250,000 of the rounded values shows.
"""

import warnings

import numpy as np
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
    # NumPy sorts integers several times as fast as torch; the place in the list travels in the lower half.
    sorted_rows = np.sort(rows.numpy() << 32 | np.arange(len(rows)))
    places = sorted_rows & 0xFFFFFFFF
    sorted_rows >>= 32
    wanted, firsts = _runs(sorted_rows, len(bank))
    numbers = torch.from_numpy(numbers.numpy().astype(np.int32)[places])
    size = max(1, CHUNK_BYTES // (8 * bank.shape[1]))
    room = torch.empty(min(size, len(firsts) - 1), bank.shape[1], dtype=torch.float64)
    asked = queries.float().double()
    made = np.empty(len(rows))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that sparse tensors are in beta, and unchecked
        for first in range(0, len(firsts) - 1, size):
            ends = firsts[first : first + size + 1]
            count, low, high = len(ends) - 1, int(ends[0]), int(ends[-1])
            part = bank[first : first + count] if wanted is None else bank[wanted[first : first + count]]
            room[:count].copy_(part if part.dtype == torch.float32 else part.float())
            made[low:high] = _products(room[:count], asked, ends - low, numbers[low:high]).numpy()
    placed = np.empty(len(rows), dtype=np.float32)
    placed[places] = made
    return torch.from_numpy(placed).add_(0.0)  # -0 becomes 0


def _runs(rows: np.ndarray, count: int) -> tuple[Tensor | None, Tensor]:
    """Of sorted row numbers: the distinct ones, and int32 where each one's run begins and the last one ends.

    None and the runs of all `count` rows, empty ones too, where most rows are wanted: then chunks need not be gathered.
    """
    if 2 * len(rows) >= count:
        ends = np.bincount(rows, minlength=count).cumsum()
        return None, torch.from_numpy(np.concatenate([[0], ends]).astype(np.int32))
    firsts = np.flatnonzero(np.diff(rows, prepend=-1))
    return torch.from_numpy(rows[firsts]), torch.from_numpy(np.append(firsts, len(rows)).astype(np.int32))


def _products(rows: Tensor, queries: Tensor, firsts: Tensor, numbers: Tensor) -> Tensor:
    """Of row i with the queries numbers[firsts[i]:firsts[i + 1]], float64; each summed in an order of its own width."""
    values = torch.zeros(len(numbers), dtype=torch.float64)
    pattern = torch.sparse_csr_tensor(firsts, numbers, values, (len(rows), len(queries)))
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
