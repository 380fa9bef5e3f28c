"""Is one run better than another, or could the queries have fallen so by chance?"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from reptk.evaluate.intervals import QueryMean
from reptk.evaluate.predictions import Predictions
from reptk.report.runs import Run

IMMATERIAL = ("cache", "download", "jpeg")
"""Arguments of a data set that change how its images are got at, not which they are."""


@dataclass(frozen=True)
class Difference:
    """Of one metric, this run minus the first.

    Args:
        value: the difference.
        low, high: its 95 % interval; NaN where nothing is known of it.
        how: what the interval was made from: "paired", "intervals", or "" for none.
    """

    value: float
    low: float
    high: float
    how: str

    @property
    def exceeds(self) -> bool:
        """Whether no difference is outside the interval."""
        return self.low > 0 or self.high < 0


def difference(run: Run, first: Run, metric: str) -> Difference | None:
    """How much `run` is above `first` in `metric`, with an interval: paired over the same queries where the evidence of
    both allows it, else from the two intervals as of independent samples; None if one lacks the metric."""
    a, b = run.results.numbers.get(metric), first.results.numbers.get(metric)
    if a is None or b is None:
        return None
    pair = same_queries(run, first)
    if pair is not None:
        hits = _hits(pair[0], metric), _hits(pair[1], metric)
        if hits[0] is not None and hits[1] is not None:
            _, low, high = QueryMean(hits[0].float()).gain_over(QueryMean(hits[1].float()))
            return Difference(a - b, low, high, "paired")
    return from_intervals(a, _interval(run, metric), b, _interval(first, metric))


def from_intervals(
    a: float, a_interval: tuple[float, float] | None, b: float, b_interval: tuple[float, float] | None
) -> Difference:
    """a - b of independent samples: the halves of the two intervals that matter add up as the sides of a right angle do."""
    if a_interval is None or b_interval is None:
        return Difference(a - b, math.nan, math.nan, "")
    down = math.hypot(a - a_interval[0], b_interval[1] - b)
    up = math.hypot(a_interval[1] - a, b - b_interval[0])
    return Difference(a - b, a - b - down, a - b + up, "intervals")


def same_queries(run: Run, first: Run) -> tuple[Predictions, Predictions] | None:
    """The evidence of both, if they answer the same labelled queries of the same data set."""
    a, b = run.evidence, first.evidence
    if a is None or b is None or which_data(run.data_part) != which_data(first.data_part):
        return None
    alike = a.query_split == b.query_split and torch.equal(a.index, b.index) and torch.equal(a.labels, b.labels)
    return (a, b) if alike and bool((a.labels >= 0).any()) else None


def which_data(part: dict[str, Any]) -> dict[str, Any]:
    """What of a data set's arguments decides which images they are."""
    return {key: value for key, value in part.items() if key not in IMMATERIAL}


def _hits(evidence: Predictions, metric: str) -> Tensor | None:
    """(labelled queries,) whether each was answered rightly, where the evidence says so for this metric."""
    known = evidence.labels >= 0
    if metric and metric == evidence.vote:
        return (evidence.predicted == evidence.labels)[known]
    name, _, k = metric.partition("@")
    if metric in ("knn@1", "knn_majority@1"):
        name = "recall"  # one vote: that of the nearest
    if name == "recall" and k.isdigit() and 1 <= int(k) <= evidence.neighbors.shape[1]:
        return (evidence.neighbor_labels[:, : int(k)] == evidence.labels[:, None]).any(1)[known]
    return None


def _interval(run: Run, metric: str) -> tuple[float, float] | None:
    return run.results.intervals.get(run.results.main, {}).get(metric)
