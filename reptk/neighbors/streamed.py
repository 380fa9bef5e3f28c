"""Exact search in a bank that is read block by block, e.g. from a database, with one block in memory at a time."""

from collections.abc import Iterable

import torch
from torch import Tensor

from reptk.neighbors.engine import Engine
from reptk.neighbors.exact import SearchableBank, nearest_keys
from reptk.neighbors.ranking import NO_NEIGHBOR, greatest, pack, unpack
from reptk.neighbors.vectors import check_products, check_vectors


def search_streamed(
    blocks: Iterable[tuple[Tensor, Tensor]],
    queries: Tensor,
    k: int,
    exclude: Tensor | None = None,
    *,
    engine: Engine = "auto",
) -> tuple[Tensor, Tensor]:
    """Return what `search` finds in all rows together, bit for bit, however they are cut into blocks.

    Args:
        blocks: the bank as pairs of row numbers (b,), from 0 and each once, and rows (b, F).
        queries: (q, F), all of which are in memory, with their k neighbors.
        k: neighbors.
        exclude: (q,) the number of the row that is the query itself and is left out; -1 for none.
        engine: as for `search`.

    Returns:
        similarities (q, k) float32 and row numbers (q, k) on the CPU; -inf and -1 where there are fewer rows.

    Raises:
        ValueError: as `search`.
    """
    query_stats = check_vectors("queries", queries)
    if exclude is None:
        exclude = torch.full((len(queries),), -1)
    best = torch.full((len(queries), k), NO_NEIGHBOR)
    for numbers, rows in blocks:
        # Of equally similar rows in a block the first ones are returned, which have to be those with the lowest numbers.
        if bool((numbers[1:] < numbers[:-1]).any()):
            numbers, order = numbers.sort()
            rows = rows[order]
        stats = check_vectors("bank", rows)
        if rows.shape[1] != queries.shape[1]:
            raise ValueError(f"bank rows have {rows.shape[1]} values, query rows {queries.shape[1]}")
        check_products(stats.max_norm, query_stats.max_norm)
        bank = SearchableBank.prepare(rows, stats.max_norm, engine)
        keys = nearest_keys(bank, queries, _positions(numbers, exclude), min(k, len(rows))).cpu()
        similarities, positions = unpack(keys)
        # Positions in the block become numbers of the bank's rows.
        numbered = pack(similarities, numbers[positions.clamp_min(0)])
        best = greatest(torch.cat([best, numbered.masked_fill_(positions < 0, NO_NEIGHBOR)], 1), k)
    return unpack(best)


def _positions(numbers: Tensor, exclude: Tensor) -> Tensor:
    """Return where the excluded rows (q,) are among the ascending numbers (b,) of a block; -1 for those elsewhere."""
    positions = torch.searchsorted(numbers, exclude).clamp_max(len(numbers) - 1)
    return torch.where(numbers[positions] == exclude, positions, -1)
