"""The page of a comparison: all settings over their seeds, and a run of each of the best ones."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from reptk import report
from reptk.core.counts import format_count
from reptk.core.errors import ReptkError
from reptk.core.metric_names import display_name
from reptk.core.printable_names import in_one_line
from reptk.core.progress_lines import format_duration
from reptk.report.section_settings import ComparedSetting, ComparedSettings
from reptk.sweep.comparison_table import ComparisonTable, SettingRow, SettingRun, build_table
from reptk.sweep.grid import run_label
from reptk.sweep.group_runs import group_runs
from reptk.sweep.seed_statistics import PAIRED_QUERIES, UNPAIRED_QUERIES, Estimate
from reptk.sweep.table_texts import (
    count_text,
    difference_heading,
    difference_text,
    footnotes,
    interval_text,
    setting_name,
)

FILE = "report.html"

MAX_RUNS = 6
"""A page of more runs can hardly be read; its table has all settings."""


def write_page(table: ComparisonTable, folder: Path, *, title: str, trust: bool = False) -> str:
    """Write the page of a comparison, and return a line about it.

    Besides the settings it has the first run of each of the best ones; of one setting alone, its runs over seeds.
    If it cannot be drawn, e.g. since the images are gone, the line says why; the tables are there.

    Args:
        table: with at least one result.
        folder: where to write it.
        title: of the page.
        trust: execute the plugin files in the folders of the runs.
    """
    runs = _runs_of_page(table)
    try:
        path = report.write(
            [item.run.folder for item in runs],
            folder / FILE,
            force=True,
            trust=trust,
            settings=compared_settings(table, title, runs),
        )
    except (ReptkError, OSError) as cause:
        return f"no report: {cause}"
    line = f"report   {path}"
    rows = table.measured_rows
    if len(rows) > len(runs):
        line += f" (a run of each of the best {len(runs)} settings of {len(rows)})"
    return line


def settings_over_seeds(folders: Sequence[Path]) -> ComparedSettings | None:
    """Return the comparison of the settings of runs, for a page of these runs; None if each of them has a setting of its own.

    Settings cannot be compared either if runs were evaluated on different data, or if some of them cannot be used.
    """
    try:
        grouped = group_runs(folders)
        table = build_table(grouped.runs)
    except ReptkError:
        # The page of the single runs says what can be said of them.
        return None
    # Names go with the runs of the page, one each.
    if len(grouped.runs) != len(folders) or len(table.rows) == len(folders):
        return None
    settings = compared_settings(table, f"{len(folders)} runs", grouped.runs)
    if settings is None:
        return None
    return replace(settings, differences=grouped.differences, notes=[*settings.notes, *grouped.warnings])


def compared_settings(table: ComparisonTable, title: str, runs: Sequence[SettingRun]) -> ComparedSettings | None:
    """Return the table for the page; None if a page of runs says as much: of a single run, or without a common metric.

    Args:
        table: of all settings.
        title: of the page.
        runs: those that the page shows.
    """
    if table.reference is None or (len(table.rows) == 1 and len(table.rows[0].runs) == 1 and not table.failed):
        return None
    heading = ""
    if table.has_differences:
        heading = difference_heading(table)
    notes = footnotes(table)
    for name, metrics in table.baselines.items():
        if table.headline in metrics:
            notes.append(f"{name}: {display_name(table.headline)} {100 * metrics[table.headline]:.1f} %")
    for failed in table.failed:
        notes.append(in_one_line(f"no result of {failed.label}: {failed.reason}"))
    num_runs = sum(len(row.runs) for row in table.rows)
    return ComparedSettings(
        title=title,
        about=f"{format_count(len(table.rows), 'setting')}, {format_count(num_runs, 'run')} with a result",
        sentence=result_sentence(table),
        metric=table.headline,
        difference_heading=heading,
        settings=[_compared_setting(row, table) for row in table.rows],
        notes=notes,
        run_names=[run_label(item.setting, item.seed_text) for item in runs],
    )


def result_sentence(table: ComparisonTable) -> str:
    """Return which setting is the best, and what the interval of the difference to another says."""
    rows = table.measured_rows
    best = rows[0]
    metric = display_name(table.headline)
    name = setting_name(best)
    value = f"{100 * best.metrics[table.headline].mean:.1f} %"
    over = f"over {format_count(len(best.runs), 'seed')}"
    if len(rows) == 1 and len(table.rows) == 1:
        return f"{metric} is {value} {over}."
    if len(rows) == 1:
        return f"Only {name} has a result, so there is nothing to compare: its {metric} is {value} {over}."
    other = rows[1]
    if table.reference not in (best.setting, other.setting):
        other = next(row for row in rows if row.setting == table.reference)
    # One of the two is the reference, and the other has the difference to it.
    estimate, sign = other.differences.get(table.headline), -1
    if estimate is None:
        estimate, sign = best.differences.get(table.headline), 1
    if estimate is None:
        return f"{name} has the highest {metric}: {value} {over}."
    points = 100 * sign * estimate.mean
    if points < 0:
        return (
            f"{name} has the highest mean of {metric}, {value} {over}. On the seeds that both have, {setting_name(other)} is "
            f"{-points:.1f} points above it."
        )
    if not estimate.is_over_seeds:
        return _without_seeds(table, best, other, estimate)
    if not estimate.is_significant:
        return f"{name} and {setting_name(other)} do not differ in {metric} beyond chance."
    return f"{name} leads in {metric}, {points:.1f} points above {setting_name(other)}, more than chance explains."


def _without_seeds(table: ComparisonTable, best: SettingRow, other: SettingRow, estimate: Estimate) -> str:
    """Return the sentence on a difference that has no interval over seeds."""
    metric = display_name(table.headline)
    start = f"{setting_name(best)} has the highest {metric}, {100 * best.metrics[table.headline].mean:.1f} %"
    if len(best.runs) == len(other.runs) == 1:
        return f"{start}, from one seed; differences between seeds were not measured."
    over = f"over {format_count(len(best.runs), 'seed')}"
    if estimate.kind in (PAIRED_QUERIES, UNPAIRED_QUERIES):
        return (
            f"{start} {over}. Its difference to {setting_name(other)} is of one seed; differences between seeds were not "
            "measured."
        )
    return f"{start} {over}; the difference has no interval."


def _runs_of_page(table: ComparisonTable) -> list[SettingRun]:
    rows = table.measured_rows
    if len(rows) == 1:
        return rows[0].runs[:MAX_RUNS]
    return [row.runs[0] for row in rows[:MAX_RUNS]]


def _compared_setting(row: SettingRow, table: ComparisonTable) -> ComparedSetting:
    mean, low, high = math.nan, math.nan, math.nan
    if table.headline in row.metrics:
        mean, low, high = row.metrics[table.headline][:3]
    duration = ""
    if not math.isnan(row.seconds):
        duration = format_duration(row.seconds)
    return ComparedSetting(
        name=setting_name(row),
        count=count_text(row),
        mean=mean,
        low=low,
        high=high,
        values=list(row.values(table.headline).values()),
        interval=interval_text(row, table),
        difference=difference_text(row, table),
        duration=duration,
    )
