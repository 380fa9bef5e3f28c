"""Exact search in a bank whose rows are spread over the ranks."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from reptk.core import distributed
from reptk.neighbors.engine import Engine, resolve_engine, search_device
from reptk.neighbors.exact import SearchableBank, block_size, nearest_keys
from reptk.neighbors.ranking import NO_NEIGHBOR, greatest, unpack
from reptk.neighbors.vectors import VectorStats, check_products, check_vectors, warn_of_zeros


def search_sharded(
    part: Tensor,
    queries: Tensor,
    k: int,
    exclude: Tensor | None = None,
    *,
    engine: Engine = "auto",
    progress: Callable[[int], None] | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield what `search` finds for this rank's queries in the rows of all ranks, bit for bit, however rows are spread.

    All ranks must call this and iterate to the end. For every block, the queries of all ranks are gathered, each rank
    searches its own rows, and the candidates are gathered, 8 bytes each.

    Args:
        part: (n_rank, F) this rank's rows. They are numbered on from the last row of the rank before.
        queries: (q_rank, F) this rank's queries; there may be none.
        k: neighbors.
        exclude: (q_rank,) the row, numbered over all ranks, that is the query itself and is left out; -1 for none.
        engine: as for `search`; the same on all ranks.
        progress: called after every block with how many further queries of this rank are done.

    Yields:
        similarities (b, k) float32 and rows (b, k), numbered over all ranks, on the CPU, block after block of queries.

    Raises:
        ValueError: as `search`; on every rank, even if only one has invalid rows.
    """
    device = search_device(resolve_engine(engine))
    if exclude is None:
        exclude = torch.full((len(queries),), -1)
    exclude = exclude.cpu()
    ranks = _check_all_ranks(part, queries, k, exclude, device)
    rank = distributed.rank()
    first_row = sum(ranks.row_counts[:rank])
    bank = None
    if len(part):
        bank = SearchableBank.prepare(part, ranks.max_norm, engine)
    size = block_size(k, len(ranks.row_counts))
    for first in range(0, max(ranks.query_counts), size):
        counts = [min(size, max(0, count - first)) for count in ranks.query_counts]
        block = distributed.all_gather_uneven(queries[first : first + size].float().to(device), counts)
        block_exclude = distributed.all_gather_uneven(exclude[first : first + size].to(device), counts)
        keys = _search_part(bank, block, block_exclude, k, first_row)
        # (ranks, queries of all ranks, k), of which this rank ranks those of its own queries.
        first_query = sum(counts[:rank])
        candidates = distributed.all_gather(keys[None])[:, first_query : first_query + counts[rank]]
        if candidates.shape[1]:
            yield unpack(greatest(candidates.transpose(0, 1).flatten(1), k).cpu())
            if progress is not None:
                progress(counts[rank])


def _search_part(bank: SearchableBank | None, queries: Tensor, exclude: Tensor, k: int, first_row: int) -> Tensor:
    """Keys (q, k) of this rank's nearest rows, numbered over all ranks; `NO_NEIGHBOR` where it has fewer."""
    keys = torch.full((len(queries), k), NO_NEIGHBOR, device=queries.device)
    if bank is None:
        return keys
    count = len(bank.rows)
    is_local = (exclude >= first_row) & (exclude < first_row + count)
    local_keys = nearest_keys(bank, queries, torch.where(is_local, exclude - first_row, -1), min(k, count))
    # A key's lower half falls as the row number rises.
    keys[:, : local_keys.shape[1]] = torch.where(local_keys == NO_NEIGHBOR, NO_NEIGHBOR, local_keys - first_row)
    return keys


class _Ranks(NamedTuple):
    """Rows and queries of every rank, and the largest norm of a row of all."""

    row_counts: list[int]
    query_counts: list[int]
    max_norm: float


def _check_all_ranks(part: Tensor, queries: Tensor, k: int, exclude: Tensor, device: torch.device) -> _Ranks:
    """Exchange what the ranks must agree on, and raise ValueError on all of them if one has to."""
    bank_stats = query_stats = VectorStats(0.0, 0, [])
    problem = None
    try:
        bank_stats, query_stats = check_vectors("bank", part), check_vectors("queries", queries)
        if exclude.shape != (len(queries),):
            raise ValueError(f"exclude must hold {len(queries)} row numbers (or -1), got {tuple(exclude.shape)}")
        if part.shape[1] != queries.shape[1]:
            raise ValueError(f"bank rows have {part.shape[1]} values, query rows {queries.shape[1]}")
    except ValueError as error:
        # Raised below: the other ranks wait for this one in the collective.
        problem = error
    last_excluded = -1
    if len(exclude):
        last_excluded = int(exclude.max())
    counts = [problem is None, len(part), len(queries), part.shape[-1], k, last_excluded]
    facts = torch.tensor([[*counts, bank_stats.max_norm, query_stats.max_norm]], dtype=torch.float64, device=device)
    columns = distributed.all_gather(facts).T.tolist()
    bank_norms, query_norms = columns[6:]
    # float64 holds these integers exactly.
    integers = [list(map(int, column)) for column in columns[:6]]
    is_valid, row_counts, query_counts, widths, ks, excluded = integers
    if problem is not None:
        raise problem
    if not all(is_valid):
        raise ValueError(f"rank {is_valid.index(0)} has rows that cannot be searched; its own message says why")
    if len(set(widths)) > 1 or len(set(ks)) > 1:
        raise ValueError(f"ranks differ: widths {widths}, k {ks}")
    available = sum(row_counts) - (max(excluded) >= 0)
    if not 1 <= k <= available:
        raise ValueError(f"k must be 1 to {available} (rows of all ranks, besides the query), got {k}")
    if max(excluded) >= sum(row_counts):
        raise ValueError(f"exclude must hold row numbers below {sum(row_counts)} (or -1), got {max(excluded)}")
    check_products(max(bank_norms), max(query_norms))
    warn_of_zeros("bank", len(part), bank_stats)
    warn_of_zeros("queries", len(queries), query_stats)
    return _Ranks(row_counts, query_counts, max(bank_norms))
