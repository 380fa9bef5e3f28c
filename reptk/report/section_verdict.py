"""The top of the page: the verdict in a sentence, and the headline metric on a scale from 0 to 100 %."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from reptk import config
from reptk.core.metric_names import display_name
from reptk.evaluate.verdict import baseline_name
from reptk.report.formatting import format_interval, format_percent, format_points, format_position
from reptk.report.recipe_diff import differing_keys, format_value, recipe_values
from reptk.report.run_comparison import difference, have_same_data
from reptk.report.run_files import Run
from reptk.report.section_settings import ComparedSettings

MAX_DIFFERENCES = 8
"""Keys in the table of what differs between runs; all of them are in the section on the recipe."""

NO_VALUE = "\u2013"
"""Of a key that a run's recipe does not have."""

LEVELS = ("good", "fair", "poor")


@dataclass(frozen=True)
class RulerLine:
    """One row on the scale; positions are CSS percentages.

    Args:
        low, high: ends of the interval; empty without one.
        is_main: whether the row is what a run is about, not a baseline.
    """

    label: str
    value: str
    interval: str
    position: str
    low: str
    high: str
    is_main: bool


@dataclass(frozen=True)
class Headline:
    """The headline metric of the best run, and of all rows on the scale; `run` is empty for a single run."""

    value: str
    metric: str
    interval: str
    run: str
    ruler: list[RulerLine]


@dataclass(frozen=True)
class RunDifferences:
    """What distinguishes several runs: the keys in which their recipes differ, and each run's name with its values.

    Args:
        num_more: further keys, which the table does not have.
    """

    keys: list[str]
    rows: list[tuple[str, list[str]]]
    num_more: int


@dataclass(frozen=True)
class VerdictSection:
    """What templates/verdict.html.j2 shows.

    Args:
        level: "good", "fair" or "poor"; empty without a verdict.
        about: what was run on what.
        status: of a run that is not finished, else empty.
        advice: what to do next; None without a verdict.
        headline: None if there are no numbers yet.
        differences: of several runs; None for one run, or without recipes.
        setting_differences: of settings: lines that say what differs between them.
    """

    level: str
    about: str
    status: str
    sentence: str
    advice: list[str] | None
    headline: Headline | None
    differences: RunDifferences | None
    setting_differences: Sequence[str] = ()


def verdict_section(runs: Sequence[Run], settings: ComparedSettings | None = None) -> VerdictSection:
    """Return the verdict on a run as it was saved, or the comparison of several runs, or of settings, in a sentence."""
    if settings is not None:
        return _settings_verdict(runs, settings)
    run = runs[0]
    level = ""
    sentence = ""
    advice = None
    if len(runs) == 1 and run.results.verdict is not None:
        verdict = run.results.verdict
        sentence = verdict.sentence
        advice = verdict.advice
        if verdict.level in LEVELS:
            level = verdict.level
    if not sentence and len(runs) == 1:
        sentence = _sentence_from_numbers(run)
    elif not sentence:
        sentence = _comparison_sentence(runs)
    # A finished run needs no remark.
    status = run.status
    if status == "finished":
        status = ""
    return VerdictSection(
        level=level,
        about=_about(runs),
        status=status,
        sentence=sentence,
        advice=advice,
        headline=_headline(runs),
        differences=_differences(runs),
    )


def _settings_verdict(runs: Sequence[Run], settings: ComparedSettings) -> VerdictSection:
    """Return the comparison of settings in a sentence; the scale of single runs would say something else."""
    return VerdictSection(
        level="",
        about="  \u00b7  ".join(part for part in (settings.about, str(runs[0].data_part.get("name", ""))) if part),
        status="",
        sentence=settings.sentence,
        advice=None,
        headline=None,
        # The settings say what differs; a table of all their runs would repeat it for each seed.
        differences=None if settings.differences else _differences(runs),
        setting_differences=settings.differences,
    )


def _differences(runs: Sequence[Run]) -> RunDifferences | None:
    """Return the keys in which the recipes of several runs differ, with the values of each run."""
    if len(runs) == 1 or not any(run.recipe for run in runs):
        return None
    all_values = [recipe_values(run) for run in runs]
    keys = differing_keys(all_values)
    # Which parts were used says more than their arguments. Sorting is stable.
    keys.sort(key=lambda key: key not in config.PART_NAMES)
    shown = keys[:MAX_DIFFERENCES]
    rows = []
    for run, values in zip(runs, all_values, strict=True):
        texts = [format_value(values[key]) if key in values else NO_VALUE for key in shown]
        rows.append((run.name, texts))
    return RunDifferences(shown, rows, len(keys) - len(shown))


def _about(runs: Sequence[Run]) -> str:
    run = runs[0]
    parts = [run.title]
    if len(runs) > 1:
        parts = [f"{len(runs)} runs compared"]
    parts.append(str(run.data_part.get("name", "")))
    encoder = run.recipe.get("encoder")
    if len(runs) == 1 and isinstance(encoder, dict):
        parts.append(str(encoder.get("backbone") or ""))
    return "  \u00b7  ".join(part for part in parts if part)


def _sentence_from_numbers(run: Run) -> str:
    """Return a sentence on a run that has no verdict."""
    metric = run.results.headline
    value = run.results.main_metrics.get(metric)
    if value is None:
        return f"{run.title} is {run.status or 'not finished'}: there are curves, and no numbers yet."
    comparisons = []
    for row in reversed(run.results.baseline_rows):
        baseline = run.results.metrics[row].get(metric)
        if baseline is None:
            continue
        relation = "above" if value >= baseline else "below"
        comparisons.append(
            f"{_unsigned_points(value - baseline)} points {relation} {baseline_name(row, run.results.protocol)}"
        )
    sentence = f"{display_name(metric)} is {format_percent(value)} %"
    if comparisons:
        sentence += f", {' and '.join(comparisons)}"
    return f"{sentence}."


def _comparison_sentence(runs: Sequence[Run]) -> str:
    """Return which of several runs has the highest headline metric.

    Every run has one seed, so the sentence does not say whether its method is better: an interval over queries says nothing
    about other seeds.
    """
    if not all(have_same_data(run, runs[0]) for run in runs[1:]):
        return f"{len(runs)} runs measured on different images: their numbers cannot be compared."
    metric = runs[0].results.headline
    scored = [run for run in runs if metric and metric in run.results.main_metrics]
    if len(scored) < 2:
        return f"{len(runs)} runs next to each other."
    # Only the two best are compared; the table of numbers has all of them.
    scored.sort(key=lambda run: run.results.main_metrics[metric], reverse=True)
    best, second = scored[:2]
    gap = difference(best, second, metric)
    if gap.value == 0:
        return f"{best.name} and {second.name} have the same {display_name(metric)}."
    within = ""
    if gap.method and not gap.is_significant:
        within = " (within the 95 % interval over the queries)"
    value = format_percent(best.results.main_metrics[metric])
    points = _unsigned_points(gap.value)
    return (
        f"{best.name} has the highest {display_name(metric)}, {value} %, {points} points above {second.name}{within}. "
        "Each is one run; differences between seeds were not measured."
    )


def _unsigned_points(value: float) -> str:
    return format_points(value).lstrip("+")


class _RulerRow(NamedTuple):
    """A row of the metrics before it is formatted."""

    label: str
    value: float
    bounds: tuple[float, float] | None
    is_main: bool


def _headline(runs: Sequence[Run]) -> Headline | None:
    ruler = _ruler(runs)
    if not ruler:
        return None
    metric = runs[0].results.headline
    best = max(runs, key=lambda run: run.results.main_metrics.get(run.results.headline, -1))
    return Headline(
        value=format_percent(best.results.main_metrics.get(metric)),
        metric=display_name(metric),
        interval=format_interval(best.results.main_intervals.get(best.results.headline)),
        run=best.name if len(runs) > 1 else "",
        ruler=ruler,
    )


def _ruler(runs: Sequence[Run]) -> list[RulerLine]:
    """Return the rows of all runs; equal baselines of several runs once."""
    first_run: dict[_RulerRow, str] = {}
    for run in runs:
        for row in _ruler_rows(run, is_comparison=len(runs) > 1):
            first_run.setdefault(row, run.name)
    rows = list(first_run)
    if len(runs) > 1:
        # Sorting is stable, so that runs stay in their order.
        rows.sort(key=lambda row: row.is_main)  # the baselines first, then the runs
    # Baselines of different data have equal labels and different values: the run's name tells them apart.
    labels = [row.label for row in rows]
    lines = []
    for row in rows:
        label = row.label
        if labels.count(label) > 1:
            label = f"{label}, {first_run[row]}"
        lines.append(_ruler_line(label, row))
    return lines


def _ruler_rows(run: Run, *, is_comparison: bool) -> list[_RulerRow]:
    metric = run.results.headline
    rows = []
    for name, metrics in run.results.metrics.items():
        value = metrics.get(metric)
        if value is None or not math.isfinite(value):
            continue
        is_main = name == run.results.main_row
        label = run.results.label_of(name)
        if is_comparison and is_main:
            label = run.name
        rows.append(_RulerRow(label, value, run.results.intervals.get(name, {}).get(metric), is_main))
    return rows


def _ruler_line(label: str, row: _RulerRow) -> RulerLine:
    low = ""
    high = ""
    if row.bounds is not None:
        low, high = map(format_position, row.bounds)
    return RulerLine(
        label=label,
        value=format_percent(row.value),
        interval=format_interval(row.bounds),
        position=format_position(row.value),
        low=low,
        high=high,
        is_main=row.is_main,
    )
