"""The order of neighbors: by similarity in float64, rounded to float32; equal similarities by row number.

BLAS sums products in an order that depends on the shape of the matrices, so copies of a row can differ in the last bits. Here
the products of a pair, which float64 holds exactly, are summed by halves (`neighbor_kernels.pair_similarities`) and rounded to
float32. By IEEE arithmetic this gives the same bits for every engine, block size, number of ranks, processor and GPU.
"""

import numpy as np
import torch
from torch import Tensor

from reptk.core.numba_jit import load_kernels
from reptk.core.threads import parallel_for

GATHER_BYTES = 4 << 20
"""Rows of a bank that is not float32 are gathered and converted GATHER_BYTES at a time, to stay in the cache."""

TORCH_VALUES = 1 << 24
"""Values gathered at a time where torch computes the products."""

NO_NEIGHBOR = torch.iinfo(torch.int64).min
"""Key that sorts after all others."""

_LAST_ROW = (1 << 32) - 1


def pack(similarities: Tensor, rows: Tensor) -> Tensor:
    """Keys in int64 that sort by similarity (float32), then by row (below 2^32), the lowest row being the greatest."""
    return (_sortable(similarities.view(torch.int32)).long() << 32) | (_LAST_ROW - rows)


def unpack(keys: Tensor) -> tuple[Tensor, Tensor]:
    """Similarities (float32) and rows (int64); minus infinity and -1 for `NO_NEIGHBOR`."""
    is_absent = keys == NO_NEIGHBOR
    similarities = _sortable((keys >> 32).int()).view(torch.float32)
    rows = _LAST_ROW - (keys & _LAST_ROW)
    return similarities.masked_fill(is_absent, -torch.inf), rows.masked_fill(is_absent, -1)


def _sortable(bits: Tensor) -> Tensor:
    """Bits of float32 as integers that sort like the numbers; its own inverse."""
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


def greatest(keys: Tensor, k: int) -> Tensor:
    """The k greatest keys of each line (q, c), greatest first; all of them if there are fewer."""
    k = min(k, keys.shape[1])
    if keys.device.type != "cpu":
        return keys.topk(k, dim=1).values
    # NumPy sorts and partitions integers several times as fast as torch.
    array = keys.numpy()
    if 2 * k < array.shape[1]:
        array = np.partition(array, array.shape[1] - k, axis=1)[:, -k:]
    return torch.from_numpy(np.sort(array, axis=1)[:, : -k - 1 : -1].copy())


def rerank(bank: Tensor, queries: Tensor, rows: Tensor, k: int, exclude: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return the best k of candidate rows (q, c), -1 being none, as exact search would rank them.

    Args:
        bank: (n, F), floating point of any precision; may be memory-mapped.
        queries: (q, F).
        rows: (q, c) row numbers of the bank.
        k: neighbors.
        exclude: (q,) the row that is the query itself, or -1.

    Returns:
        similarities (q, k) float32 and rows (q, k); -inf and -1 where a query has fewer candidates.
    """
    keys = pack(candidate_similarities(bank, queries, rows), rows)
    is_absent = rows < 0
    if exclude is not None:
        is_absent |= rows == exclude[:, None]
    return unpack(greatest(keys.masked_fill_(is_absent, NO_NEIGHBOR), k))


def candidate_similarities(bank: Tensor, queries: Tensor, rows: Tensor) -> Tensor:
    """Similarities (q, c) of queries (q, F) with candidate rows (q, c) of the bank; -inf where the row is -1."""
    query_rows, columns = (rows >= 0).nonzero(as_tuple=True)
    similarities = torch.full(rows.shape, -torch.inf, dtype=torch.float32, device=queries.device)
    similarities[query_rows, columns] = pair_similarities(bank, queries, rows[query_rows, columns], query_rows)
    return similarities


def pair_similarities(bank: Tensor, queries: Tensor, bank_rows: Tensor, query_rows: Tensor) -> Tensor:
    """Inner products (P,) of bank[bank_rows] with queries[query_rows], on the queries' device.

    Raises:
        IndexError: a row of the bank that does not exist.
    """
    bank, queries = bank.detach(), queries.detach().float()
    is_on_cpu = queries.device.type == bank.device.type == "cpu"
    if not is_on_cpu or load_kernels("reptk.neighbors.neighbor_kernels") is None:
        return _by_torch(bank, queries, bank_rows, query_rows)
    # In the order of the bank's rows each is read once, which matters most for a file.
    bank_rows, order = bank_rows.sort()
    # Compiled loops check no bounds.
    if len(bank_rows) and not 0 <= bank_rows[0] <= bank_rows[-1] < len(bank):
        raise IndexError(f"rows {int(bank_rows[0])} to {int(bank_rows[-1])} of a bank of {len(bank)}")
    sorted_similarities = _by_numba(bank, queries.contiguous(), bank_rows, query_rows[order])
    return torch.empty_like(sorted_similarities).scatter_(0, order, sorted_similarities)


def _by_numba(bank: Tensor, queries: Tensor, bank_rows: Tensor, query_rows: Tensor) -> Tensor:
    """`pair_similarities` of pairs sorted by row of the bank."""
    if bank.dtype == torch.float32 and bank.is_contiguous():
        kernels = load_kernels("reptk.neighbors.neighbor_kernels")
        similarities = torch.empty(len(bank_rows))
        arrays = [tensor.numpy() for tensor in (bank, queries, bank_rows, query_rows, similarities)]
        parallel_for(lambda *bounds: kernels.pair_similarities(*arrays, *bounds), len(bank_rows))
        return similarities
    parts = []
    chunk_pairs = max(1, GATHER_BYTES // (4 * bank.shape[1]))
    for rows, query_part in zip(bank_rows.split(chunk_pairs), query_rows.split(chunk_pairs), strict=True):
        distinct, positions = rows.unique_consecutive(return_inverse=True)
        gathered = bank[distinct].float().contiguous()
        parts.append(_by_numba(gathered, queries, positions, query_part))
    return torch.cat(parts)


def _by_torch(bank: Tensor, queries: Tensor, bank_rows: Tensor, query_rows: Tensor) -> Tensor:
    """`pair_similarities` by elementwise operations, which round alike on every device."""
    similarities = torch.empty(len(bank_rows), dtype=torch.float32, device=queries.device)
    chunk_pairs = max(1, TORCH_VALUES // bank.shape[1])
    for first in range(0, len(bank_rows), chunk_pairs):
        part = slice(first, first + chunk_pairs)
        sums = bank[bank_rows[part].to(bank.device)].to(queries.device).float().double()
        sums.mul_(queries[query_rows[part]].double())
        while sums.shape[1] > 1:
            half = (sums.shape[1] + 1) // 2
            partners = sums[:, half:]
            # In an odd width the value in the middle has no partner.
            sums = torch.cat([sums[:, : partners.shape[1]] + partners, sums[:, partners.shape[1] : half]], dim=1)
        similarities[part] = sums[:, 0].float() + 0.0  # -0 becomes 0
    return similarities
