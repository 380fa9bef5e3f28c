"""Inner products of listed pairs of rows, in float64 and in one order, so that equal rows are exactly equal.

BLAS sums float32 products in an order that depends on how the work was cut, so that two copies of a row can differ in the
last bits, and one row from one search to the next. Here a pair's products, which float64 holds exactly, are added up by
halves: the second half onto the first, until one value is left, which is rounded to float32. By IEEE arithmetic that makes the
same bits for every engine, block size and number of ranks, on any processor or GPU.
"""

from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from reptk.core.numba_jit import load_kernels
from reptk.core.threads import parallel_for

CHUNK_BYTES = 4 << 20
"""Rows of a bank in another precision that are converted at a time, few enough for caches."""

BLOCK_VALUES = 1 << 24
"""Values of gathered rows at a time, where torch does the work."""


def similarities_of(bank: Tensor, queries: Tensor, rows: Tensor) -> Tensor:
    """Inner products of queries with rows of the bank.

    Args:
        bank: (n, F), any precision, may be memory-mapped.
        queries: (q, F).
        rows: (q, k) numbers of rows; -1 for none.

    Returns:
        (q, k) float32, on the queries' device; minus infinity for none.
    """
    absent = rows < 0
    if absent.any():
        numbers, places = (~absent).nonzero(as_tuple=True)
        made = torch.full(rows.shape, -torch.inf, dtype=torch.float32, device=queries.device)
        made[numbers, places] = pair_similarities(bank, queries, numbers, rows[numbers, places])
        return made
    numbers = torch.arange(len(queries), device=rows.device)[:, None].expand(rows.shape).reshape(-1)
    return pair_similarities(bank, queries, numbers, rows.reshape(-1)).view(rows.shape)


def pair_similarities(bank: Tensor, queries: Tensor, numbers: Tensor, rows: Tensor) -> Tensor:
    """(P,) float32 inner products of queries[numbers] (P,) with bank[rows] (P,), on the queries' device."""
    native = load_kernels("reptk.neighbors.kernels") if queries.device.type == bank.device.type == "cpu" else None
    if native is None:
        return _gathered(bank, queries, numbers, rows)
    return _in_order(native, bank, queries, numbers, rows)


def _in_order(native: ModuleType, bank: Tensor, queries: Tensor, numbers: Tensor, rows: Tensor) -> Tensor:
    """In the order of the bank's rows, so that each is read once for all queries that want it."""
    asked, made = queries.detach().float().contiguous().numpy(), torch.empty(len(rows), dtype=torch.float32)
    pairs = rows.numpy(), numbers.numpy()
    for which, count in zip(pairs, (len(bank), len(queries)), strict=True):  # machine code looks at no bounds
        if len(which) and not 0 <= which.min() <= which.max() < count:
            raise IndexError(f"rows {which.min()} to {which.max()} are asked of {count}")
    if bank.dtype == torch.float32 and bank.is_contiguous():
        read, order = bank.detach().numpy(), native.by_row(pairs[0], len(bank))
        parallel_for(lambda *ends: native.products(read, asked, *pairs, order, made.numpy(), *ends), len(rows))
        return made
    distinct, own = np.unique(pairs[0], return_inverse=True)
    order = native.by_row(own, len(distinct))
    ends = np.searchsorted(own[order], np.arange(len(distinct) + 1))
    size = max(1, CHUNK_BYTES // (4 * bank.shape[1]))
    for first in range(0, len(distinct), size):
        part = bank[torch.from_numpy(distinct[first : first + size])].detach().float().numpy()
        span = ends[first], ends[first + len(part)]
        native.products(part, asked, own - first, pairs[1], order, made.numpy(), *span)
    return made


def _gathered(bank: Tensor, queries: Tensor, numbers: Tensor, rows: Tensor) -> Tensor:
    """By torch, block by block of pairs."""
    made = torch.empty(len(rows), dtype=torch.float32, device=queries.device)
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
