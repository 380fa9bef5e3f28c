"""Metrics of each class, and the classes that are confused most often."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from reptk.core.metric_names import display_name
from reptk.report.formatting import format_number, format_percent, is_finite_number
from reptk.report.per_class import ClassMetrics, ConfusedPair, class_metrics, confusions
from reptk.report.run_files import Run

MAX_ROWS_WITHOUT_SCROLLING = 24
COUNTS = ("bank", "queries")
NOT_A_NUMBER = -1.0
"""What sorts below every share and count."""


@dataclass(frozen=True)
class Head:
    """A column by which the table can be sorted: `kind` is "text" or "number"."""

    name: str
    kind: str
    is_sorted: bool = False


@dataclass(frozen=True)
class Count:
    """A number of images, and the number that it is sorted by."""

    text: str
    sort_value: float


@dataclass(frozen=True)
class Share:
    """A share as a bar; without text if there is no value."""

    text: str
    sort_value: str
    width: str = ""


@dataclass(frozen=True)
class ClassRow:
    """One class."""

    name: str
    counts: list[Count]
    shares: list[Share]


@dataclass(frozen=True)
class ConfusionRow:
    """A class, what it was predicted as, and how often."""

    name: str
    predicted: str
    share: Share
    count: str


@dataclass(frozen=True)
class RunClasses:
    """The table of one run; `title` is its name."""

    title: str
    heads: list[Head]
    rows: list[ClassRow]
    scrolls: bool
    confusions: list[ConfusionRow]


@dataclass(frozen=True)
class ClassesSection:
    """What templates/classes.html.j2 shows."""

    runs: list[RunClasses]


def classes_section(runs: Sequence[Run]) -> ClassesSection | None:
    """Return the tables of the runs that have labels; None if none has."""
    shown = []
    for run in runs:
        metrics = class_metrics(run)
        if metrics.classes:
            shown.append(_run_classes(run, metrics))
    if not shown:
        return None
    return ClassesSection(shown)


def _run_classes(run: Run, metrics: ClassMetrics) -> RunClasses:
    counts = []
    for key in COUNTS:
        # Classes that are counted from predictions have no count of the bank.
        if any(key in table for table in metrics.classes):
            counts.append(key)
    heads = [Head("class", "text")]
    heads += [Head(key, "number") for key in counts]
    # The first metric sorts the table until another heading is clicked.
    for position, metric in enumerate(metrics.metrics):
        heads.append(Head(display_name(metric), "number", is_sorted=position == 0))
    tables = metrics.classes
    if metrics.metrics:
        worst_first = metrics.metrics[0]
        tables = sorted(tables, key=lambda table: _sort_value(table.get(worst_first)))
    return RunClasses(
        title=run.name,
        heads=heads,
        rows=[_class_row(table, counts, metrics.metrics) for table in tables],
        scrolls=len(tables) > MAX_ROWS_WITHOUT_SCROLLING,
        confusions=[_confusion_row(pair) for pair in confusions(run)],
    )


def _class_row(table: dict[str, Any], counts: Sequence[str], metrics: Sequence[str]) -> ClassRow:
    count_cells = []
    for key in counts:
        count_cells.append(Count(format_number(table.get(key, "")), _sort_value(table.get(key))))
    share_cells = [_share(table.get(metric)) for metric in metrics]
    return ClassRow(str(table.get("name", "")), count_cells, share_cells)


def _confusion_row(pair: ConfusedPair) -> ConfusionRow:
    share = pair.count / max(pair.of, 1)
    return ConfusionRow(pair.name, pair.predicted, _share(share), f"{pair.count:,} of {pair.of:,}")


def _share(value: Any) -> Share:
    if not is_finite_number(value):
        return Share("", "-1")
    width = f"{100 * min(max(value, 0), 1):.1f}%"
    return Share(format_percent(value), f"{value:.6f}", width)


def _sort_value(value: Any) -> float:
    if is_finite_number(value):
        return float(value)
    return NOT_A_NUMBER
