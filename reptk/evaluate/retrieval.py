"""Retrieval: how far up the ranking the images of the query's class stand."""

from collections.abc import Sequence

import torch
from torch import Tensor

from reptk.evaluate.tally import labelled, tally


class Ranks:
    """Sums Recall@k, mAP@R and R-precision while neighbours stream by. R: how many of a query's class there are to find.

    Args:
        bank_labels: (n,) classes of the bank.
        relevant: (q,) R of each query; queries with R = 0 cannot be answered and are passed over.
        k: Recall@k for these k.
    """

    def __init__(self, bank_labels: Tensor, relevant: Tensor, k: Sequence[int]) -> None:
        if not k or min(k) < 1:
            raise ValueError(f"k must be at least 1, got {list(k)}")
        self.labels, self.relevant, self.k = bank_labels, relevant, sorted(set(k))
        self.depth = max(self.k[-1], int(relevant.max()))
        self._sums = torch.zeros(len(self.k) + 2, dtype=torch.float64)
        self._first = 0

    def add(self, labels: Tensor, similarities: Tensor, rows: Tensor) -> None:
        """A block: the queries' classes (b,), their neighbours' similarities and rows (b, depth or more)."""
        hits = (self.labels[rows[:, : self.depth]] == labels[:, None]).float()
        relevant = self.relevant[self._first : self._first + len(labels)]
        self._first += len(labels)
        hits, relevant = hits[relevant > 0], relevant[relevant > 0, None]
        position = torch.arange(1, hits.shape[1] + 1)
        within = hits * (position <= relevant)
        precision = hits.cumsum(1) / position
        per_query = [hits[:, :k].amax(1) for k in self.k]
        per_query += [(within * precision).sum(1) / relevant[:, 0], within.sum(1) / relevant[:, 0]]
        self._sums += torch.stack([values.double().sum() for values in per_query])

    def results(self) -> dict[str, float]:
        """`recall@K`, `map@r`, `r_precision`, means over the queries that can be answered."""
        names = [*(f"recall@{k}" for k in self.k), "map@r", "r_precision"]
        return dict(zip(names, (self._sums / (self.relevant > 0).sum()).tolist(), strict=True))


def retrieval(
    bank: Tensor,
    bank_labels: Tensor,
    queries: Tensor,
    query_labels: Tensor,
    *,
    k: Sequence[int] = (1, 5, 10),
    exclude: Tensor | None = None,
) -> dict[str, float]:
    """Recall@k, mAP@R and R-precision (Musgrave et al. 2020, arXiv 2003.08505) from one exact search.

    Args:
        bank: (n, F) features; compared by inner product, so give unit rows for cosine similarity.
        bank_labels: (n,) classes; rows with -1 are left out.
        queries: (q, F) features.
        query_labels: (q,) classes; queries with -1, or with nothing to find, are passed over.
        k: Recall@k for these k: the share of queries with one of their class among the first k.
        exclude: (q,) the row of `bank` that is the query itself, -1 for none: leave-one-out.

    Returns:
        `{"recall@K": ..., "map@r": ..., "r_precision": ...}`, between 0 and 1.

    Raises:
        ValueError: shapes that do not fit, values that are not finite, k outside 1 to the bank's size, nothing to find.
    """
    search_in = labelled(bank, bank_labels, queries, query_labels, exclude)
    return tally(search_in, Ranks(search_in.bank_labels, search_in.relevant(), k))
