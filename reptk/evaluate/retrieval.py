"""Retrieval: how far up the ranking the images of the query's class stand."""

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

from reptk.evaluate.knn import with_none
from reptk.evaluate.mean import Mean
from reptk.evaluate.tally import labelled, tally


class Ranks:
    """Notes Recall@k, precision@k, MRR, mAP@R and R-precision while neighbours stream by.

    R is how many images of its class a query has to find.

    Args:
        bank_labels: (n,) classes of the bank.
        relevant: (q,) R of each query; queries with R = 0 cannot be answered and are passed over.
        k: Recall@k for these k.
        precision: precision@k for these k.
        largest: the largest R of all ranks' queries, where these are only some.
    """

    def __init__(
        self,
        bank_labels: Tensor,
        relevant: Tensor,
        k: Sequence[int],
        precision: Sequence[int] = (),
        largest: int | None = None,
    ) -> None:
        if not k or min([*k, *precision]) < 1:
            raise ValueError(f"k must be at least 1, got {[*k, *precision]}")
        self.labels, self.relevant = with_none(bank_labels, -1), relevant
        self.k, self.precision = sorted(set(k)), sorted(set(precision))
        self.depth = max(*self.k, *self.precision, int(relevant.max()) if largest is None else largest)
        self._values: dict[str, list[Tensor]] = defaultdict(list)
        self._first = 0

    def add(self, labels: Tensor, similarities: Tensor, rows: Tensor) -> None:
        """A block: the queries' classes (b,), their neighbours' similarities and rows (b, depth or more)."""
        hits = self.labels[rows[:, : self.depth]] == labels[:, None]
        relevant = self.relevant[self._first : self._first + len(labels)]
        self._first += len(labels)
        for name, values in self._measured(hits, relevant).items():
            self._values[name].append(torch.where(relevant > 0, values, torch.nan))

    def results(self) -> dict[str, Mean]:
        """`recall@K`, `precision@K`, `mrr`, `map@r`, `r_precision`, means over the queries that can be answered."""
        return {name: Mean(torch.cat(values)) for name, values in self._values.items()}

    def _measured(self, hits: Tensor, relevant: Tensor) -> dict[str, Tensor]:
        position = torch.arange(1, hits.shape[1] + 1)
        so_far = hits.cumsum(1, dtype=torch.int32)
        within = hits & (position <= relevant[:, None])
        first = torch.where(so_far[:, -1] > 0, hits.byte().argmax(1) + 1.0, torch.inf)
        made = {f"recall@{k}": (first <= k).float() for k in self.k}
        made |= {f"precision@{k}": so_far[:, k - 1] / k for k in self.precision}
        made["mrr"] = 1 / first
        made["map@r"] = (so_far / position).mul_(within).sum(1, dtype=torch.float64) / relevant
        made["r_precision"] = within.sum(1) / relevant
        return made


def retrieval(
    bank: Tensor,
    bank_labels: Tensor,
    queries: Tensor,
    query_labels: Tensor,
    *,
    k: Sequence[int] = (1, 5, 10),
    precision: Sequence[int] = (),
    exclude: Tensor | None = None,
) -> dict[str, Mean]:
    """Recall@k, precision@k, MRR, mAP@R and R-precision (Musgrave et al. 2020, arXiv 2003.08505) from one exact search.

    Args:
        bank: (n, F) features; compared by inner product, so give unit rows for cosine similarity.
        bank_labels: (n,) classes; rows with -1 are left out.
        queries: (q, F) features.
        query_labels: (q,) classes; queries with -1, or with nothing to find, are passed over.
        k: Recall@k for these k: the share of queries with one of their class among the first k.
        precision: precision@k for these k: the share of the first k that are of the query's class.
        exclude: (q,) the row of `bank` that is the query itself, -1 for none: leave-one-out.

    Returns:
        `{"recall@K": ..., "precision@K": ..., "mrr": ..., "map@r": ..., "r_precision": ...}`, between 0 and 1, each with
        its `interval()`. The ranking is as deep as the largest class or k; a first hit beyond it counts 0 in the MRR.

    Raises:
        ValueError: shapes that do not fit, values that are not finite, k outside 1 to the bank's size, nothing to find.
    """
    search_in = labelled(bank, bank_labels, queries, query_labels, exclude)
    return tally(search_in, Ranks(search_in.bank_labels, search_in.relevant(), k, precision))
