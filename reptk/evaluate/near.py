"""Neighbours from an approximate index in the place of exact search: settled by exact similarities, with its recall."""

from collections.abc import Callable, Iterator

from torch import Tensor

from reptk.neighbors import ApproximateIndex, recommended_index, rerank

EXACT = "Flat"
BLOCK = 1024

Search = Callable[[Tensor, Tensor, int, Tensor | None], Iterator[tuple[Tensor, Tensor]]]


def kind_of(index: str, bank: Tensor) -> str:
    """The factory string that is meant: "auto" is the one advised for so many rows."""
    return recommended_index(*bank.shape) if index == "auto" else index


def approximately(index: ApproximateIndex) -> Search:
    """A stand-in for `search` over the rows that the index was built from.

    Candidates are rerank by their exact similarities; where fewer than k are found, rows of -1 and similarities of -inf
    end the line.
    """

    def find(bank: Tensor, queries: Tensor, k: int, exclude: Tensor | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        for first in range(0, len(queries), BLOCK):
            block = queries[first : first + BLOCK].float()
            _, rows = index.search(block, min(k + (exclude is not None), len(bank)))
            yield rerank(bank, block, rows, k, None if exclude is None else exclude[first : first + BLOCK])

    return find


def searcher(kind: str, bank: Tensor, queries: Tensor, k: int) -> tuple[Search | None, dict[str, float | str]]:
    """How to search (None: exactly), and what stands beside the numbers: the kind of index, and how much it finds.

    Raises:
        UsageError: FAISS cannot make such an index, or the bank is too small for it.
        EnvironmentProblem: FAISS is missing.
    """
    if kind == EXACT:
        return None, {"index": EXACT}
    index = ApproximateIndex.build(bank, kind)
    recall = index.recall(bank, queries, k)
    return approximately(index), {"index": kind, f"index_recall@{k}": recall}
