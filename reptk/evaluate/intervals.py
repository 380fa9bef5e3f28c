"""Means over queries that keep their per-query values, and bootstrap intervals of them."""

from collections.abc import Mapping

import torch
from torch import Tensor

from reptk.core import rng
from reptk.core.counts import format_count

NUM_DRAWS = 1000
"""Bootstrap resamples."""

LEVEL = 0.95
"""Coverage of an interval."""

MAX_COUNTS = 1 << 22
"""Elements of the (draws, queries) table of counts that are held in memory at a time."""

Interval = tuple[float, float]
Gain = tuple[float, float, float]


class QueryMean(float):
    """The mean of one value per query; otherwise an ordinary float.

    Args:
        values: (q,) one per labeled query, in their order; NaN for a query that cannot be answered and does not count.
    """

    values: Tensor

    def __new__(cls, values: Tensor) -> "QueryMean":
        # float32 holds 0, 1 and shares well enough; checkpoints keep a value per query and metric. The mean is that of the
        # rounded values, so that it is the same when they are read back.
        values = values.float()
        mean = super().__new__(cls, values.double().nanmean())
        mean.values = values
        return mean

    def interval(self) -> Interval:
        """Return the 95 % bootstrap interval of the mean over other samples of queries."""
        return intervals({"": self})[""]

    def gain_over(self, other: "QueryMean") -> Gain:
        """Return the difference to `other` on the same queries, and the 95 % interval of that difference.

        Raises:
            ValueError: the numbers of queries differ.
        """
        return gains({"": self}, {"": other})[""]


def intervals(metrics: Mapping[str, float]) -> dict[str, Interval]:
    """Return the interval of every `QueryMean` among the metrics: percentile bootstrap over queries (Efron 1979).

    If all values are 0, or all are 1, every resample has the same mean; the interval then follows the rule of three.
    """
    means = {name: value for name, value in metrics.items() if isinstance(value, QueryMean)}
    by_name: dict[str, Interval] = {}
    for names in _grouped_by_count(means):
        values = torch.stack([means[name].values for name in names], dim=1)
        ends = _percentiles(_bootstrap_means(values))
        for name, (low, high) in zip(names, ends, strict=True):
            by_name[name] = _rule_of_three(means[name], low, high)
    return {name: by_name[name] for name in means}


def gains(metrics: Mapping[str, float], baseline: Mapping[str, float]) -> dict[str, Gain]:
    """Return (difference, low, high) of `metrics` over `baseline` for every `QueryMean` that both have.

    The bootstrap is paired: both are resampled by the same draws of queries.

    Raises:
        ValueError: the numbers of queries of a metric differ.
    """
    shared: dict[str, QueryMean] = {}
    for name, value in metrics.items():
        other = baseline.get(name)
        if isinstance(value, QueryMean) and isinstance(other, QueryMean):
            if value.values.shape != other.values.shape:
                raise ValueError(
                    f"{name}: {format_count(len(value.values), 'query', 'queries')} here, {len(other.values)} there; a gain is "
                    "of the same queries"
                )
            shared[name] = value
    by_name: dict[str, Gain] = {}
    for names in _grouped_by_count(shared):
        differences = torch.stack([shared[name].values - baseline[name].values for name in names], dim=1)
        ends = _percentiles(_bootstrap_means(differences))
        for name, (low, high) in zip(names, ends, strict=True):
            by_name[name] = (float(shared[name]) - float(baseline[name]), low, high)
    return {name: by_name[name] for name in shared}


def _grouped_by_count(means: Mapping[str, QueryMean]) -> list[list[str]]:
    """Names of means over the same number of queries, which share their bootstrap draws."""
    # The draws depend on the number of queries alone, so one bootstrap serves the whole group.
    groups: dict[int, list[str]] = {}
    for name, mean in means.items():
        groups.setdefault(len(mean.values), []).append(name)
    return list(groups.values())


def _bootstrap_means(values: Tensor) -> Tensor:
    """(q, m) values -> (NUM_DRAWS, m) means over q queries drawn with replacement; the draws depend on q alone."""
    count = len(values)
    stream = rng.generator("bootstrap", count)
    # The mean of a resample is over the queries in it that can be answered, so these are counted as well.
    is_present = ~values.isnan()
    columns = torch.cat([values.nan_to_num().double(), is_present.double()], dim=1)
    draws_at_once = max(1, MAX_COUNTS // count)
    sums = []
    for first in range(0, NUM_DRAWS, draws_at_once):
        draws = min(draws_at_once, NUM_DRAWS - first)
        drawn = torch.randint(count, (draws, count), generator=stream)
        # How often each query was drawn turns the sums over draws into a matrix product.
        times_drawn = torch.zeros(draws, count, dtype=torch.float64)
        times_drawn.scatter_add_(1, drawn, torch.ones(1, dtype=torch.float64).expand_as(drawn))
        sums.append(times_drawn @ columns)
    totals, present = torch.cat(sums).chunk(2, dim=1)
    return totals / present


def _percentiles(means: Tensor) -> list[Interval]:
    tails = torch.tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2], dtype=means.dtype)
    # A resample without any answered query has no mean.
    low, high = means.nanquantile(tails, dim=0)
    return list(zip(low.tolist(), high.tolist(), strict=True))


def _rule_of_three(mean: QueryMean, low: float, high: float) -> Interval:
    answered = int((~mean.values.isnan()).sum())
    is_degenerate = low >= high and float(mean) in (0.0, 1.0)
    if not is_degenerate or answered == 0:
        return low, high
    width = min(1.0, 3 / answered)
    # Without a failure among n queries, at most 3 / n fail at 95 % confidence (Hanley and Lippman-Hand 1983).
    if mean == 0:
        return 0.0, width
    return 1 - width, 1.0
