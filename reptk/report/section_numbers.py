"""All metrics: of one run next to its baselines, or of several runs next to each other."""

from collections.abc import Sequence
from dataclasses import dataclass

from reptk.core.metric_names import display_name
from reptk.report.formatting import format_interval, format_points, format_share
from reptk.report.run_comparison import Difference, difference
from reptk.report.run_files import Run, SavedResults

MEANINGS = {
    "more": "higher, significant at 95 %",
    "less": "lower, significant at 95 %",
    "same": "not significant at 95 %",
}
METHODS = {"paired": "paired bootstrap over the queries", "intervals": "the 95 % intervals of the two"}

MAX_FIRST_METRICS = 8
"""Metrics that are shown next to the headline; the others are in a list that the reader opens."""

TELLING_FAMILIES = (
    "accuracy",
    "linear",
    "linear_stage",
    "few_shot",
    "knn",
    "recall",
    "map@r",
    "r_precision",
    "mrr",
    "precision",
    "view_recall",
)
"""Families of metrics of which the first one is shown; each answers another question."""


@dataclass(frozen=True)
class DifferenceMark:
    """Whether a difference is beyond its interval: `kind` is "more", "less" or "same"."""

    kind: str
    meaning: str
    bounds: str


@dataclass(frozen=True)
class Cell:
    """A cell of the table: a value, emphasized if it is that of a run's main row; or a difference with its mark."""

    text: str
    is_main: bool = False
    interval: str = ""
    mark: DifferenceMark | None = None


@dataclass(frozen=True)
class MetricRow:
    """One metric."""

    name: str
    cells: list[Cell]
    is_headline: bool


@dataclass(frozen=True)
class NumbersSection:
    """What templates/numbers.html.j2 shows.

    Args:
        baseline: the run that the others are compared with; empty for a single run.
        judged_by: how differences are judged; empty if none has an interval.
        caption: of the table, for screen readers.
        label: of the box that scrolls.
        rows: the headline and the most telling metrics.
        more_rows: the other metrics.
    """

    baseline: str
    judged_by: str
    caption: str
    label: str
    heads: list[str]
    rows: list[MetricRow]
    more_rows: list[MetricRow]


def numbers_section(runs: Sequence[Run]) -> NumbersSection | None:
    """Return the table of all metrics; None if there are none."""
    if not any(run.results.metrics for run in runs):
        return None
    if len(runs) == 1:
        return _single_run(runs[0].results)
    return _several_runs(runs)


def shown_metrics(results: Sequence[SavedResults]) -> list[str]:
    """Return the metrics in the order of the results, but the headline first, majority votes and deviations last."""
    names: dict[str, None] = {}
    for saved in results:
        for metrics in saved.metrics.values():
            names |= dict.fromkeys(metrics)
    headline = results[0].headline

    def sort_key(name: str) -> tuple[bool, bool, bool]:
        # False sorts before True.
        return name != headline, name.startswith("knn_majority"), _is_standard_deviation(name)

    return sorted(names, key=sort_key)


def first_metrics(names: Sequence[str], headline: str) -> list[str]:
    """Return the headline and the `MAX_FIRST_METRICS` most telling other metrics, in the order of `names`."""
    # The first metric of each family comes before the second of any.
    ranked = [headline]
    for family in TELLING_FAMILIES:
        members = [name for name in names if name == family or name.startswith(f"{family}@")]
        members = [name for name in members if name not in ranked]
        if "knn@1" in ranked and "recall@1" in members:
            # The vote of a single neighbor: the same number under another name.
            members.remove("recall@1")
        ranked += members[:1]
    repetitions = [name for name in names if name.startswith("knn_majority") or _is_standard_deviation(name)]
    if "knn@1" in ranked:
        repetitions.append("recall@1")
    ranked += [name for name in names if name not in repetitions]
    # A dict keeps the first of equal names.
    telling = list(dict.fromkeys(name for name in ranked if name in names))
    chosen = telling[: MAX_FIRST_METRICS + 1]
    return [name for name in names if name in chosen]


def _single_run(results: SavedResults) -> NumbersSection:
    baselines = results.baseline_rows
    has_intervals = results.main_row in results.intervals
    labels = [results.label_of(row) for row in baselines]
    heads = ["metric", *labels, results.main_row]
    if has_intervals:
        heads.append("95 % interval")
    heads += [f"over {label}" for label in labels]
    rows = {}
    for metric in shown_metrics([results]):
        cells = [Cell(format_share(results.metrics[row].get(metric))) for row in baselines]
        cells.append(Cell(format_share(results.main_metrics.get(metric)), is_main=True))
        if has_intervals:
            cells.append(Cell(format_interval(results.main_intervals.get(metric))))
        cells += [_gain_cell(results, row, metric) for row in baselines]
        rows[metric] = MetricRow(display_name(metric), cells, metric == results.headline)
    judged_by = ""
    if results.gains:
        judged_by = METHODS["paired"]
    first, others = _split_rows(rows, results.headline)
    return NumbersSection("", judged_by, "Metrics, in percent", "Metrics", heads, first, others)


def _split_rows(rows: dict[str, MetricRow], headline: str) -> tuple[list[MetricRow], list[MetricRow]]:
    """Return the rows that are shown first, and the others."""
    chosen = first_metrics(list(rows), headline)
    first = [rows[metric] for metric in chosen]
    others = [row for metric, row in rows.items() if metric not in chosen]
    return first, others


def _gain_cell(results: SavedResults, row: str, metric: str) -> Cell:
    """Return the gain of the main row over a baseline."""
    if _is_standard_deviation(metric):
        return Cell("")
    # The evaluation saved a paired interval; old results have values only.
    gain = results.gains.get(row, {}).get(metric)
    if gain is not None:
        value, low, high = gain
        return _difference_cell(Difference(value, low, high, "paired"))
    main = results.main_metrics.get(metric)
    baseline = results.metrics[row].get(metric)
    if main is None or baseline is None:
        return Cell("")
    return Cell(format_points(main - baseline))


def _several_runs(runs: Sequence[Run]) -> NumbersSection:
    baseline = runs[0]
    heads = ["metric", baseline.name]
    for run in runs[1:]:
        heads += [run.name, f"over {baseline.name}"]
    rows = {}
    for metric in shown_metrics([run.results for run in runs]):
        cells = [_value_cell(baseline, metric)]
        for run in runs[1:]:
            gap = None
            if not _is_standard_deviation(metric):
                gap = difference(run, baseline, metric)
            cells += [_value_cell(run, metric), _difference_cell(gap)]
        rows[metric] = MetricRow(display_name(metric), cells, metric == baseline.results.headline)
    first, others = _split_rows(rows, baseline.results.headline)
    return NumbersSection(
        baseline.name,
        _judged_by(runs),
        "Metrics of the runs, in percent",
        "Metrics of the runs",
        heads,
        first,
        others,
    )


def _judged_by(runs: Sequence[Run]) -> str:
    """Return how the differences of the runs to the first are judged."""
    used = set()
    for run in runs[1:]:
        for metric in run.results.main_metrics:
            gap = difference(run, runs[0], metric)
            if gap is not None:
                # The note explains the marks that the table contains.
                used.add(gap.method)
    texts = []
    for method, text in METHODS.items():
        if method in used:
            texts.append(text)
    return ", or by ".join(texts)


def _value_cell(run: Run, metric: str) -> Cell:
    value = format_share(run.results.main_metrics.get(metric))
    interval = format_interval(run.results.main_intervals.get(metric))
    return Cell(value, is_main=True, interval=interval)


def _difference_cell(gap: Difference | None) -> Cell:
    """Return a difference; with a mark if it has an interval."""
    if gap is None:
        return Cell("")
    if not gap.method:
        return Cell(format_points(gap.value))
    if not gap.is_significant:
        kind = "same"
    elif gap.value > 0:
        kind = "more"
    else:
        kind = "less"
    bounds = f"{format_points(gap.low)} to {format_points(gap.high)}"
    return Cell(format_points(gap.value), mark=DifferenceMark(kind, MEANINGS[kind], bounds))


def _is_standard_deviation(metric: str) -> bool:
    """Return whether the metric says how much another varies, so that more of it is not better."""
    return "_std" in metric
