"""Runs of many settings and seeds, and one table: reptk sweep supcon_digits loss.temperature=0.05,0.1,0.2 seed=0..2"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from reptk.core.command_line import (
    ArgumentParser,
    add_plugin_options,
    integer_from,
    require_single_process,
    run_command,
)
from reptk.core.counts import format_count
from reptk.core.errors import EnvironmentProblem, UsageError

if TYPE_CHECKING:
    from reptk.sweep.comparison_table import FailedRun, SettingRun
    from reptk.sweep.run_sweep import CellRun

EXAMPLES = """examples:
  reptk sweep supcon_digits loss.temperature=0.05,0.1,0.2 seed=0..2
  reptk sweep supcon_digits,tcl_sup_digits seed=0..4 --jobs 2
  reptk sweep tcl_sup_photos loss.k1=10,100,1000 loss.k2=1,2,4 seed=0,1 --random 5
  reptk sweep supcon_cifar100 optim.lr=0.1,0.2 seed=0..2 --gpus 0,1,2,3
  reptk sweep supcon_digits loss.name=supcon,tcl eval.knn.k=[1,20] --dry-run

Commas separate values, and a..b are the integers from a to b. What is in brackets or quotes is one value.
The same command resumes stopped runs and trains new ones; finished runs are skipped.

exit codes: 1 some runs failed, 2 usage or recipe, 3 data, 4 environment, 130 interrupted, 143 stopped by another signal
"""

STEM = "sweep"

SOME_FAILED = 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    if arguments is None:
        arguments = sys.argv[1:]
    command = shlex.join(["reptk", "sweep", *arguments])
    return run_command(lambda: _run(_parse(arguments), command))


def _run(args: argparse.Namespace, command: str) -> int:
    # Imported late, so that --help does not wait for torch.
    from reptk.sweep.grid import load_cells, loading_notes, parse_grid
    from reptk.sweep.run_sweep import CellRun, slots_of
    from reptk.sweep.sweep_folder import assign_folders, default_folder

    require_single_process("reptk sweep starts the processes of its runs itself; start it without torchrun")
    grid = parse_grid(args.recipe, args.pairs)
    cells = load_cells(grid, draws=args.random, draw_seed=args.random_seed, plugins=args.plugin, trust=args.trust)
    slots = slots_of(args.jobs, args.gpus, [cell.recipe.train.device for cell in cells])
    out = args.out or default_folder(grid)
    if out.exists() and not out.is_dir():
        raise EnvironmentProblem(f"cannot write the sweep to {out}: it is no folder. Choose another --out")
    assignment = assign_folders(cells, grid.swept_keys, out)
    runs = [CellRun(cell, folder) for cell, folder in zip(cells, assignment.folders, strict=True)]
    finished = [run for run in runs if run.is_finished]
    if args.metric is not None and finished:
        _check_metric(args.metric, runs, finished[0])
    num_settings = len({cell.setting for cell in cells})
    seeds_text = format_count(len(cells) // num_settings, "seed")
    print(
        f"{format_count(len(runs), 'run')}: {format_count(num_settings, 'setting')} x {seeds_text}  ->  {out}",
        flush=True,
    )
    if args.random is not None:
        print(
            f"{num_settings} of {format_count(grid.num_settings, 'setting')}, drawn by --random-seed {args.random_seed}"
        )
    has_others = bool(assignment.num_earlier or assignment.others)
    new = _new_runs(runs, out, has_others=has_others)
    for line in _progress_lines(runs, len(finished), len(new), has_others=has_others):
        print(line)
    if assignment.others:
        print(
            f"{format_count(len(assignment.others), 'earlier run')} in {out} not named by this command; not in the table"
        )
    if len(cells) == num_settings and num_settings > 1:
        print("note: one seed per setting: a difference may be due to the seed; for three seeds: seed=0..2")
    for note in loading_notes(cells):
        print(f"note: {note}")
    if args.dry_run:
        new_folders = {run.folder for run in new}
        for run in runs:
            print(f"  {run.cell.label}  {_state(run, is_new=run.folder in new_folders)}")
        return 0
    return _train_and_compare(args, command, runs, slots, out)


def _check_metric(metric: str, runs: Sequence["CellRun"], finished: "CellRun") -> None:
    """Raise UsageError if a run that has finished lacks the metric, and all others are evaluated in the same way."""
    from reptk.sweep.comparison_table import require_metric
    from reptk.sweep.measured_runs import read_measured_run

    first = finished.cell.recipe
    for run in runs:
        if run.cell.recipe.eval != first.eval or run.cell.recipe.method["name"] != first.method["name"]:
            return
    result = read_measured_run(finished.folder, finished.cell.label)
    if not isinstance(result, str):
        require_metric(metric, list(result.results.main_metrics))


def _new_runs(runs: Sequence["CellRun"], out: Path, *, has_others: bool) -> list["CellRun"]:
    """Return the runs that no earlier command in this folder was to train."""
    from reptk.sweep.planned_runs import digest_of, read_planned

    planned = read_planned(out)
    if planned is None:
        # Of a sweep of an earlier version, nobody knows; all runs of a sweep that has none are new.
        if has_others:
            return []
        return list(runs)
    return [run for run in runs if not run.is_started and digest_of(run.cell) not in planned]


def _progress_lines(runs: Sequence["CellRun"], num_finished: int, num_new: int, *, has_others: bool) -> list[str]:
    """Return what an earlier command has left to do; nothing for a sweep that begins."""
    lines = []
    if num_finished:
        lines.append(f"{num_finished} of them finished already")
    num_left = len(runs) - num_finished - num_new
    num_started = sum(run.is_started for run in runs) - num_finished
    if num_left and num_started:
        lines.append(f"{num_left} of them still to run (started before: {num_started})")
    elif num_left:
        lines.append(f"{num_left} of them still to run")
    if num_new and (has_others or num_new < len(runs)):
        lines.append(f"{format_count(num_new, 'run')} new in this sweep, which had others")
    return lines


def _state(run: "CellRun", *, is_new: bool) -> str:
    from reptk.training.run_status import read_status

    if run.is_finished:
        return "finished"
    if run.is_started:
        return f"to resume ({read_status(run.folder)['status']})"
    if is_new:
        return "new"
    return "still to run"


def _train_and_compare(
    args: argparse.Namespace, command: str, runs: Sequence["CellRun"], slots: Sequence[dict[str, str]], out: Path
) -> int:
    from reptk.sweep.comparison_table import FailedRun, SettingRun
    from reptk.sweep.grid import setting_label
    from reptk.sweep.measured_runs import read_measured_run
    from reptk.sweep.run_sweep import train_all
    from reptk.training.run_lock import RunLock

    out.mkdir(parents=True, exist_ok=True)
    lock = RunLock(out)
    lock.acquire(lambda text: print(text, flush=True))
    try:
        reasons = train_all(runs, out, slots, options=_options(args), print_line=lambda text: print(text, flush=True))
        finished = []
        failed = []
        for run in runs:
            setting, seed = setting_label(run.cell.setting), run.cell.recipe.seed
            if run.cell.label in reasons:
                failed.append(FailedRun(setting, seed, reasons[run.cell.label]))
                continue
            result = read_measured_run(run.folder, run.cell.label)
            if isinstance(result, str):
                failed.append(FailedRun(setting, seed, result))
                print(f"{run.cell.label}  no result: {result}", flush=True)
            else:
                finished.append(SettingRun(setting, seed, result))
        problem = ""
        if finished:
            problem = _write_and_print(args, command, finished, failed, out)
    finally:
        lock.release()
    if failed:
        lines = [f"{len(failed)} of {format_count(len(runs), 'run')} failed; the same command tries them again"]
        lines += [f"  {run.label}: {run.reason}" for run in failed]
        if problem:
            lines.append(problem)
        print("error:", "\n".join(lines), file=sys.stderr, flush=True)
        return SOME_FAILED
    if problem:
        raise UsageError(problem)
    return 0


def _write_and_print(
    args: argparse.Namespace, command: str, finished: Sequence["SettingRun"], failed: Sequence["FailedRun"], out: Path
) -> str:
    """Write and print the tables.

    Returns:
        What is wrong with --metric or --against, without which the tables are written; empty if nothing is.
    """
    from reptk.sweep.comparison_page import write_page
    from reptk.sweep.comparison_table import build_table
    from reptk.sweep.print_table import print_table
    from reptk.sweep.write_tables import write_tables

    problem = ""
    try:
        table = build_table(finished, metric=args.metric, reference=args.against, failed=failed)
    except UsageError as error:
        # Hours of training must not end without a table.
        table = build_table(finished, failed=failed)
        problem = (
            f"{error}. The tables are sorted by {table.headline} and compare with the best setting; the same command with "
            "another --metric or --against writes them again and trains nothing"
        )
    paths = write_tables(out, STEM, table, title=command, facts={"command": command})
    print()
    print_table(table)
    print()
    print(f"  tables   {', '.join(map(str, paths))}", flush=True)
    if not args.no_report:
        print(f"  {write_page(table, out, title=command, trust=args.trust)}")
    return problem


def _options(args: argparse.Namespace) -> list[str]:
    """Return the options that every run gets."""
    options = []
    for plugin in args.plugin:
        options += ["--plugin", plugin]
    if args.trust:
        options.append("--trust")
    return options


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(
        prog="reptk sweep",
        description="Train a recipe with every combination of values, and compare them in one table.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("recipe", help="a recipe's name or TOML file; several with commas between them")
    parser.add_argument(
        "pairs", nargs="*", metavar="key=value[,value...]", help="values of a key, e.g. optim.lr=0.1,0.2 or seed=0..4"
    )
    parser.add_argument(
        "--out", type=Path, help="the folder of the sweep; default: runs/sweeps/ and the names of recipes and keys"
    )
    parser.add_argument(
        "--random",
        type=integer_from(1),
        metavar="N",
        help="draw N combinations in place of all; each is run with every seed",
    )
    parser.add_argument(
        "--random-seed", type=integer_from(0), default=0, metavar="SEED", help="of that draw; default: 0"
    )
    slots = parser.add_mutually_exclusive_group()
    slots.add_argument(
        "--jobs", type=integer_from(1), metavar="N", help="runs at a time, which share the CPUs; default: 1"
    )
    slots.add_argument("--gpus", metavar="0,1", help="a run at a time on each of these GPUs")
    parser.add_argument("--metric", help="the metric to sort by; default: the headline of the runs")
    parser.add_argument(
        "--against", choices=("best", "first"), default="best", help="the setting that others are compared with"
    )
    parser.add_argument("--dry-run", action="store_true", help="validate and list the runs, train nothing")
    parser.add_argument("--no-report", action="store_true", help="write no page of the settings and runs")
    add_plugin_options(parser)
    return parser.parse_intermixed_args(arguments)
