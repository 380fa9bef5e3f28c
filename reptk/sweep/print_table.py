"""A comparison of settings on the terminal."""

import math

from rich.console import Console
from rich.table import Table

from reptk.core.counts import format_count
from reptk.core.metric_names import display_name
from reptk.core.progress_lines import format_duration
from reptk.sweep.comparison_table import ComparisonTable, SettingRow
from reptk.sweep.seed_statistics import (
    NO_SPREAD,
    OVER_QUERIES,
    PAIRED_QUERIES,
    UNPAIRED_QUERIES,
    UNPAIRED_SEEDS,
    Estimate,
)

MIN_WIDTH = 140
"""Characters of a line where there is no terminal to fit it to."""

ONE_SETTING = "all runs"
"""What a setting is called if there is no other."""


def print_table(table: ComparisonTable) -> None:
    """Print the main columns of a table, in percent; all of it is in the files."""
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console = Console(highlight=False, markup=False, width=max(console.width, MIN_WIDTH))
    lines = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    # Settings are long and may take several lines; numbers may not.
    lines.add_column("")
    lines.add_column("n", justify="right", no_wrap=True)
    lines.add_column(display_name(table.headline), justify="right", no_wrap=True)
    lines.add_column("95 % interval", no_wrap=True)
    if table.reference is not None and len(table.rows) > 1:
        lines.add_column(difference_heading(table), no_wrap=True)
    for metric in table.columns[1:]:
        lines.add_column(display_name(metric), justify="right", no_wrap=True)
    lines.add_column("time", justify="right", no_wrap=True)
    for row in table.rows:
        lines.add_row(*_cells(row, table))
    console.print(lines)
    for name, metrics in table.baselines.items():
        if table.headline in metrics:
            console.print(f"{name}: {display_name(table.headline)} {100 * metrics[table.headline]:.1f}", soft_wrap=True)
    for line in footnotes(table):
        console.print(line, soft_wrap=True)


def difference_heading(table: ComparisonTable) -> str:
    """Return the heading of the column of differences."""
    if table.reference == table.rows[0].setting:
        return "minus the best"
    return "minus the first run's"


def has_several_seeds(table: ComparisonTable) -> bool:
    """Return whether a setting has more than one run."""
    return any(len(row.runs) > 1 for row in table.rows)


def setting_name(row: SettingRow) -> str:
    """Return what a row is called."""
    return row.setting or ONE_SETTING


def footnotes(table: ComparisonTable) -> list[str]:
    """Return what a reader of the intervals has to know, a line each."""
    lines = []
    single = [row for row in table.rows if len(row.runs) == 1]
    several = [row for row in table.rows if len(row.runs) > 1]
    if several:
        lines.append("n: seeds; 95 % intervals of the mean over seeds (t distribution)")
    if single and several:
        lines.append("(queries): one seed, so its interval is over the queries and says nothing about other seeds")
    elif single:
        lines.append("one seed each: the intervals are over the queries and say nothing about other seeds")
    kinds = set()
    for row in table.rows:
        for estimates in (row.metrics, row.differences):
            if table.headline in estimates:
                kinds.add(estimates[table.headline].kind)
    if NO_SPREAD in kinds:
        lines.append("(equal): all seeds gave the same number, so their spread is not known")
    if any(_is_significant(row, table.headline) for row in table.rows):
        lines.append("*: the interval of the difference does not contain 0")
    if len(table.rows) > 2:
        lines.append(
            f"each difference has its own 95 % interval; of {format_count(len(table.rows) - 1, 'difference')} some may be "
            "beyond it by chance, and the best of many settings looks better than it is"
        )
    return lines


def format_estimate(estimate: Estimate | None, *, is_difference: bool = False) -> str:
    """Return an estimate in percent with its interval, e.g. `97.5 [96.8, 98.2]`."""
    if estimate is None or math.isnan(estimate.mean):
        return ""
    value = f"{100 * estimate.mean:+.1f}" if is_difference else f"{100 * estimate.mean:.1f}"
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


def _is_significant(row: SettingRow, metric: str) -> bool:
    estimate = row.differences.get(metric)
    return estimate is not None and estimate.is_significant


def _cells(row: SettingRow, table: ComparisonTable) -> list[str]:
    headline = row.metrics.get(table.headline)
    cells = [setting_name(row), str(len(row.runs))]
    if headline is None:
        cells += ["", ""]
    else:
        bounds = format_bounds(headline)
        if bounds and headline.kind == OVER_QUERIES and has_several_seeds(table):
            bounds = f"{bounds} (queries)"
        cells += [f"{100 * headline.mean:.1f}", bounds]
    if table.reference is not None and len(table.rows) > 1:
        cells.append(_difference_cell(row, table))
    for metric in table.columns[1:]:
        estimate = row.metrics.get(metric)
        cells.append(f"{100 * estimate.mean:.1f}" if estimate is not None else "")
    if math.isnan(row.seconds):
        cells.append("")
    else:
        cells.append(format_duration(row.seconds))
    return cells


def _difference_cell(row: SettingRow, table: ComparisonTable) -> str:
    if row.setting == table.reference:
        return ""
    estimate = row.differences.get(table.headline)
    if estimate is None:
        return ""
    text = format_estimate(estimate, is_difference=True)
    # Only a difference that has an interval can be told from chance.
    if _is_significant(row, table.headline):
        text = f"{text} *"
    if estimate.kind in (PAIRED_QUERIES, UNPAIRED_QUERIES) and has_several_seeds(table):
        return f"{text} (queries)"
    if estimate.kind == UNPAIRED_SEEDS:
        return f"{text} (unpaired)"
    if estimate.count < len(row.runs):
        return f"{text} (n {estimate.count})"
    return text
