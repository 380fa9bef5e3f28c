"""kNN classification: how often the neighbours' classes name the query's own."""

from collections.abc import Sequence

import torch
from torch import Tensor

from reptk.evaluate.tally import labelled, tally


class Votes:
    """Counts right votes for every k while neighbours stream by.

    Args:
        bank_labels: (n,) classes of the bank.
        k: numbers of neighbours that vote.
        temperature: of the weights exp(similarity / temperature) in the weighted vote.
    """

    def __init__(self, bank_labels: Tensor, k: Sequence[int], temperature: float) -> None:
        if not k or min(k) < 1:
            raise ValueError(f"k must be at least 1, got {list(k)}")
        if not temperature > 0:
            raise ValueError(f"temperature must be above 0, got {temperature}")
        self.labels, self.k, self.temperature = bank_labels, sorted(set(k)), temperature
        self.depth = self.k[-1]
        self._classes = int(bank_labels.max()) + 1
        self._right: dict[str, int] = {}
        self._seen = 0

    def add(self, labels: Tensor, similarities: Tensor, rows: Tensor) -> None:
        """A block: the queries' classes (b,), their neighbours' similarities and rows (b, depth or more)."""
        votes = self.labels[rows[:, : self.depth]]
        weights = ((similarities - similarities[:, :1])[:, : self.depth] / self.temperature).double().exp()
        weighted = torch.zeros(len(labels), max(self._classes, int(labels.max()) + 1), dtype=torch.float64)
        counts = torch.zeros_like(weighted)
        done = 0
        for k in self.k:
            weighted.scatter_add_(1, votes[:, done:k], weights[:, done:k])
            counts.scatter_add_(1, votes[:, done:k], torch.ones_like(weights[:, done:k]))
            done = k
            # Equal counts are decided by the larger weight, which is scaled to stay below one vote.
            decided = counts + weighted / (weighted.sum(1, keepdim=True) + 1)
            self._count(f"knn@{k}", weighted, labels)
            self._count(f"knn_majority@{k}", decided, labels)
        self._seen += len(labels)

    def results(self) -> dict[str, float]:
        """Shares of right answers: `knn@K` (weighted) and `knn_majority@K`."""
        return {name: right / self._seen for name, right in sorted(self._right.items(), key=_by_vote_then_k)}

    def _count(self, name: str, scores: Tensor, labels: Tensor) -> None:
        self._right[name] = self._right.get(name, 0) + int((scores.argmax(1) == labels).sum())


def knn(
    bank: Tensor,
    bank_labels: Tensor,
    queries: Tensor,
    query_labels: Tensor,
    *,
    k: Sequence[int] = (1, 10, 20, 100, 200),
    temperature: float = 0.07,
    exclude: Tensor | None = None,
) -> dict[str, float]:
    """kNN accuracy for every k from one exact search.

    Args:
        bank: (n, F) features; compared by inner product, so give unit rows for cosine similarity.
        bank_labels: (n,) classes; rows with -1 do not vote.
        queries: (q, F) features.
        query_labels: (q,) classes; queries with -1 are passed over.
        k: numbers of neighbours.
        temperature: of the weighted vote (Wu et al. 2018, arXiv 1805.01978; 0.07 is the field's custom).
        exclude: (q,) the row of `bank` that is the query itself, -1 for none: leave-one-out.

    Returns:
        `{"knn@K": weighted, "knn_majority@K": majority}`, shares between 0 and 1.

    Raises:
        ValueError: shapes that do not fit, values that are not finite, k outside 1 to the bank's size, no labels.
    """
    search_in = labelled(bank, bank_labels, queries, query_labels, exclude)
    return tally(search_in, Votes(search_in.bank_labels, k, temperature))


def _by_vote_then_k(item: tuple[str, int]) -> tuple[str, int]:
    name, _, k = item[0].partition("@")
    return name, int(k)
