"""Means over seeds, and differences of two settings, with 95 % intervals by Student's t distribution.

An interval over seeds says where the mean of many more seeds would be. An interval over queries, which is all that a single
seed has, says how much other queries would change the number, and nothing about other seeds.

The t distribution has no bounds, so an interval of few seeds may reach beyond 0 or 100 %. Of a share it is cut there: no mean
lies beyond, so the interval contains it as often as before.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
from scipy import stats

from reptk.evaluate.intervals import LEVEL

OVER_SEEDS = "seeds"
OVER_QUERIES = "queries"
PAIRED_SEEDS = "paired seeds"
UNPAIRED_SEEDS = "unpaired seeds"
PAIRED_QUERIES = "paired queries"
UNPAIRED_QUERIES = "unpaired queries"
NO_SPREAD = "equal values"
NO_INTERVAL = ""
"""What an interval is over; `MEANINGS` says it in a sentence."""

MEANINGS = {
    OVER_SEEDS: "mean over seeds, t distribution with n - 1 degrees of freedom; of a share, cut at 0 and 1",
    OVER_QUERIES: "one seed: bootstrap over the queries of its evaluation, which says nothing about other seeds",
    PAIRED_SEEDS: (
        "mean of the differences of runs with the same seed, t distribution with n - 1 degrees of freedom; of shares, cut at "
        "-1 and 1. Seeds that one setting alone has are left out, and then it is not the difference of the two means"
    ),
    UNPAIRED_SEEDS: ("no shared seed: difference of the two means, Welch's t distribution; of shares, cut at -1 and 1"),
    PAIRED_QUERIES: "one shared seed: the same queries drawn again in pairs, which says nothing about other seeds",
    NO_SPREAD: "all seeds gave the same value, of which the t distribution has no interval",
    UNPAIRED_QUERIES: "one run each, other queries: the two intervals over queries, as of independent samples",
}

Key = TypeVar("Key", int, tuple[int, int])
"""A seed, or that of the run that a stage starts from and its seed."""


class Estimate(NamedTuple):
    """A mean or a difference with its 95 % interval.

    mean: NaN if there is none.
    low, high: NaN if the interval cannot be computed.
    count: runs, or pairs of runs, that it is of.
    kind: what the interval is over, a key of `MEANINGS`; empty without one.
    """

    mean: float
    low: float
    high: float
    count: int
    kind: str

    @property
    def is_significant(self) -> bool:
        """As a difference: the interval is over seeds and does not contain 0.

        An interval over queries says nothing about other seeds, so a difference of single runs is never significant.
        """
        return self.is_over_seeds and (self.low > 0 or self.high < 0)

    @property
    def is_over_seeds(self) -> bool:
        """As a difference: there is an interval, and it is over seeds."""
        return self.kind in (PAIRED_SEEDS, UNPAIRED_SEEDS)


def mean_over_seeds(
    values: Sequence[float], query_interval: tuple[float, float] | None = None, *, is_share: bool = False
) -> Estimate:
    """Return the mean of one value per seed.

    Args:
        values: at least one.
        query_interval: of the only value, if there is one alone.
        is_share: the values lie between 0 and 1, and so does the interval.
    """
    mean = float(np.mean(values))
    if len(values) > 1:
        estimate = _with_t_interval(values, OVER_SEEDS)
        if is_share and min(values) >= 0 and max(values) <= 1:
            estimate = _cut(estimate, 0.0, 1.0)
        return estimate
    if query_interval is not None:
        return Estimate(mean, *query_interval, 1, OVER_QUERIES)
    return without_interval(mean, 1)


def difference_over_seeds(a: Mapping[Key, float], b: Mapping[Key, float], *, is_share: bool = False) -> Estimate:
    """Return a - b of two settings, each with one value per seed.

    If they share at least two seeds, it is the mean of the differences of these (paired t interval); else the difference of
    the means, with Welch's interval if both have at least two seeds, and without one otherwise. A single shared seed has its
    difference, without an interval.

    Args:
        a, b: values by seed, or by what else distinguishes the runs of a setting.
        is_share: the values lie between 0 and 1, so that the interval ends between -1 and 1.
    """
    estimate = _difference(a, b)
    values = [*a.values(), *b.values()]
    if is_share and min(values) >= 0 and max(values) <= 1:
        estimate = _cut(estimate, -1.0, 1.0)
    return estimate


def without_interval(mean: float, count: int) -> Estimate:
    """Return an estimate of which only the value is known."""
    return Estimate(mean, math.nan, math.nan, count, NO_INTERVAL)


def _cut(estimate: Estimate, lowest: float, highest: float) -> Estimate:
    """Return an estimate whose interval ends at the bounds of what is possible, if it has one."""
    if math.isnan(estimate.low):
        return estimate
    return estimate._replace(low=max(estimate.low, lowest), high=min(estimate.high, highest))


def _difference(a: Mapping[Key, float], b: Mapping[Key, float]) -> Estimate:
    shared = sorted(a.keys() & b.keys())
    if shared:
        differences = [a[seed] - b[seed] for seed in shared]
        if len(shared) == 1:
            return without_interval(differences[0], 1)
        return _with_t_interval(differences, PAIRED_SEEDS)
    mean = float(np.mean(list(a.values())) - np.mean(list(b.values())))
    count = min(len(a), len(b))
    if count < 2:
        return without_interval(mean, count)
    half_width = _welch_half_width(list(a.values()), list(b.values()))
    if half_width == 0:
        return Estimate(mean, math.nan, math.nan, count, NO_SPREAD)
    return Estimate(mean, mean - half_width, mean + half_width, count, UNPAIRED_SEEDS)


def _with_t_interval(values: Sequence[float], kind: str) -> Estimate:
    """Return the mean of at least two values with its t interval."""
    mean = float(np.mean(values))
    if min(values) == max(values):
        # Few queries have few possible values. An interval of width 0 would be too narrow.
        return Estimate(mean, math.nan, math.nan, len(values), NO_SPREAD)
    standard_error = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    half_width = float(stats.t.ppf((1 + LEVEL) / 2, len(values) - 1)) * standard_error
    return Estimate(mean, mean - half_width, mean + half_width, len(values), kind)


def _welch_half_width(a: Sequence[float], b: Sequence[float]) -> float:
    """Return half the width of Welch's interval of the difference of two means; 0 if neither varies."""
    terms = []
    weights = []
    for values in (a, b):
        term = float(np.var(values, ddof=1)) / len(values)
        terms.append(term)
        weights.append(term**2 / (len(values) - 1))
    if sum(terms) == 0:
        return 0.0
    # Welch and Satterthwaite's approximation of the degrees of freedom.
    degrees_of_freedom = sum(terms) ** 2 / sum(weights)
    return float(stats.t.ppf((1 + LEVEL) / 2, degrees_of_freedom)) * math.sqrt(sum(terms))
