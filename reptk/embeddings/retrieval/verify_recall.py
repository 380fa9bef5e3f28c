"""verify_recall(): which share of the exact nearest neighbors an index or a database finds."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from reptk.core import rng
from reptk.core.errors import DataError, UsageError
from reptk.core.progress import progress
from reptk.embeddings.retrieval.search_index import SearchIndex
from reptk.evaluate.intervals import QueryMean
from reptk.neighbors import search_streamed
from reptk.neighbors.recall import found_shares

QUERIES_AT_ONCE = 100
"""Queries whose neighbors are fetched from a database at a time."""


class Recall(NamedTuple):
    """The share of the exact k nearest neighbors that an index returns, with its 95 % interval over queries.

    k: neighbors.
    value: mean over queries.
    low: end of the bootstrap interval.
    high: the other end.
    num_queries: how many images of the index were queries, each of which is left out of its own neighbors.
    """

    k: int
    value: float
    low: float
    high: float
    num_queries: int


def verify_recall(index: SearchIndex, *, k: int = 10, num_queries: int = 1000) -> Recall:
    """Compare what an index finds with the exact search in the vectors that it stores, all of which are read once.

    A row that is as similar as the k-th exact neighbor counts as found, since exact copies of images are interchangeable.
    The queries are the same every time.

    Args:
        index: an index or a collection of a store.
        k: neighbors; fewer where there are not as many images.
        num_queries: images of the index that are queries.

    Raises:
        UsageError: k or num_queries are below 1, or there are fewer than two images.
        DataError: the index is damaged, or the store has changed.
        EnvironmentProblem: the store cannot be reached.
    """
    if len(index) < 2 or k < 1 or num_queries < 1:
        raise UsageError("recall needs two images, and a k and a number of queries of at least 1")
    k = min(k, len(index) - 1)
    order = torch.randperm(len(index), generator=rng.generator("recall", len(index)))
    rows = order[:num_queries].sort().values
    queries = index.vectors_of(rows.tolist())
    try:
        with progress("exact search", len(index)) as advance:
            exact, _ = search_streamed(_reported(index, advance), queries, k, rows)
    except ValueError as cause:  # rows that are not finite
        raise DataError(f"the index is damaged: {cause}") from cause
    shares = []
    with progress("comparing", len(queries)) as advance:
        for first in range(0, len(queries), QUERIES_AT_ONCE):
            part = slice(first, first + QUERIES_AT_ONCE)
            _, returned_rows = index.search(queries[part], k, rows[part])
            shares.append(found_shares(queries[part], returned_rows, exact[part], rows[part], index.vectors_of))
            advance(len(queries[part]))
    mean = QueryMean(torch.cat(shares))
    low, high = mean.interval()
    return Recall(k, float(mean), low, high, len(queries))


def _reported(index: SearchIndex, advance: Callable[[int], None]) -> Iterator[tuple[Tensor, Tensor]]:
    for numbers, vectors in index.vector_blocks():
        yield numbers, vectors
        advance(len(numbers))
