"""A comparison of settings on the terminal."""

import math

from rich.console import Console
from rich.table import Table

from reptk.core.metric_names import display_name
from reptk.core.progress_lines import format_duration
from reptk.sweep.comparison_table import ComparisonTable, SettingRow
from reptk.sweep.table_texts import (
    FAILED,
    count_text,
    difference_heading,
    difference_text,
    footnotes,
    interval_text,
    mean_text,
    setting_name,
)

MIN_WIDTH = 140
"""Characters of a line where there is no terminal to fit it to."""


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
    if table.has_differences:
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


def _cells(row: SettingRow, table: ComparisonTable) -> list[str]:
    headline = mean_text(row, table.headline)
    if not row.runs:
        headline = FAILED
    cells = [setting_name(row), count_text(row), headline, interval_text(row, table)]
    if table.has_differences:
        cells.append(difference_text(row, table))
    cells += [mean_text(row, metric) for metric in table.columns[1:]]
    duration = ""
    if not math.isnan(row.seconds):
        duration = format_duration(row.seconds)
    cells.append(duration)
    return cells
