"""Retrieval: how early in the ranking the images of the query's class come."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from reptk.evaluate.intervals import QueryMean
from reptk.evaluate.neighbor_stream import QueryTable, accumulate, append_sentinel, labeled_task

MAX_RANKED = 1 << 23
"""Neighbors that are ranked at a time: few large classes make deep rankings, and every neighbor takes about 30 bytes."""


def retrieval(
    bank: Tensor,
    bank_labels: Tensor,
    queries: Tensor,
    query_labels: Tensor,
    *,
    k: Sequence[int] = (1, 5, 10),
    precision: Sequence[int] = (),
    exclude: Tensor | None = None,
    progress: Callable[[int], None] | None = None,
) -> dict[str, QueryMean]:
    """Compute Recall@k, precision@k, MRR, mAP@R and R-precision (Musgrave et al. 2020, arXiv 2003.08505) by exact search.

    Args:
        bank: (n, F) features, compared by inner product: unit rows give cosine similarity.
        bank_labels: (n,) classes; rows with -1 are left out.
        queries: (q, F) features.
        query_labels: (q,) classes; queries with -1, or without another image of their class in the bank, are skipped.
        k: Recall@k for these k: the share of queries with one of their class among the first k.
        precision: precision@k for these k: the share of the first k that are of the query's class.
        exclude: (q,) the row of `bank` that is the query itself, -1 for none: leave-one-out.
        progress: called now and then with the number of queries that are done.

    Returns:
        `{"recall@K": ..., "precision@K": ..., "mrr": ..., "map@r": ..., "r_precision": ...}`, between 0 and 1, each with
        an `interval()`. The ranking is as deep as the largest class or k; a first hit beyond it counts 0 in the MRR.

    Raises:
        ValueError: shapes that do not fit, values that are not finite, k outside 1 to the bank's size, no query with
            another image of its class.
    """
    task = labeled_task(bank, bank_labels, queries, query_labels, exclude)
    metric = RankingMetrics(task.bank_labels, task.relevant_counts(), k, precision)
    return accumulate(task, [metric], progress=progress)


class RankingMetrics:
    """Accumulates Recall@k, precision@k, MRR, mAP@R and R-precision. R is the number of images of the query's class.

    Args:
        bank_labels: (n,) classes of the bank.
        relevant: (q,) R of each query; queries with R = 0 cannot be answered and are skipped.
        k: Recall@k for these k.
        precision: precision@k for these k.
        most_relevant: the largest R of all ranks' queries, if `relevant` are those of one rank.
    """

    def __init__(
        self,
        bank_labels: Tensor,
        relevant: Tensor,
        k: Sequence[int],
        precision: Sequence[int] = (),
        most_relevant: int | None = None,
    ) -> None:
        if not k or min([*k, *precision]) < 1:
            raise ValueError(f"k must be at least 1, got {[*k, *precision]}")
        if most_relevant is None:
            most_relevant = int(relevant.max())
        self.k = sorted(set(k))
        self.precision = sorted(set(precision))
        self.depth = max(*self.k, *self.precision, most_relevant)
        self._labels = append_sentinel(bank_labels, -1)
        self._relevant = relevant
        self._num_queries = 0
        self._values = QueryTable(len(relevant))

    def update(self, labels: Tensor, similarities: Tensor, rows: Tensor) -> None:
        """Add a block: the queries' classes (b,), the similarities and rows (b, depth or more) of their neighbors."""
        step = max(1, MAX_RANKED // self.depth)
        for part, part_labels in zip(rows.split(step), labels.split(step), strict=True):
            hits = self._labels[part[:, : self.depth]] == part_labels[:, None]
            relevant = self._relevant[self._num_queries : self._num_queries + len(part)]
            self._num_queries += len(part)
            values = self._metrics(hits, relevant)
            self._values.append({name: torch.where(relevant > 0, value, torch.nan) for name, value in values.items()})

    def compute(self) -> dict[str, QueryMean]:
        """Return `recall@K`, `precision@K`, `mrr`, `map@r`, `r_precision`, means over the queries that can be answered."""
        return {name: QueryMean(values) for name, values in self._values.columns.items()}

    def _metrics(self, hits: Tensor, relevant: Tensor) -> dict[str, Tensor]:
        """(b,) values by name, from (b, depth) whether each neighbor is of the query's class and (b,) R."""
        rank = torch.arange(1, hits.shape[1] + 1)
        hits_so_far = hits.cumsum(1, dtype=torch.int32)
        hits_within_r = hits & (rank <= relevant[:, None])
        # Without a hit infinity, whose reciprocal is 0 and which no k reaches.
        # argmax of a row of zeros is 0, which would be a hit at rank 1.
        first_hit = torch.where(hits_so_far[:, -1] > 0, hits.byte().argmax(1) + 1.0, torch.inf)
        metrics = {}
        for k in self.k:
            metrics[f"recall@{k}"] = (first_hit <= k).float()
        for k in self.precision:
            metrics[f"precision@{k}"] = hits_so_far[:, k - 1] / k
        metrics["mrr"] = 1 / first_hit
        precision_at_hits = (hits_so_far / rank).mul_(hits_within_r)
        # Rankings may be hundreds of thousands deep, too long for a sum in float32.
        metrics["map@r"] = precision_at_hits.sum(1, dtype=torch.float64) / relevant
        metrics["r_precision"] = hits_within_r.sum(1) / relevant
        return metrics
