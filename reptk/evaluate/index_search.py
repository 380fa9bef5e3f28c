"""Search by an approximate index in place of exact search, with its recall."""

from collections.abc import Iterator

from torch import Tensor

from reptk.evaluate.neighbor_stream import Search
from reptk.neighbors import ApproximateIndex, recommended_index, rerank

EXACT = "Flat"
"""The factory string that stands for exact search."""

BLOCK = 1024
"""Queries at a time."""


def build_search(index: str, bank: Tensor, queries: Tensor, k: int) -> tuple[Search | None, dict[str, float | str]]:
    """Build the index that a factory string names.

    Args:
        index: `EXACT`, a FAISS factory string, or "auto" for the index recommended for so many rows.
        bank: (n, F) rows to index.
        queries: (q, F) a sample of which measures the recall.
        k: of the recall.

    Returns:
        A replacement for `search` (None: exact), and notes for results.json: the kind of index and its recall.

    Raises:
        UsageError: FAISS cannot make such an index, or the bank is too small for it.
        EnvironmentProblem: FAISS is missing.
    """
    if index == "auto":
        index = recommended_index(*bank.shape)
    if index == EXACT:
        return None, {"index": EXACT}
    approximate_index = ApproximateIndex.build(bank, index)
    recall = approximate_index.recall(bank, queries, k)
    return _search_with(approximate_index), {"index": index, f"index_recall@{k}": recall}


def _search_with(index: ApproximateIndex) -> Search:
    """A replacement for `search` over the rows that the index was built from.

    Candidates are re-ranked by their exact similarities. Queries with fewer than k candidates end in rows of -1 with
    similarities of -inf.
    """

    def search(bank: Tensor, queries: Tensor, k: int, exclude: Tensor | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        num_candidates = k if exclude is None else k + 1  # the query itself may be among them
        num_candidates = min(num_candidates, len(bank))
        for first in range(0, len(queries), BLOCK):
            block = queries[first : first + BLOCK].float()
            block_exclude = None if exclude is None else exclude[first : first + BLOCK]
            # The similarities of an approximate index are those of compressed vectors.
            _, rows = index.search(block, num_candidates)
            yield rerank(bank, block, rows, k, block_exclude)

    return search
