"""What the cells and footnotes of a comparison say, in the same words on the terminal and in Markdown."""

import math

from reptk.core.counts import format_count
from reptk.sweep.comparison_table import ComparisonTable, SettingRow
from reptk.sweep.seed_statistics import (
    NO_SPREAD,
    OVER_QUERIES,
    PAIRED_QUERIES,
    UNPAIRED_QUERIES,
    UNPAIRED_SEEDS,
    Estimate,
)

ONE_SETTING = "all runs"
"""What a setting is called if nothing distinguishes it."""

FAILED = "failed"
"""In place of the number of a setting that has no result."""


def setting_name(row: SettingRow) -> str:
    """Return what a row is called."""
    return row.setting or ONE_SETTING


def count_text(row: SettingRow) -> str:
    """Return how many runs a row is of, e.g. `3`, or `2 of 3` if one of three has no result."""
    if not row.failed:
        return str(len(row.runs))
    return f"{len(row.runs)} of {len(row.runs) + len(row.failed)}"


def difference_heading(table: ComparisonTable) -> str:
    """Return the heading of the column of differences."""
    if table.reference == table.rows[0].setting:
        return "minus the best"
    return "minus the first run's"


def mean_text(row: SettingRow, metric: str) -> str:
    """Return a metric of a row in percent without its interval; empty if the row lacks it."""
    estimate = row.metrics.get(metric)
    if estimate is None or math.isnan(estimate.mean):
        return ""
    return f"{100 * estimate.mean:.1f}"


def interval_text(row: SettingRow, table: ComparisonTable) -> str:
    """Return the interval of the headline metric, and what it is over if others are over seeds."""
    estimate = row.metrics.get(table.headline)
    if estimate is None:
        return ""
    bounds = format_bounds(estimate)
    if bounds and estimate.kind == OVER_QUERIES and has_several_seeds(table):
        return f"{bounds} (queries)"
    return bounds


def difference_text(row: SettingRow, table: ComparisonTable) -> str:
    """Return the difference of the headline metric with its interval and marks; `footnotes` explains them."""
    estimate = row.differences.get(table.headline)
    if estimate is None:
        return ""
    text = format_estimate(estimate, is_difference=True)
    # Only an interval over seeds says whether other seeds would give another order.
    if estimate.is_significant:
        text = f"{text} *"
    marks = []
    if table.leaves_out_seeds(row, table.headline):
        marks.append(format_count(estimate.count, "shared seed"))
    if estimate.kind in (PAIRED_QUERIES, UNPAIRED_QUERIES) and has_several_seeds(table):
        marks.append("queries")
    if estimate.kind == UNPAIRED_SEEDS:
        marks.append("unpaired")
    if marks:
        text = f"{text} ({', '.join(marks)})"
    return text


def has_several_seeds(table: ComparisonTable) -> bool:
    """Return whether a setting has more than one run."""
    return any(len(row.runs) > 1 for row in table.rows)


def footnotes(table: ComparisonTable) -> list[str]:
    """Return what a reader of the numbers has to know, a line each."""
    rows = table.measured_rows
    lines = []
    if table.failed:
        lines.append("n of m: m runs were started, and those that failed are in no number")
    single = [row for row in rows if len(row.runs) == 1]
    several = [row for row in rows if len(row.runs) > 1]
    if several:
        lines.append("n: seeds; 95 % intervals of the mean over seeds (t distribution)")
    if single and several:
        lines.append("(queries): one seed, so its interval is over the queries and says nothing about other seeds")
    elif single:
        lines.append("one seed each: the intervals are over the queries and say nothing about other seeds")
    if any(item.start_seed is not None for row in rows for item in row.runs):
        lines.append(
            "seed a:b is seed b of a run that starts from one with seed a. Runs that start from the same run are not "
            "independent, so intervals over all of them are too narrow"
        )
    means = [row.metrics[table.headline] for row in rows if table.headline in row.metrics]
    differences = [row.differences[table.headline] for row in rows if table.headline in row.differences]
    if any(estimate.kind == NO_SPREAD for estimate in [*means, *differences]):
        lines.append("(equal): all seeds gave the same number, so their spread is not known")
    if any(_ends_at(estimate, 0, 1) for estimate in means) or any(
        _ends_at(estimate, -1, 1) for estimate in differences
    ):
        lines.append("intervals are cut where the metric ends, at 0 or 100 %: so few seeds say hardly more than that")
    if any(table.leaves_out_seeds(row, table.headline) for row in rows):
        lines.append(
            "(n shared seeds): the difference is the mean over the seeds that both settings have. The means are over all seeds "
            "of each setting, so it is not the difference of the two"
        )
    if any(estimate.kind == UNPAIRED_SEEDS for estimate in differences):
        lines.append("(unpaired): the two settings share no seed, so their means are compared")
    if any(estimate.is_significant for estimate in differences):
        lines.append("*: the interval of the difference over seeds does not contain 0")
    if len(rows) > 2:
        lines.append(
            f"each difference has its own 95 % interval; of {format_count(len(rows) - 1, 'difference')} some may be "
            "beyond it by chance, and the best of many settings looks better than it is"
        )
    return lines


def _ends_at(estimate: Estimate, lowest: float, highest: float) -> bool:
    """Return whether an interval over seeds ends at a bound of what is possible."""
    is_over_queries = estimate.kind in (OVER_QUERIES, PAIRED_QUERIES, UNPAIRED_QUERIES)
    return not is_over_queries and (estimate.low == lowest or estimate.high == highest)


def format_estimate(estimate: Estimate | None, *, is_difference: bool = False) -> str:
    """Return an estimate in percent with its interval, e.g. `97.5 [96.8, 98.2]`."""
    if estimate is None or math.isnan(estimate.mean):
        return ""
    value = f"{100 * estimate.mean:.1f}"
    if is_difference:
        value = f"{100 * estimate.mean:+.1f}"
    interval = format_bounds(estimate, is_difference=is_difference)
    return f"{value} {interval}".strip()


def format_bounds(estimate: Estimate, *, is_difference: bool = False) -> str:
    """Return the ends of an interval in percent, e.g. `[96.8, 98.2]`; empty without one."""
    if estimate.kind == NO_SPREAD:
        return "(equal)"
    if math.isnan(estimate.low) or math.isnan(estimate.high):
        return ""
    if is_difference:
        return f"[{100 * estimate.low:+.1f}, {100 * estimate.high:+.1f}]"
    return f"[{100 * estimate.low:.1f}, {100 * estimate.high:.1f}]"
