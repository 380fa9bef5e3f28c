"""Curves: thinned points and round axes."""

from pathlib import Path

import pytest

from reptk.report.run_files import Run, SavedResults
from reptk.report.training_curves import MAX_POINTS, curve_panels, epoch_ticks, rounded_range, thin


@pytest.mark.parametrize("headline", ["knn@20", "accuracy"])
def test_runs_of_a_classifier_have_curves_of_its_accuracy(headline: str) -> None:
    log = [
        {"epoch": 0.5, "loss": 2.0, "train_accuracy": 0.25, "cross_entropy": 1.5},
        {"epoch": 1, "knn@20": 0.4, "accuracy": 0.5},
        {"epoch": 1.5, "loss": 1.0, "train_accuracy": 0.75, "cross_entropy": 0.5},
        {"epoch": 2},
    ]
    rows = {"untrained": {"knn@20": 0.3, "accuracy": 0.1}, "trained": {"knn@20": 0.6, "accuracy": 0.8}}
    run = Run(Path("run"), "run", SavedResults(headline=headline, metrics=rows), log=log)
    panels = {panel.title: panel for panel in curve_panels([run])}
    points = {title: panel.series[0].points for title, panel in panels.items()}
    assert points["Accuracy, %"] == [(1.0, 0.5), (2.0, 0.8)]
    assert points["accuracy on training batches, %"] == [(0.5, 0.25), (1.5, 0.75)]
    assert points["cross-entropy"] == [(0.5, 1.5), (1.5, 0.5)]
    assert ("kNN@20, %" in points) == (headline == "knn@20")
    assert [level.value for level in panels["Accuracy, %"].levels] == [0.1]
    assert panels["Accuracy, %"].format_value(0.5) == "50"


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
