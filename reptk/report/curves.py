"""Curves of a training as small SVG pictures, drawn here and read out by the page's script."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from reptk.core.metric_names import display_name
from reptk.report.html import Html, element
from reptk.report.runs import Run
from reptk.report.words import number, percent

WIDTH, HEIGHT = 360, 190
LEFT, RIGHT, TOP, BOTTOM = 46, 14, 10, 26
MOST_POINTS = 300
DASHES = ("", "7 3", "2 3", "9 3 2 3", "5 5", "1 4")
"""Lines are told apart without their colours."""

Point = tuple[float, float]


@dataclass(frozen=True)
class Series:
    """One line of a panel: (epoch, value) in order; `style` is the number of its run."""

    name: str
    style: int
    points: list[Point]


@dataclass(frozen=True)
class Panel:
    """One picture. `levels` are (name, value, run) drawn as horizontal lines: what it is measured against."""

    key: str
    title: str
    series: list[Series]
    levels: list[tuple[str, float, int]]
    write: Callable[[float], str] = number


def panels(runs: Sequence[Run]) -> list[Panel]:
    """What the runs wrote down of their training, without what none has."""
    metric = next((run.results.headline for run in runs if run.results.headline), "") or _metric_of(runs)
    kinds = [("loss", "loss"), (metric, display_name(metric)), ("rank", "dimensions in use")]
    kinds += [("alignment", "alignment"), ("uniformity", "uniformity"), ("std", "deviation of a dimension")]
    kinds += [("lr", "learning rate"), ("views_per_second", "views a second")]
    made = [_panel(runs, key, name) for key, name in kinds if key]
    return [panel for panel in made if panel.series]


def drawn(panel: Panel) -> Html:
    """A panel as a figure that can be focused: arrow keys and the pointer read it out."""
    xs = [x for line in panel.series for x, _ in line.points]
    ys = [y for line in panel.series for _, y in line.points] + [level for _, level, _ in panel.levels]
    (low, high), ticks = _range(min(ys), max(ys))
    last = max(*xs, 1e-9)
    first = 0.0 if len(xs) > 1 or last > 0 else last - 1

    def x_of(x: float) -> float:
        return round(LEFT + (x - first) / (last - first) * (WIDTH - LEFT - RIGHT), 2)

    def y_of(y: float) -> float:
        return round(TOP + (high - y) / (high - low) * (HEIGHT - TOP - BOTTOM), 2)

    lines = [_axis(y_of(tick), panel.write(tick)) for tick in ticks if low <= tick <= high]
    lines += [_below(x_of(tick), number(tick)) for tick in _epochs(first, last)]
    lines += [_level(name, y_of(value), run) for name, value, run in panel.levels]
    lines += [_line(line, x_of, y_of) for line in panel.series]
    lines.append(element("line", class_="rule", y1=TOP, y2=HEIGHT - BOTTOM))
    picture = element(
        "svg", *lines, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=_spoken(panel), tabindex="0",
        data_frame=json.dumps([first, last, LEFT, WIDTH - RIGHT, low, high, TOP, HEIGHT - BOTTOM]),
        data_series=json.dumps([[line.name, _packed(panel, line)] for line in panel.series]),
    )  # fmt: skip
    said = element("output", _ends(panel), data_rest=_ends(panel))
    return element("figure", element("figcaption", element("b", panel.title), said), picture, class_="curve")


def key_of(runs: Sequence[Run]) -> Html | None:
    """Which line is which run, where there are several."""
    if len(runs) == 1:
        return None
    items = [element("li", _sample(at), run.name) for at, run in enumerate(runs)]
    return element("ul", *items, class_="key")


def _panel(runs: Sequence[Run], key: str, name: str) -> Panel:
    series, levels, share = [], [], "@" in key or key in ("map@r", "r_precision", "mrr")
    for at, run in enumerate(runs):
        points = _points(run, key)
        if key == run.results.headline and points and key in run.results.numbers:
            last = max(float(row.get("epoch", 0)) for row in run.rows if _is_number(row.get("epoch", 0)))
            points = [point for point in points if point[0] < last] + [(last, run.results.numbers[key])]
        elif key == run.results.headline and key in run.results.numbers and _points(run, "loss"):
            points = [(_points(run, "loss")[-1][0], run.results.numbers[key])]
        if points:
            series.append(Series(run.name, at, _thinned(points)))
            levels += _baselines(run, key, at) if len(runs) == 1 else []
    return Panel(key, name + (", %" if share else ""), series, levels, _percent if share else number)


def _baselines(run: Run, key: str, at: int) -> list[tuple[str, float, int]]:
    rows = [(name, values.get(key)) for name, values in run.results.metrics.items() if name != run.results.main]
    return [(name, value, at) for name, value in rows if _is_number(value)] if key == run.results.headline else []


def _percent(value: float) -> str:
    return percent(value, 0 if abs(100 * value - round(100 * value)) < 1e-6 else 1)


def _points(run: Run, key: str) -> list[Point]:
    rows = [(row.get("epoch"), row.get(key)) for row in run.rows]
    return sorted((float(x), float(y)) for x, y in rows if _is_number(x) and _is_number(y))


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _metric_of(runs: Sequence[Run]) -> str:
    """The first retrieval number that an unfinished run wrote down."""
    return next((key for run in runs for row in run.rows for key in row if "@" in key), "")


def _thinned(points: list[Point]) -> list[Point]:
    """At most `MOST_POINTS`: means of equally many neighbours."""
    size = -(-len(points) // MOST_POINTS)
    parts = (
        [points[at : at + size] for at in range(0, len(points), size)] if size > 1 else [[point] for point in points]
    )
    return [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in parts]


def _range(low: float, high: float) -> tuple[tuple[float, float], list[float]]:
    """A range with round ends, and round numbers in it."""
    if high - low < 1e-12:
        low, high = low - (abs(low) or 1) / 10, high + (abs(high) or 1) / 10
    rough = (high - low) / 3
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 2.5, 5, 10) if unit * factor >= rough)
    ends = math.floor(low / step), math.ceil(high / step)
    return (ends[0] * step, ends[1] * step), [round(at * step, 12) for at in range(ends[0], ends[1] + 1)]


def _epochs(first: float, last: float) -> list[float]:
    step = next(size * 10**power for power in range(9) for size in (1, 2, 5) if size * 10**power * 6 >= last - first)
    return [tick for tick in range(0, int(last) + 1, step) if tick >= first]


def _axis(y: float, text: str) -> Html:
    grid = element("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y, class_="grid")
    return element("g", grid, element("text", text, x=LEFT - 8, y=y + 3.5, text_anchor="end"))


def _below(x: float, text: str) -> Html:
    return element("text", text, x=x, y=HEIGHT - 8, text_anchor="middle")


def _level(name: str, y: float, run: int) -> Html:
    line = element("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y, class_="level")
    return element("g", line, element("text", name, x=LEFT + 4, y=y - 4, class_="level"))


def _line(line: Series, x_of: Callable[[float], float], y_of: Callable[[float], float]) -> Html:
    style = f"line run-{line.style % len(DASHES)}"
    dots = [element("circle", cx=x_of(x), cy=y_of(y), r="2.5", class_=style) for x, y in line.points[-1:]]
    if len(line.points) <= 20:
        dots = [element("circle", cx=x_of(x), cy=y_of(y), r="2.5", class_=style) for x, y in line.points]
    path = "M" + " ".join(f"{x_of(x)},{y_of(y)}" for x, y in line.points)
    dash = DASHES[line.style % len(DASHES)] or None
    return element("g", element("path", d=path, class_=style, stroke_dasharray=dash), *dots)


def _sample(at: int) -> Html:
    style = f"line run-{at % len(DASHES)}"
    line = element("path", d="M1 6H35", class_=style, stroke_dasharray=DASHES[at % len(DASHES)] or None)
    return element("svg", line, viewBox="0 0 36 12", width="36", height="12", aria_hidden="true")


def _packed(panel: Panel, line: Series) -> list[list[float | str]]:
    return [[round(x, 4), float(f"{y:.6g}"), panel.write(y)] for x, y in line.points]


def _ends(panel: Panel) -> str:
    return "  ".join(panel.write(line.points[-1][1]) for line in panel.series)


def _spoken(panel: Panel) -> str:
    parts = [
        f"{line.name}: {panel.write(line.points[0][1])} to {panel.write(line.points[-1][1])} at epoch "
        f"{number(round(line.points[-1][0], 2))}"
        for line in panel.series
    ]
    return f"{panel.title}. " + "; ".join(parts)
