"""The page that compares runs: one of each of the best settings."""

from collections.abc import Sequence
from pathlib import Path

from reptk import report
from reptk.core.errors import ReptkError
from reptk.sweep.comparison_table import SettingRow

FILE = "report.html"

MAX_SETTINGS = 6
"""A page of more runs can hardly be read."""


def write_page(rows: Sequence[SettingRow], folder: Path, *, trust: bool = False) -> str:
    """Write the page of the first run of each of the first settings, and return a line about it.

    If it cannot be drawn, e.g. since the images are gone, the line says why; the tables are there.

    Args:
        rows: the best first.
        folder: where to write it.
        trust: execute the plugin files in the folders of the runs.
    """
    shown = rows[:MAX_SETTINGS]
    folders = [row.runs[0].run.folder for row in shown]
    try:
        path = report.write(folders, folder / FILE, force=True, trust=trust)
    except (ReptkError, OSError) as cause:
        return f"no report: {cause}"
    line = f"report   {path}"
    if len(rows) > len(shown):
        line += f" (a run of each of the best {len(shown)} settings of {len(rows)})"
    return line
