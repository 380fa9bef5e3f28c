"""The curves of a training, read from metrics.jsonl: what the page and the PNG plots draw."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from reptk.core.metric_names import display_name, is_share
from reptk.report.formatting import format_number, format_percent, is_finite_number
from reptk.report.run_files import Run

MAX_POINTS = 300
MAX_MARKED_POINTS = 20
"""A series of at most this many points is drawn with a marker at each."""
ACCURACY = "accuracy"
"""That of a trained classifier on the queries, which has a curve beside the headline's."""
TRAIN_ACCURACY = "train_accuracy"
"""On the views of training batches."""
TICK_STEPS = (1, 2, 2.5, 5, 10)

Point = tuple[float, float]


@dataclass(frozen=True)
class Series:
    """One line of a panel: points (epoch, value) in order; `style` is the position of its run on the page."""

    name: str
    style: int
    points: list[Point]


@dataclass(frozen=True)
class Level:
    """A horizontal line of a panel: a baseline that the curve is compared with."""

    name: str
    value: float


@dataclass(frozen=True)
class Panel:
    """One plot: a quantity by epoch, of all runs."""

    title: str
    series: list[Series]
    levels: list[Level]
    format_value: Callable[[float], str] = format_number


def curve_panels(runs: Sequence[Run]) -> list[Panel]:
    """Return a panel for each quantity that at least one run has logged."""
    metric = _evaluation_metric(runs)
    titles = {
        "loss": "loss",
        "contrastive_loss": "contrastive loss",
        "cross_entropy": "cross-entropy",
        metric: display_name(metric),
        ACCURACY: display_name(ACCURACY),
        TRAIN_ACCURACY: "accuracy on training batches",
        "rank": "dimensions in use",
        "alignment": "alignment",
        "uniformity": "uniformity",
        "std": "deviation of a dimension",
        "lr": "learning rate",
        "views_per_second": "views a second",
    }
    panels = []
    for key, title in titles.items():
        panel = _panel(runs, key, title)
        if panel.series:
            panels.append(panel)
    return panels


def rounded_range(low: float, high: float) -> tuple[Point, list[float]]:
    """Return a range with round ends that holds both values, and round ticks from one end to the other."""
    # Equal values would leave no range to divide by.
    if high - low < 1e-12:
        low, high = low - (abs(low) or 1) / 10, high + (abs(high) or 1) / 10
    min_step = (high - low) / 3
    magnitude = 10.0 ** math.floor(math.log10(min_step))
    step = next(magnitude * factor for factor in TICK_STEPS if magnitude * factor >= min_step)
    first = math.floor(low / step)
    last = math.ceil(high / step)
    # Rounded, since 3 * 0.1 is not 0.3.
    ticks = [round(multiple * step, 12) for multiple in range(first, last + 1)]
    return (first * step, last * step), ticks


def epoch_ticks(first: float, last: float) -> list[int]:
    """Return whole epochs at equal distances, from 0 or `first` to `last`: at most seven."""
    for power in range(9):
        for factor in (1, 2, 5):
            step = factor * 10**power
            if step * 6 >= last - first:
                ticks = range(0, int(last) + 1, step)
                return [tick for tick in ticks if tick >= first]
    raise ValueError(f"a training of {last - first:g} epochs is too long to draw")


def thin(points: list[Point]) -> list[Point]:
    """Return at most `MAX_POINTS` points: the means of groups of equally many successive points."""
    group_size = math.ceil(len(points) / MAX_POINTS)
    if group_size <= 1:
        return points
    thinned = []
    for start in range(0, len(points), group_size):
        group = points[start : start + group_size]
        xs, ys = zip(*group, strict=True)
        thinned.append((sum(xs) / len(group), sum(ys) / len(group)))
    return thinned


def _evaluation_metric(runs: Sequence[Run]) -> str:
    """Return the headline metric of the runs; for unfinished runs the first retrieval metric in their logs."""
    for run in runs:
        if run.results.headline:
            return run.results.headline
    for run in runs:
        for row in run.log:
            for key in row:
                if "@" in key:
                    return key
    return ""


def _panel(runs: Sequence[Run], key: str, title: str) -> Panel:
    is_percent = "@" in key or is_share(key) or key == TRAIN_ACCURACY
    series = []
    levels = []
    for style, run in enumerate(runs):
        points = _logged_points(run, key)
        is_evaluated = key in (run.results.headline, ACCURACY)
        if is_evaluated and key in run.results.main_metrics:
            # The final evaluation is in results.json alone.
            points = _with_final_value(run, points, run.results.main_metrics[key])
        if points:
            series.append(Series(run.name, style, thin(points)))
            # Baselines of several runs would be a bundle of lines.
            if len(runs) == 1 and is_evaluated:
                levels = _baseline_levels(run, key)
    if is_percent:
        return Panel(f"{title}, %", series, levels, _format_axis_percent)
    return Panel(title, series, levels)


def _logged_points(run: Run, key: str) -> list[Point]:
    points = []
    for row in run.log:
        epoch = row.get("epoch")
        value = row.get(key)
        if is_finite_number(epoch) and is_finite_number(value):
            points.append((float(epoch), float(value)))
    # A resumed run may have logged some steps again.
    return sorted(points)


def _with_final_value(run: Run, points: list[Point], value: float) -> list[Point]:
    """Return the points with the value of results.json at the end of the training, in place of what was logged there."""
    if points:
        logged_epochs = [row.get("epoch", 0) for row in run.log]
        last_epoch = max(float(epoch) for epoch in logged_epochs if is_finite_number(epoch))
        earlier_points = [point for point in points if point[0] < last_epoch]
        return [*earlier_points, (last_epoch, value)]
    losses = _logged_points(run, "loss")
    if losses:
        return [(losses[-1][0], value)]
    return []


def _baseline_levels(run: Run, metric: str) -> list[Level]:
    levels = []
    for row in run.results.baseline_rows:
        value = run.results.metrics[row].get(metric)
        if is_finite_number(value):
            levels.append(Level(run.results.label_of(row), value))
    return levels


def _format_axis_percent(value: float) -> str:
    """Return a share in percent, without decimals if it is a whole number."""
    is_whole = abs(100 * value - round(100 * value)) < 1e-6
    return format_percent(value, 0 if is_whole else 1)
