"""A table of runs at hand: reptk compare runs/supcon_digits/1 runs/supcon_digits/2 runs/tcl_sup_digits"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from reptk.config.plugins import load_plugin
from reptk.core.command_line import ArgumentParser, add_plugin_options, run_command
from reptk.core.counts import format_count
from reptk.core.errors import EnvironmentProblem, UsageError

EXAMPLES = """examples:
  reptk compare runs/supcon_digits/1 runs/tcl_sup_digits/1
  reptk compare runs/supcon_digits runs/tcl_sup_digits          # all runs in these folders
  reptk compare runs/sweeps/supcon_digits,loss.temperature,seed --out table

Runs whose recipes differ in the seed alone are one setting, with the mean and the 95 % interval over its seeds. Differences
are of the same seeds in pairs, or of the same queries in pairs where settings have one run each. An asterisk marks a
difference whose interval over seeds does not contain 0.
"""

STEM = "comparison"
REPORT_FILE = "report.html"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    if arguments is None:
        arguments = sys.argv[1:]
    command = shlex.join(["reptk", "compare", *arguments])
    return run_command(lambda: _run(_parse(arguments), command))


def _run(args: argparse.Namespace, command: str) -> int:
    # Imported late, so that --help does not wait for torch.
    from reptk.sweep.comparison_page import write_page
    from reptk.sweep.comparison_table import build_table
    from reptk.sweep.group_runs import find_runs, group_runs
    from reptk.sweep.print_table import print_table
    from reptk.sweep.write_tables import file_names, write_tables

    if args.report and args.out is None:
        raise UsageError("--report needs --out, the folder to write it to")
    if args.out is not None:
        _check_out(args.out, [*file_names(STEM), REPORT_FILE], force=args.force)
    for plugin in args.plugin:
        load_plugin(plugin)
    grouped = group_runs(find_runs(args.run))
    table = build_table(grouped.runs, metric=args.metric, reference=args.against)
    print(f"{format_count(len(grouped.runs), 'run')}, {format_count(len(table.rows), 'setting')}")
    if grouped.differences:
        print("what differs:")
        for line in grouped.differences:
            print(f"  {line}")
    elif len(table.rows) == 1:
        print("the recipes are the same but for the seed")
    for line in grouped.warnings:
        print(f"note: {line}")
    print()
    print_table(table)
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
        facts = {"command": command, "differences": grouped.differences, "warnings": grouped.warnings}
        paths = write_tables(args.out, STEM, table, title=command, facts=facts, notes=grouped.warnings)
        print()
        print(f"  tables   {', '.join(map(str, paths))}")
        if args.report:
            print(f"  {write_page(table, args.out, title=command, trust=args.trust)}")
    return 0


def _check_out(out: Path, names: Sequence[str], *, force: bool) -> None:
    if out.exists() and not out.is_dir():
        raise EnvironmentProblem(f"cannot write tables to {out}: it is no folder. Choose another --out")
    present = [name for name in names if (out / name).exists()]
    if present and not force:
        raise UsageError(f"{out / present[0]} exists. Choose another --out, or write over it: --force")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(
        prog="reptk compare",
        description="Compare runs in one table: means over seeds, differences, 95 % intervals.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "run",
        nargs="+",
        type=Path,
        help="a run's folder, a folder of runs, a sweep, or what reptk evaluate --out has written",
    )
    parser.add_argument("--metric", help="the metric to sort by; default: the headline of the runs")
    parser.add_argument(
        "--against", choices=("best", "first"), default="best", help="the setting that others are compared with"
    )
    parser.add_argument("--out", type=Path, help=f"a folder for the table: {STEM}.csv, .md and .json, and runs.csv")
    parser.add_argument(
        "--report", action="store_true", help=f"also write {REPORT_FILE} there: the settings, and a run of each"
    )
    parser.add_argument("--force", action="store_true", help="write over tables that exist")
    add_plugin_options(parser)
    return parser.parse_args(arguments)
