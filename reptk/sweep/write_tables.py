"""A comparison of settings as files: STEM.csv (a line per setting), runs.csv (a line per run), STEM.md and STEM.json (all)."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from reptk.core.csv_cells import escape_formula
from reptk.core.files import json_text, write_text
from reptk.core.metric_names import display_name
from reptk.core.printable_names import in_one_line
from reptk.core.progress_lines import format_duration
from reptk.sweep.comparison_table import ComparisonTable, SettingRow, SettingRun
from reptk.sweep.seed_statistics import MEANINGS, Estimate
from reptk.sweep.table_texts import (
    FAILED,
    count_text,
    difference_heading,
    difference_text,
    footnotes,
    format_estimate,
    interval_text,
    mean_text,
    setting_name,
)

SCHEMA = 1
RUNS_FILE = "runs.csv"


def write_tables(
    folder: Path, stem: str, table: ComparisonTable, *, title: str, facts: Mapping[str, Any], notes: Sequence[str] = ()
) -> list[Path]:
    """Write all files of a table; each is replaced as a whole.

    Args:
        folder: that exists.
        stem: of the files' names, e.g. "sweep".
        table: see `build_table`.
        title: of the Markdown file.
        facts: what else STEM.json holds, e.g. the command.
        notes: lines of the Markdown file about what makes the comparison doubtful.

    Returns:
        The paths.
    """
    contents = {
        f"{stem}.csv": settings_csv(table),
        RUNS_FILE: runs_csv(table),
        f"{stem}.md": markdown(table, title, notes),
        f"{stem}.json": json_text(as_json(table, facts), indent=2) + "\n",
    }
    for name, text in contents.items():
        # A name of a file may hold bytes that are not UTF-8.
        write_text(folder / name, text.encode("utf-8", "backslashreplace").decode())
    return [folder / name for name in contents]


def file_names(stem: str) -> list[str]:
    """Return the names of what `write_tables` writes."""
    return [f"{stem}.csv", RUNS_FILE, f"{stem}.md", f"{stem}.json"]


def settings_csv(table: ComparisonTable) -> str:
    """Return a line for each setting: every metric with its interval, and its difference to the reference.

    `n` counts the runs with a result, `failed` those without.
    """
    heads = ["setting", "n", "failed", "seeds", "seconds", "compared_with"]
    for metric in table.metrics:
        heads += [metric, f"{metric} low", f"{metric} high", f"{metric} interval over"]
        heads += [f"{metric} difference", f"{metric} difference low", f"{metric} difference high"]
        heads += [f"{metric} difference over", f"{metric} difference n"]
    lines: list[list[object]] = [heads]
    for row in table.rows:
        reference = ""
        if row.runs and row.setting != table.reference:
            reference = table.reference or ""
        cells: list[object] = [setting_name(row), len(row.runs), len(row.failed), " ".join(map(str, row.seeds))]
        cells += [_number(row.seconds), reference]
        for metric in table.metrics:
            cells += _estimate_cells(row.metrics.get(metric))
            difference = row.differences.get(metric)
            cells += _estimate_cells(difference)
            cells.append(difference.count if difference is not None else "")
        lines.append(cells)
    return _csv_text(lines)


def runs_csv(table: ComparisonTable) -> str:
    """Return a line for each run: setting, seed, folder, seconds, every metric, and why it has failed if it has."""
    lines: list[list[object]] = [["setting", "seed", "folder", "seconds", *table.metrics, "failed"]]
    for item in _runs(table):
        metrics = item.run.results.main_metrics
        seconds = item.run.results.protocol.get("train_seconds", "")
        cells: list[object] = [item.setting, item.seed_text, str(item.run.folder), seconds]
        cells += [metrics.get(metric, "") for metric in table.metrics]
        lines.append([*cells, ""])
    for failed in table.failed:
        empty = [""] * len(table.metrics)
        lines.append([failed.setting, failed.seed, "", "", *empty, in_one_line(failed.reason)])
    return _csv_text(lines)


def markdown(table: ComparisonTable, title: str, notes: Sequence[str] = ()) -> str:
    """Return the main columns as a Markdown table, with footnotes, notes, and the runs that failed."""
    heads = ["setting", "n", *(f"{display_name(metric)} %" for metric in table.columns)]
    if table.has_differences:
        heads.insert(3, f"{display_name(table.headline)} {difference_heading(table)}")
    heads.append("time")
    lines = [f"# {_in_markdown(title)}", "", _markdown_row(heads), "|" + "---|" * len(heads)]
    for row in table.rows:
        headline = f"{mean_text(row, table.headline)} {interval_text(row, table)}".strip()
        if not row.runs:
            headline = FAILED
        cells = [setting_name(row), count_text(row), headline]
        if table.has_differences:
            cells.append(difference_text(row, table))
        cells += [format_estimate(row.metrics.get(metric)) for metric in table.columns[1:]]
        duration = ""
        if not math.isnan(row.seconds):
            duration = format_duration(row.seconds)
        cells.append(duration)
        lines.append(_markdown_row(cells))
    lines.append("")
    for name, metrics in table.baselines.items():
        if table.headline in metrics:
            lines.append(f"- {name}: {display_name(table.headline)} {100 * metrics[table.headline]:.1f} %")
    lines += [f"- {line}" for line in footnotes(table)]
    lines += [f"- note: {_in_markdown(line)}" for line in notes]
    for failed in table.failed:
        lines.append(f"- no result of {_in_markdown(failed.label)}: {_in_markdown(failed.reason)}")
    return "\n".join(lines) + "\n"


def as_json(table: ComparisonTable, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return everything: settings with their estimates, runs with their metrics, what the kinds of intervals mean."""
    kinds = set()
    settings = []
    for row in table.rows:
        for estimate in [*row.metrics.values(), *row.differences.values()]:
            kinds.add(estimate.kind)
        settings.append(_setting_json(row))
    return {
        "schema": SCHEMA,
        **facts,
        "headline": table.headline,
        "compared_with": table.reference,
        "settings": settings,
        "baselines": table.baselines,
        "failed": {failed.label: failed.reason for failed in table.failed},
        "intervals": {kind: meaning for kind, meaning in MEANINGS.items() if kind in kinds},
    }


def _setting_json(row: SettingRow) -> dict[str, Any]:
    runs = []
    for item in row.runs:
        runs.append(
            {
                "seed": item.seed,
                "start_seed": item.start_seed,
                "folder": str(item.run.folder),
                "seconds": item.run.results.protocol.get("train_seconds"),
                "metrics": item.run.results.main_metrics,
            }
        )
    return {
        "setting": row.setting,
        "n": len(row.runs),
        "seeds": row.seeds,
        "failed_seeds": [failed.seed for failed in row.failed],
        "seconds": row.seconds,
        "metrics": {name: _estimate_json(estimate) for name, estimate in row.metrics.items()},
        "differences": {name: _estimate_json(estimate) for name, estimate in row.differences.items()},
        "runs": runs,
    }


def _estimate_json(estimate: Estimate) -> dict[str, Any]:
    return {
        "value": estimate.mean,
        "low": estimate.low,
        "high": estimate.high,
        "n": estimate.count,
        "interval": estimate.kind,
    }


def _estimate_cells(estimate: Estimate | None) -> list[object]:
    if estimate is None:
        return ["", "", "", ""]
    return [_number(estimate.mean), _number(estimate.low), _number(estimate.high), estimate.kind]


def _number(value: float) -> object:
    if math.isnan(value):
        return ""
    return value


def _runs(table: ComparisonTable) -> list[SettingRun]:
    runs = []
    for row in table.rows:
        runs += row.runs
    return runs


def _csv_text(lines: Sequence[Sequence[object]]) -> str:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    for line in lines:
        writer.writerow([escape_formula(cell) for cell in line])
    return file.getvalue()


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(_in_markdown(cell) for cell in cells) + " |"


def _in_markdown(text: str) -> str:
    """Return a text in one line that closes no cell of a table, and that a browser does not take for HTML."""
    return in_one_line(text).replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")
