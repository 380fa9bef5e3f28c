"""The numbers of one run, or of several side by side: the headline's ruler, all metrics, classes, confusions, health."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

from reptk.core.metric_names import display_name
from reptk.report.compare import Difference, difference
from reptk.report.html import Html, element
from reptk.report.runs import Results, Run
from reptk.report.words import interval, mark, number, percent, points, scrolled

Cell = Any
TALL = 24
"""Rows of a table that are shown without scrolling."""


def shown_metrics(results: Sequence[Results]) -> list[str]:
    """Metrics in the order of the results, the headline first, majority votes and deviations last."""
    names = list(dict.fromkeys(name for one in results for row in one.metrics.values() for name in row))
    return sorted(
        names, key=lambda name: (name != results[0].headline, name.startswith("knn_majority"), _spreads(name))
    )


def _spreads(metric: str) -> bool:
    """Whether it says how far a number varies: more of it is not better."""
    return "_std" in metric


def ruler(runs: Sequence[Run]) -> Html | None:
    """The headline metric of every row on a scale from 0 to 100 %, with intervals."""
    rows = [row for run in runs for row in _rows(run, len(runs) > 1)]
    rows.sort(key=lambda row: row[3] and len(runs) > 1)  # what all runs are measured against, then the runs
    once = dict.fromkeys(rows)
    names = [label for label, *_ in once]
    named = [
        (f"{label}, {run}" if names.count(label) > 1 else label, *rest)
        for (label, *rest, run) in _with_runs(runs, once)
    ]
    return element("dl", [_ruled(*row) for row in named], class_="ruler") if rows else None


Ruled = tuple[str, float, tuple[float, float] | None, bool]
"""A line of the ruler: label, value, interval, whether it is a run's main row."""


def _rows(run: Run, several: bool) -> list[Ruled]:
    results, metric = run.results, run.results.headline
    return [
        (
            run.name if several and name == results.main else name,
            values[metric],
            results.intervals.get(name, {}).get(metric),
            name == results.main,
        )
        for name, values in results.metrics.items()
        if metric in values and math.isfinite(values[metric])
    ]


def _with_runs(runs: Sequence[Run], rows: Iterable[Ruled]) -> list[tuple[Any, ...]]:
    """Each line with the first run that has it."""
    return [(*row, next(run.name for run in runs if row in _rows(run, len(runs) > 1))) for row in rows]


def _ruled(label: str, value: float, bounds: tuple[float, float] | None, main: bool) -> Html:
    at = f"{100 * min(max(value, 0), 1):.2f}%"
    parts = [element("line", x1="0%", x2="100%", y1="12", y2="12", class_="track")]
    parts.append(element("line", x1="0%", x2=at, y1="12", y2="12", class_="reach"))
    if bounds is not None:
        low, high = (f"{100 * min(max(bound, 0), 1):.2f}%" for bound in bounds)
        parts.append(element("line", x1=low, x2=high, y1="12", y2="12", class_="whisker"))
    parts.append(element("circle", cx=at, cy="12", r="5"))
    drawn = element("svg", *parts, width="100%", height="24", aria_hidden="true")
    said = element("b", percent(value)), element("small", interval(bounds) or None)
    return element(
        "div", element("dt", label), element("dd", drawn), element("dd", *said), class_="main" if main else None
    )


def metrics_table(runs: Sequence[Run]) -> Html:
    """All metrics: of one run beside its baselines, or of several runs beside each other."""
    return _one(runs[0].results) if len(runs) == 1 else _several(runs)


def _one(results: Results) -> Html:
    metrics, others = shown_metrics([results]), [row for row in results.metrics if row != results.main]
    heads = ["%", *others, results.main]
    if results.main in results.intervals:
        heads.append("95 % interval")
    heads += [f"over {row}" for row in others]
    body = []
    for metric in metrics:
        cells: list[Cell] = [_share(results.metrics[row].get(metric)) for row in others]
        cells.append(element("b", _share(results.numbers.get(metric))))
        if results.main in results.intervals:
            cells.append(interval(results.intervals[results.main].get(metric)))
        cells += [_gain(results, row, metric) for row in others]
        body.append((display_name(metric), cells, metric == results.headline))
    return scrolled(table(heads, body, "All metrics, in percent"), label="All metrics")


def _gain(results: Results, row: str, metric: str) -> Cell:
    if _spreads(metric):
        return ""
    gain = results.gains.get(row, {}).get(metric)
    if gain is not None:
        return _difference(Difference(*gain, "paired"))
    ours, theirs = results.numbers.get(metric), results.metrics[row].get(metric)
    return "" if ours is None or theirs is None else points(ours - theirs)


def _several(runs: Sequence[Run]) -> Html:
    metrics, first = shown_metrics([run.results for run in runs]), runs[0]
    heads = ["%", first.name, *(head for run in runs[1:] for head in (run.name, f"over {first.name}"))]
    body = []
    for metric in metrics:
        cells: list[Cell] = [_with_interval(first, metric)]
        for run in runs[1:]:
            gap = None if _spreads(metric) else difference(run, first, metric)
            cells += [_with_interval(run, metric), _difference(gap)]
        body.append((display_name(metric), cells, metric == first.results.headline))
    return scrolled(table(heads, body, "All metrics of the runs, in percent"), label="All metrics of the runs")


def _with_interval(run: Run, metric: str) -> Cell:
    bounds = run.results.intervals.get(run.results.main, {}).get(metric)
    value = _share(run.results.numbers.get(metric))
    return [element("b", value), element("small", interval(bounds))] if bounds else element("b", value)


def _difference(gap: Difference | None) -> Cell:
    """A difference, marked where it exceeds its interval."""
    if gap is None:
        return ""
    if not gap.how:
        return points(gap.value)
    kind = ("more" if gap.value > 0 else "less") if gap.exceeds else "same"
    words = {"more": "more, beyond the interval", "less": "less, beyond the interval", "same": "within the interval"}
    bounds = f"{points(gap.low)} to {points(gap.high)}"
    return element(
        "span", mark(kind), points(gap.value), element("span", f" ({words[kind]}: {bounds})", class_="spoken"),
        class_=f"gap {kind}", title=f"{bounds}, {words[kind]}",
    )  # fmt: skip


def _share(value: float | None) -> str:
    """In percent; what is no share, as it is."""
    return percent(value) if value is None or 0 <= value <= 1 or not math.isfinite(value) else number(value)


def table(
    heads: Sequence[Any], body: Sequence[tuple[Any, Sequence[Cell], bool]], caption: str, **attributes: Any
) -> Html:
    """A table with headers on both sides; a row is (header, cells, whether it stands out)."""
    head = element("tr", [element("th", name, scope="col") for name in heads])
    rows = [
        element(
            "tr",
            element("th", name, scope="row"),
            [element("td", cell) for cell in cells],
            class_="main" if main else None,
        )
        for name, cells, main in body
    ]
    spoken = element("caption", caption, class_="spoken")
    return element("table", spoken, element("thead", head), element("tbody", *rows), **attributes)


def classes_table(run: Run, metrics: Sequence[str], rows: Sequence[dict[str, Any]]) -> Html:
    """One row a class, sortable, its shares as bars; the first of `metrics` sorts it, worst first."""
    heads = [_sorter("class", "text")]
    counts = [key for key in ("bank", "queries") if any(key in row for row in rows)]
    heads += [_sorter(key, "number") for key in counts]
    heads += [_sorter(display_name(name), "number", at == 0) for at, name in enumerate(metrics)]
    body = []
    for row in sorted(rows, key=lambda row: _sortable(row.get(metrics[0])) if metrics else 0):
        cells = [element("span", number(row.get(key, "")), data_value=_sortable(row.get(key))) for key in counts]
        cells += [_bar(row.get(name)) for name in metrics]
        body.append((row.get("name", ""), cells, False))
    made = table(heads, body, f"Classes of {run.name}", class_="sortable classes")
    return scrolled(made, label="Classes", class_="tall" if len(rows) > TALL else "")


def _sorter(name: str, kind: str, sorted_by: bool = False) -> Html:
    state = "up" if sorted_by else "none"
    return element("button", name, type="button", data_kind=kind, data_order=state)


def _bar(value: Any) -> Html:
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        return element("span", "", data_value="-1")
    width = f"{100 * min(max(value, 0), 1):.1f}%"
    track = element("rect", width="100%", height="6", rx="3", class_="track")
    full = element("rect", width=width, height="6", rx="3", class_="full")
    drawn = element("svg", track, full, width="100%", height="6", class_="bar", aria_hidden="true")
    return element("span", element("span", percent(value)), drawn, data_value=f"{value:.6f}", class_="barred")


def _sortable(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else -1.0


def confusions_list(rows: Sequence[tuple[str, str, int, int]]) -> Html:
    """Worst first: (class, taken for, count, of how many)."""
    items = []
    for name, taken_for, count, of in rows:
        pair = element("span", element("b", name), " taken for ", element("b", taken_for), class_="pair")
        share = count / max(of, 1)
        items.append(element("li", pair, _bar(share), element("span", f"{count:,} of {of:,}", class_="note")))
    return element("ol", *items, class_="confusions")


def health_table(runs: Sequence[Run]) -> Html | None:
    """What the embeddings look like, in numbers and in words."""
    columns = [(run, row) for run in runs for row in run.results.health]
    if not columns:
        return None
    keys = list(dict.fromkeys(key for run, row in columns for key in run.results.health[row] if key in HEALTH))
    heads = ["", *(row if len(runs) == 1 else f"{run.name}: {row}" for run, row in columns), "what it says"]
    body = []
    for key in keys:
        cells: list[Cell] = [_healthy(key, run.results.health[row]) for run, row in columns]
        body.append((HEALTH[key][0], [*cells, element("span", HEALTH[key][1], class_="words")], False))
    return scrolled(table(heads, body, "Health of the embeddings", class_="health"), label="Health of the embeddings")


HEALTH = {
    "alignment": (
        "alignment",
        "Squared distance of images that belong together: 0, they lie in one place; 2, no nearer than by chance.",
    ),
    "uniformity": (
        "uniformity",
        "How evenly the embeddings cover the sphere: 0 is collapse, lower is more even, about \u22124 the best.",
    ),
    "rank": ("rank", "Dimensions in use (RankMe). A few of many: collapse; much that could be told apart is not."),
    "std": ("deviation", "How far a dimension spreads over the images: 1, all are used evenly; near 0, collapse."),
}


def _healthy(key: str, values: dict[str, float]) -> str:
    if key == "rank" and values.get("dimensions"):
        return f"{values[key]:.0f} of {values['dimensions']:.0f}"
    return number(values.get(key, math.nan))
