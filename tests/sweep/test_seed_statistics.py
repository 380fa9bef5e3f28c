"""Means and differences over seeds equal those of numpy and scipy by hand."""

import math

import numpy as np
import pytest
from scipy import stats

from reptk.sweep.seed_statistics import (
    NO_INTERVAL,
    NO_SPREAD,
    OVER_QUERIES,
    OVER_SEEDS,
    PAIRED_SEEDS,
    UNPAIRED_SEEDS,
    difference_over_seeds,
    mean_over_seeds,
)

A = [0.91, 0.88, 0.93, 0.90, 0.89]
B = [0.87, 0.86, 0.90, 0.88, 0.84]


@pytest.mark.parametrize("count", [2, 3, 5])
def test_the_mean_has_scipys_t_interval(count: int) -> None:
    values = A[:count]
    estimate = mean_over_seeds(values, query_interval=(0, 1))
    low, high = stats.t.interval(0.95, count - 1, loc=np.mean(values), scale=stats.sem(values))
    assert estimate[:3] == pytest.approx((np.mean(values), low, high), rel=1e-12)
    assert estimate.count == count
    assert estimate.kind == OVER_SEEDS
    by_test = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (estimate.low, estimate.high) == pytest.approx((by_test.low, by_test.high), rel=1e-12)


def test_intervals_of_shares_end_where_shares_end() -> None:
    a, b = {0: 0.9, 1: 0.99}, {0: 0.05, 1: 0.95}
    whole = mean_over_seeds(list(a.values()))
    cut = mean_over_seeds(list(a.values()), is_share=True)
    assert whole.high > 1
    assert cut == whole._replace(high=1.0)
    whole = difference_over_seeds(b, a)
    assert whole.low < -1
    assert difference_over_seeds(b, a, is_share=True) == whole._replace(low=-1.0, high=min(whole.high, 1.0))
    # What lies inside is as before, and so is what has no interval or is no share.
    inside = mean_over_seeds(A)
    assert mean_over_seeds(A, is_share=True) == inside
    assert mean_over_seeds([0.5, 0.5], is_share=True).kind == NO_SPREAD
    assert mean_over_seeds([3.0, 9.0], is_share=True) == mean_over_seeds([3.0, 9.0])


def test_one_seed_has_the_interval_over_its_queries() -> None:
    assert mean_over_seeds([0.9], (0.8, 0.95)) == (0.9, 0.8, 0.95, 1, OVER_QUERIES)
    estimate = mean_over_seeds([0.9])
    assert estimate.kind == NO_INTERVAL
    assert math.isnan(estimate.low)
    assert not estimate.is_significant


def test_shared_seeds_are_paired() -> None:
    a = dict(enumerate(A))
    b = dict(enumerate(B))
    estimate = difference_over_seeds(a, b)
    expected = stats.ttest_rel(A, B).confidence_interval(0.95)
    assert estimate[:3] == pytest.approx((np.mean(A) - np.mean(B), expected.low, expected.high), rel=1e-9)
    assert (estimate.count, estimate.kind) == (5, PAIRED_SEEDS)
    assert estimate.is_significant
    # Not the order of the seeds, but their numbers decide on the pairs; others are left out.
    shuffled = {seed: b[seed] for seed in (4, 2, 0, 3, 1)} | {77: 0.1}
    assert difference_over_seeds(a, shuffled) == estimate


def test_other_seeds_are_compared_by_welchs_test() -> None:
    a = dict(enumerate(A))
    b = dict(enumerate(B[:3], start=100))
    estimate = difference_over_seeds(a, b)
    expected = stats.ttest_ind(A, B[:3], equal_var=False).confidence_interval(0.95)
    assert estimate[:3] == pytest.approx((np.mean(A) - np.mean(B[:3]), expected.low, expected.high), rel=1e-9)
    assert (estimate.count, estimate.kind) == (3, UNPAIRED_SEEDS)


def test_a_single_pair_has_no_interval_over_seeds() -> None:
    for b in ({0: 0.5}, {7: 0.5}, {7: 0.5, 8: 0.5}):
        estimate = difference_over_seeds({0: 0.75}, b)
        assert estimate.mean == 0.25
        assert estimate.count == 1
        assert math.isnan(estimate.low)


def test_equal_values_are_no_certainty() -> None:
    assert mean_over_seeds([0.5, 0.5, 0.5]).kind == NO_SPREAD
    for b in ({0: 0.25, 1: 0.25}, {5: 0.25, 6: 0.25}):
        estimate = difference_over_seeds({0: 0.5, 1: 0.5}, b)
        assert (estimate.mean, estimate.kind) == (0.25, NO_SPREAD)
        assert not estimate.is_significant
