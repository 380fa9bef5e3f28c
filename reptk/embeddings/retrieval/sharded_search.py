"""Search by several processes, e.g. of torchrun: each compares its share of the images, and the best of all are merged."""

import torch
from torch import Tensor

from reptk.core import distributed
from reptk.embeddings.files.part_vectors import rows_between
from reptk.embeddings.retrieval.similarity_index import Index
from reptk.neighbors import ApproximateIndex, rerank, search_sharded


def search_over_ranks(index: Index, queries: Tensor, k: int, exclude: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return what `Index.search` finds, on every rank; a single process calls just that.

    In exact search each rank reads its share of the vectors. Of an index of inverted lists each rank searches its share of the
    lists. Of another index, e.g. a graph, which cannot be divided, each rank searches with its share of the queries.

    Args:
        index: the same on all ranks, whose files may be shared or copies.
        queries: (q, F), the same on all ranks.
        k: neighbors.
        exclude: (q,) the row of each query itself, -1 for a query that is no row.

    Returns:
        similarities (q, k) and rows (q, k), numbered in the whole index.

    Raises:
        DataError, UsageError: as `Index.search`.
    """
    if distributed.world_size() == 1:
        return index.search(queries, k, exclude)
    index.check_queries(queries, k, exclude)
    # Each rank ranks the neighbors of its share of the queries.
    part = _share(len(queries))
    if exclude is None:
        exclude = torch.full((len(queries),), -1)
    if index.approximate is None:
        return _gathered(*_exact(index, queries[part], k, exclude[part]))
    candidates = _candidates(index.approximate, queries, index.num_candidates(k))
    if candidates is None:
        if part.start == part.stop:
            return _gathered(torch.empty(0, k), torch.empty(0, k, dtype=torch.int64))
        return _gathered(*index.search(queries[part], k, exclude[part]))
    index.check_candidates(candidates)
    return _gathered(*rerank(index.embeddings.vectors, queries[part], candidates[part], k, exclude[part]))


def _exact(index: Index, queries: Tensor, k: int, exclude: Tensor) -> tuple[Tensor, Tensor]:
    """Return the neighbors of this rank's queries in the rows of all ranks."""
    bank = index.embeddings.vectors
    similarities = [torch.empty(0, k)]
    rows = [torch.empty(0, k, dtype=torch.int64)]
    share = _share(len(bank))
    # A rank's share may be larger than its memory.
    rank_rows = rows_between(bank, share.start, share.stop)
    for block_similarities, block_rows in search_sharded(rank_rows, queries, k, exclude):
        similarities.append(block_similarities)
        rows.append(block_rows)
    return torch.cat(similarities), torch.cat(rows)


def _candidates(approximate: ApproximateIndex, queries: Tensor, count: int) -> Tensor | None:
    """Return the candidates (q, count) of all queries, searched by all ranks; None if the index cannot be divided."""
    of_shard = approximate.search_shard(queries, count, distributed.rank(), distributed.world_size())
    if of_shard is None:
        return None
    # (ranks, q, count) -> (q, ranks * count)
    similarities, rows = [distributed.all_gather(part[None]).transpose(0, 1).flatten(1) for part in of_shard]
    return approximate.merge_shards(queries, similarities, rows, count)


def _share(count: int) -> slice:
    """Return which of `count` items are this rank's."""
    rank, world_size = distributed.rank(), distributed.world_size()
    return slice(count * rank // world_size, count * (rank + 1) // world_size)


def _gathered(similarities: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return the results of the queries of all ranks, in order."""
    return distributed.all_gather_uneven(similarities), distributed.all_gather_uneven(rows)
