"""Bootstrap intervals of means over queries, and of gains."""

import importlib
import json
import math

import pytest
import torch
from torch import Tensor

from reptk.evaluate import QueryMean, gains, intervals

# `reptk.evaluate` has a function of that name, so the module is asked for by its full name.
intervals_module = importlib.import_module("reptk.evaluate.intervals")


def coins(count: int, share: float, seed: int = 0) -> Tensor:
    return (torch.rand(count, generator=torch.Generator().manual_seed(seed)) < share).float()


def test_a_query_mean_is_a_float_with_values() -> None:
    mean = QueryMean(torch.tensor([1.0, 0.0, math.nan, 1.0]))
    assert mean == pytest.approx(2 / 3)
    assert json.dumps({"x": mean}) == json.dumps({"x": float(mean)})
    assert len(mean.values) == 4


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_the_interval_is_that_of_the_binomial(share: float) -> None:
    mean = QueryMean(coins(2000, share))
    half = 1.96 * math.sqrt(mean * (1 - mean) / 2000)
    low, high = mean.interval()
    assert low == pytest.approx(mean - half, abs=0.1 * half)
    assert high == pytest.approx(mean + half, abs=0.1 * half)


def test_the_interval_contains_the_truth_in_nineteen_of_twenty_cases() -> None:
    contained = 0
    for seed in range(200):
        low, high = QueryMean(coins(150, 0.7, seed)).interval()
        contained += low <= 0.7 <= high
    assert 0.90 <= contained / 200 <= 0.985


def test_all_correct_is_not_certainty() -> None:
    assert QueryMean(torch.ones(300)).interval() == (0.99, 1.0)
    assert QueryMean(torch.zeros(300)).interval() == (0.0, 0.01)


def test_skipped_queries_neither_count_nor_move_the_interval() -> None:
    values = coins(500, 0.4)
    with_skipped = torch.cat([values, torch.full((500,), math.nan)])
    low, high = QueryMean(values).interval()
    low_skipped, high_skipped = QueryMean(with_skipped).interval()
    assert QueryMean(with_skipped) == QueryMean(values)
    assert high_skipped - low_skipped == pytest.approx(high - low, rel=0.15)


def test_intervals_of_several_equal_those_of_each(monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = {
        "a": QueryMean(coins(100, 0.5)),
        "b": 0.3,
        "c": QueryMean(coins(100, 0.2, 1)),
        "d": QueryMean(coins(60, 0.2, 2)),
    }
    joint = intervals(metrics)
    assert list(joint) == ["a", "c", "d"]
    assert joint == {name: pytest.approx(metrics[name].interval()) for name in joint}
    monkeypatch.setattr(intervals_module, "MAX_COUNTS", 250)
    assert intervals(metrics) == {name: pytest.approx(ends) for name, ends in joint.items()}


def test_a_gain_is_paired() -> None:
    """Two encoders that differ in few queries: the interval of the gain is far narrower than that of either metric."""
    before = coins(1000, 0.6)
    after = before.clone()
    after[before.eq(0).nonzero()[:20, 0]] = 1
    value, low, high = QueryMean(after).gain_over(QueryMean(before))
    assert value == pytest.approx(0.02)
    assert low > 0.01
    assert high < 0.03
    assert gains({"x": QueryMean(after), "y": 0.5}, {"x": QueryMean(before), "y": 0.4}) == {
        "x": pytest.approx((value, low, high))
    }
    with pytest.raises(ValueError, match="1,000 queries here, 5 there"):
        QueryMean(after).gain_over(QueryMean(torch.ones(5)))
