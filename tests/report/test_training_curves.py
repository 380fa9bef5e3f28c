"""Curves: thinned points and round axes."""

import pytest

from reptk.report.training_curves import MAX_POINTS, epoch_ticks, rounded_range, thin


def test_long_curves_are_thinned_without_a_shift() -> None:
    points = [(float(step), 2.0 * step) for step in range(10_007)]
    thinned = thin(points)
    assert len(thinned) <= MAX_POINTS
    assert all(y == pytest.approx(2 * x) for x, y in thinned)
    assert thin(points[:5]) == points[:5]


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.31, 0.83), (-3.2, -1.1), (5, 5), (0, 0), (1e-6, 3e-3)])
def test_axes_have_round_ends_that_hold_all_values(low: float, high: float) -> None:
    (first, last), ticks = rounded_range(low, high)
    assert first <= low <= high <= last
    assert 2 <= len(ticks) <= 6
    assert first < last


@pytest.mark.parametrize(("last", "expected"), [(3, [0, 1, 2, 3]), (0.5, [0]), (100, [0, 20, 40, 60, 80, 100])])
def test_epoch_ticks_are_round(last: float, expected: list[int]) -> None:
    assert epoch_ticks(0.0, last) == expected
