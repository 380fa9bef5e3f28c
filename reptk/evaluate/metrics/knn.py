"""kNN classification: the share of queries whose neighbors vote for the query's own class."""

from collections.abc import Callable, Sequence
from typing import Annotated

from annotated_types import Gt, MinLen
from torch import Tensor

from reptk.config.registry import EVALUATORS
from reptk.data import Data
from reptk.evaluate.features import FeatureStore
from reptk.evaluate.index_search import EXACT, build_search
from reptk.evaluate.intervals import QueryMean
from reptk.evaluate.metrics.retrieval import RankingMetrics
from reptk.evaluate.neighbor_stream import (
    QueryTable,
    RetrievalTask,
    StreamMetric,
    accumulate,
    append_sentinel,
    clamp_k,
    dataset_task,
    exact_search,
    gathered_task,
    labeled_task,
)
from reptk.evaluate.predictions import MAX_NEIGHBORS, PredictionCollector
from reptk.evaluate.protocol import EvalResult, Evaluator, PositiveInts
from reptk.evaluate.voting import predict, vote_weights
from reptk.neighbors import Engine, resolve_engine

HEADLINE_K = 20

Temperature = Annotated[float, Gt(0)]
Temperatures = Temperature | Annotated[tuple[Temperature, ...], MinLen(1)]


def knn(
    bank: Tensor,
    bank_labels: Tensor,
    queries: Tensor,
    query_labels: Tensor,
    *,
    k: int | Sequence[int] = (1, 10, 20, 100, 200),
    temperature: float | Sequence[float] = 0.07,
    exclude: Tensor | None = None,
    progress: Callable[[int], None] | None = None,
) -> dict[str, QueryMean]:
    """Compute kNN accuracy for every k from one exact search.

    Args:
        bank: (n, F) features, compared by inner product: unit rows give cosine similarity.
        bank_labels: (n,) classes; rows with -1 do not vote.
        queries: (q, F) features.
        query_labels: (q,) classes; queries with -1 are skipped.
        k: number of neighbors, or several.
        temperature: of the weighted vote (Wu et al. 2018, arXiv 1805.01978, with the usual 0.07), or several.
        exclude: (q,) the row of `bank` that is the query itself, -1 for none: leave-one-out.
        progress: called now and then with the number of queries that are done.

    Returns:
        `{"knn@K": weighted, "knn_majority@K": majority}`, shares between 0 and 1 that have an `interval()`. Weighted votes
        of the second and further temperatures are called `knn@K,t=0.2`.

    Raises:
        ValueError: shapes that do not fit, values that are not finite, k outside 1 to the bank's size, no labels.
    """
    task = labeled_task(bank, bank_labels, queries, query_labels, exclude)
    if isinstance(k, int):
        k = [k]
    metric = KNNAccuracy(task.bank_labels, len(task.queries), k, _as_list(temperature))
    return accumulate(task, [metric], progress=progress)


class KNNAccuracy:
    """Accumulates, for every k and temperature, which queries are classified correctly.

    Args:
        bank_labels: (n,) classes of the bank.
        num_queries: queries.
        k: numbers of neighbors that vote.
        temperatures: of the weights exp(similarity / temperature); the metrics of the first have no suffix.
    """

    def __init__(self, bank_labels: Tensor, num_queries: int, k: Sequence[int], temperatures: Sequence[float]) -> None:
        if not k or min(k) < 1:
            raise ValueError(f"k must be at least 1, got {list(k)}")
        if not temperatures or not min(temperatures) > 0:
            raise ValueError(f"temperature must be above 0, got {', '.join(map(str, temperatures)) or 'none'}")
        self.k = sorted(set(k))
        self.temperatures = list(dict.fromkeys(temperatures))
        self.depth = self.k[-1]
        self._num_classes = int(bank_labels.max()) + 1
        self._labels = append_sentinel(bank_labels, self._num_classes)
        self._correct = QueryTable(num_queries)

    def update(self, labels: Tensor, similarities: Tensor, rows: Tensor) -> None:
        """Add a block: the queries' classes (b,), the similarities and rows (b, depth or more) of their neighbors."""
        neighbor_labels = self._labels[rows[:, : self.depth]]
        correct = {}
        for i, temperature in enumerate(self.temperatures):
            weights = vote_weights(similarities[:, : self.depth], temperature)
            votes = predict(neighbor_labels, weights, self.k, self._num_classes)
            for k, vote in zip(self.k, votes, strict=True):
                # Majority votes use the weights for ties alone, so one temperature is enough for them.
                if i == 0:
                    correct[f"knn@{k}"] = vote.weighted == labels
                    correct[f"knn_majority@{k}"] = vote.majority == labels
                else:
                    correct[f"knn@{k},t={temperature:g}"] = vote.weighted == labels
        self._correct.append(correct)

    def compute(self) -> dict[str, QueryMean]:
        """Return `knn@K` (weighted), `knn@K,t=T` of further temperatures, and `knn_majority@K`."""
        metrics = {}
        for name in sorted(self._correct.columns, key=_vote_temperature_k):
            metrics[name] = QueryMean(self._correct.columns[name].float())
        return metrics


@EVALUATORS.register("knn")
class Knn(Evaluator):
    """kNN accuracy, Recall@k, precision@k, MRR, mAP@R and R-precision of the queries in the bank, from one search.

    Args:
        k: neighbors that vote; a k above the bank's size is lowered to it, with a warning.
        temperature: of the weighted vote, or several; the metrics of all but the first are called `knn@K,t=T`.
        recall: Recall@k for these k.
        precision: precision@k for these k.
        retrieval: whether to compute Recall@k, precision@k, MRR, mAP@R and R-precision; mAP@R needs a ranking as deep as
            the largest class.
        index: "Flat": exact. A FAISS factory string ("IVF1024,Flat", "HNSW32", "IVF1024,PQ32") is for banks that exact
            search cannot hold or takes too long for, "auto" the one recommended for so many rows. The recall of an
            approximate index, measured against exact search on a sample, is reported with the metrics.
        engine: of exact search; all give the same metrics. See `reptk.evaluate.search`.
    """

    def __init__(
        self,
        k: PositiveInts = (1, 10, 20, 100, 200),
        temperature: Temperatures = 0.07,
        recall: PositiveInts = (1, 5, 10),
        precision: PositiveInts = (5, 10),
        retrieval: bool = True,
        index: str = EXACT,
        engine: Engine = "auto",
    ) -> None:
        self.k = list(k)
        self.temperatures = _as_list(temperature)
        self.recall = list(recall)
        self.precision = list(precision)
        self.retrieval = retrieval
        self.index = index
        self.engine = engine

    def __call__(self, features: FeatureStore, data: Data) -> EvalResult:
        metrics, note, collector = self._search(features, data, ranking=self.retrieval)
        return EvalResult(metrics, {"knn": note}, collector.predictions("query", "bank", data.classes))

    def during_training(self, features: FeatureStore, data: Data) -> EvalResult:
        """Return the votes alone, which need no deep ranking, without predictions."""
        metrics, note, _ = self._search(features, data, ranking=False)
        return EvalResult(metrics, {"knn": note})

    def _search(
        self, features: FeatureStore, data: Data, *, ranking: bool
    ) -> tuple[dict[str, float], dict[str, float | str], PredictionCollector]:
        """Search once. Returns the metrics, a note on the search, and the predictions."""
        task = self._task(features, data)
        max_k = task.max_k()
        k = clamp_k(self.k, max_k)
        collector = PredictionCollector(task, headline_k(k), self.temperatures[0], min(MAX_NEIGHBORS, max_k))
        accuracy = KNNAccuracy(task.bank_labels, len(task.queries), k, self.temperatures)
        stream_metrics: list[StreamMetric] = [collector, accuracy]
        if ranking:
            stream_metrics.append(self._ranking_metrics(task, max_k))
        # The recall of an approximate index is measured at the headline's k.
        search_fn, note = build_search(self.index, task.bank, task.queries, collector.k)
        if search_fn is None:
            search_fn = exact_search(task, self.engine)
            note["engine"] = resolve_engine(self.engine)

        def report_progress(done: int) -> None:
            features.report_progress("searching", done, len(task.queries))

        metrics = accumulate(task, stream_metrics, search_fn, report_progress)
        return metrics, note, collector

    def _task(self, features: FeatureStore, data: Data) -> RetrievalTask:
        # Ranks search in each other's parts of the bank, but an approximate index needs all of it.
        if self.index == EXACT:
            return dataset_task(features, data)
        return gathered_task(features, data)

    def _ranking_metrics(self, task: RetrievalTask, max_k: int) -> RankingMetrics:
        recall, precision = clamp_k(self.recall, max_k), clamp_k(self.precision, max_k)
        relevant = task.relevant_counts()
        # All ranks have to search equally deep.
        most_relevant = int(task.all_gather(relevant).max())
        return RankingMetrics(task.bank_labels, relevant, recall, precision, most_relevant)


def headline_k(k: Sequence[int]) -> int:
    """Return the k whose vote is the headline: 20, or the nearest to it."""
    return min(k, key=lambda value: (abs(value - HEADLINE_K), value))


def _as_list(temperature: float | Sequence[float]) -> list[float]:
    if isinstance(temperature, int | float):
        return [temperature]
    return list(temperature)


def _vote_temperature_k(name: str) -> tuple[str, str, int]:
    """Sort key of `knn@20`, `knn_majority@20`, `knn@20,t=0.2`."""
    vote, _, suffix = name.partition("@")
    k, _, temperature = suffix.partition(",")
    return vote, temperature, int(k)
