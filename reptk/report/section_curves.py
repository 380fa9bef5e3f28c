"""The curves of a training as small SVG plots, which the page's script reads out point by point."""

from collections.abc import Sequence
from dataclasses import dataclass

from reptk.report.formatting import format_number
from reptk.report.run_files import Run
from reptk.report.training_curves import (
    MAX_MARKED_POINTS,
    Panel,
    Point,
    Series,
    curve_panels,
    epoch_ticks,
    rounded_range,
)

WIDTH, HEIGHT = 360, 190
LEFT, RIGHT, TOP, BOTTOM = 46, WIDTH - 14, 10, HEIGHT - 26
"""Ends of the axes in the coordinates of the plot."""
DASHES = ("", "7 3", "2 3", "9 3 2 3", "5 5", "1 4")
"""Dash patterns of the runs' lines, so that they can be told apart without their colors."""
NUM_COLORS = 6
"""Colors of runs in page.css."""
MIN_EPOCHS = 1e-9
"""So that the axis has a length if all points lie at epoch 0."""


@dataclass(frozen=True)
class LineStyle:
    """The CSS class and the dash pattern of a run's line."""

    css_class: str
    dashes: str


@dataclass(frozen=True)
class Label:
    """A text of the plot, and its position."""

    text: str
    x: float
    y: float


@dataclass(frozen=True)
class RuledLabel:
    """A horizontal line at `y` with its label: a tick of the value axis, or a baseline."""

    y: float
    label: Label


@dataclass(frozen=True)
class Line:
    """One run's curve: an SVG path, and markers at `points`."""

    path: str
    points: list[Point]
    style: LineStyle


@dataclass(frozen=True)
class Curve:
    """One plot.

    Args:
        last_values: the text above the plot until a point is read out.
        description: the plot in a sentence, for screen readers.
        frame: first and last epoch, left and right end, lowest and highest value, upper and lower end.
        data: for each run its name and [epoch, value, formatted value] by point.
    """

    title: str
    last_values: str
    description: str
    frame: list[float]
    data: list[tuple[str, list[tuple[float, float, str]]]]
    value_ticks: list[RuledLabel]
    epoch_ticks: list[Label]
    baselines: list[RuledLabel]
    lines: list[Line]


@dataclass(frozen=True)
class CurvesSection:
    """What templates/curves.html.j2 shows; `key` says which line is which run, empty for a single run."""

    key: list[tuple[str, LineStyle]]
    curves: list[Curve]
    left: int = LEFT
    right: int = RIGHT
    top: int = TOP
    bottom: int = BOTTOM
    width: int = WIDTH
    height: int = HEIGHT


def curves_section(runs: Sequence[Run]) -> CurvesSection | None:
    """Return a plot for each logged quantity; None if nothing was logged."""
    curves = [_curve(panel) for panel in curve_panels(runs)]
    if not curves:
        return None
    key = []
    if len(runs) > 1:
        key = [(run.name, _line_style(style)) for style, run in enumerate(runs)]
    return CurvesSection(key, curves)


@dataclass(frozen=True)
class _Axes:
    """The range of epochs and values that a plot shows, and how they become coordinates."""

    first: float
    last: float
    low: float
    high: float

    def x(self, epoch: float) -> float:
        # Hundredths of a pixel suffice, and keep the page small.
        return round(LEFT + (epoch - self.first) / (self.last - self.first) * (RIGHT - LEFT), 2)

    def y(self, value: float) -> float:
        return round(TOP + (self.high - value) / (self.high - self.low) * (BOTTOM - TOP), 2)


def _curve(panel: Panel) -> Curve:
    epochs = []
    values = [level.value for level in panel.levels]
    for series in panel.series:
        epochs += [epoch for epoch, _ in series.points]
        values += [value for _, value in series.points]
    (low, high), ticks = rounded_range(min(values), max(values))
    first = 0.0
    last = max(*epochs, MIN_EPOCHS)
    axes = _Axes(first, last, low, high)
    value_ticks = []
    for tick in ticks:
        if low <= tick <= high:
            y = axes.y(tick)
            value_ticks.append(RuledLabel(y, Label(panel.format_value(tick), LEFT - 8, y + 3.5)))
    baselines = []
    for level in panel.levels:
        y = axes.y(level.value)
        baselines.append(RuledLabel(y, Label(level.name, LEFT + 4, y - 4)))
    lines = []
    data = []
    last_values = []
    for series in panel.series:
        _, last_value = series.points[-1]
        last_values.append(panel.format_value(last_value))
        data.append((series.name, _point_data(panel, series)))
        lines.append(_line(series, axes))
    labels = []
    for tick in epoch_ticks(first, last):
        labels.append(Label(format_number(tick), axes.x(tick), HEIGHT - 8))
    return Curve(
        title=panel.title,
        last_values="  ".join(last_values),
        description=_description(panel),
        frame=[first, last, LEFT, RIGHT, low, high, TOP, BOTTOM],
        data=data,
        value_ticks=value_ticks,
        epoch_ticks=labels,
        baselines=baselines,
        lines=lines,
    )


def _line(series: Series, axes: _Axes) -> Line:
    points = [(axes.x(epoch), axes.y(value)) for epoch, value in series.points]
    path = "M" + " ".join(f"{x},{y}" for x, y in points)
    marked = points
    if len(points) > MAX_MARKED_POINTS:
        # Markers at hundreds of points would hide the line.
        marked = points[-1:]
    return Line(path, marked, _line_style(series.style))


def _line_style(style: int) -> LineStyle:
    color = style % NUM_COLORS
    # Runs of one color have different dashes: 36 runs can be told apart.
    dashes = (style + style // NUM_COLORS) % len(DASHES)
    return LineStyle(f"line run-{color}", DASHES[dashes])


def _point_data(panel: Panel, series: Series) -> list[tuple[float, float, str]]:
    data = []
    for epoch, value in series.points:
        # Six digits suffice to draw, and keep the page small.
        data.append((round(epoch, 4), float(f"{value:.6g}"), panel.format_value(value)))
    return data


def _description(panel: Panel) -> str:
    parts = []
    for series in panel.series:
        first = panel.format_value(series.points[0][1])
        last_epoch, last_value = series.points[-1]
        last = panel.format_value(last_value)
        parts.append(f"{series.name}: {first} to {last} at epoch {format_number(round(last_epoch, 2))}")
    return f"{panel.title}. {'; '.join(parts)}"
