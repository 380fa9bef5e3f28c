"""Kills, stops and starves real runs, types the same command again, and compares the end with that of an undisturbed run.

python benchmarks/chaos.py [--kills 50] [--ranks 2] [--only kills signals ...] [--seed N] [--stride K] [--folder DIR]
python benchmarks/chaos.py --self-test

Prints a table, and exits with 1 if a row breaks; its folder is then kept. --self-test breaks resuming on purpose in several
ways, and exits with 1 unless a row notices each. Linux only. Most commands run in forks of this process, which has imported
torch and reptk already, so that a start takes a second and not ten; some are started anew, and torchrun always is.
"""

import argparse
import importlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

# Before torch is imported, and in every process.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["CUDA_VISIBLE_DEVICES"] = ""

from disturbances import changes, checkpoint_faults, every_operation, faults, kills, signals, two_starts
from disturbances.bench import Bench, Row
from disturbances.commands import execute
from disturbances.outcome import differences
from measuring import versions_line

MAX_PROBLEMS = 12
"""How many problems of a row are printed."""

IMPORTED_WHEN_NEEDED = ("reptk.cli", "reptk.embeddings", "faiss", "pyarrow.parquet")

ROWS = {
    "reference": "two undisturbed runs are the same",
    "kills": "SIGKILL at random moments",
    "ranks": "SIGKILL of ranks and of torchrun",
    "signals": "signals in every phase",
    "training": "SIGKILL at every file operation of a run",
    "commands": "SIGKILL at every file operation of embed, index and evaluate",
    "disk": "no space for checkpoints",
    "damage": "damaged checkpoints",
    "starts": "two starts at once",
    "memory": "flat memory",
    "workers": "another number of workers",
    "world": "another number of ranks",
    "data": "changed data",
}
"""What `--only` selects."""


def main(argv: list[str] | None = None) -> int:
    args = _parse(argv)
    folder = Path(tempfile.mkdtemp(prefix="reptk-chaos-", dir=args.folder))
    print(f"seed {args.seed}, in {folder}", flush=True)
    import_everything(folder)
    print(versions_line(["torch", "timm", "reptk"]), flush=True)
    if args.self_test:
        is_right = faults.self_test(folder, args.seed, args.faults)
    else:
        is_right = run_rows(Bench(folder, args.seed), args)
    if is_right:
        shutil.rmtree(folder, ignore_errors=True)
        return 0
    print(f"left as it is: {folder}")
    return 1


def import_everything(folder: Path) -> None:
    """Do once what forked processes need not do again: a run and an index, whose output nobody needs."""
    bench = Bench(folder, seed=0)
    case = bench.case("byol_batchnorm", "train.epochs=1")
    command = case.command()
    sys.stdout.flush()
    output = os.dup(1)
    silent = os.open(os.devnull, os.O_WRONLY)
    here = Path.cwd()
    os.dup2(silent, 1)
    os.chdir(case.folder)
    try:
        from reptk.recipe import main as train

        code = train(list(command.arguments))
        sys.stdout.flush()

        import reptk.cli
        import reptk.embeddings
        import reptk.evaluate  # noqa: F401

        # What reptk index and reptk embed import when they need it.
        for name in ("faiss", "pyarrow.parquet"):
            importlib.import_module(name)
    finally:
        os.chdir(here)
        os.dup2(output, 1)
        os.close(silent)
        os.close(output)
    if code:
        raise RuntimeError(f"a plain run fails with exit code {code}")
    bench.forget(case)


def run_rows(bench: Bench, args: argparse.Namespace) -> bool:
    """Run the selected rows and print the table; returns whether all are right."""
    selected = args.only or list(ROWS)
    rows: list[Row] = []
    for name, run in _calls(bench, args).items():
        if name not in selected:
            continue
        start = time.monotonic()
        new = run()
        seconds_left = time.monotonic() - start - sum(row.seconds for row in new)
        num_untimed = sum(not row.seconds for row in new)
        for row in new:
            row.seconds = row.seconds or seconds_left / num_untimed
            _print_row(row)
        rows += new
    print("\n| what was done | cases | broken | s | |\n|---|---|---|---|---|")
    for row in rows:
        print(f"| {row.name} | {row.cases} | {len(row.problems)} | {row.seconds:.0f} | {'; '.join(row.notes)} |")
    return not any(row.problems for row in rows)


def _calls(bench: Bench, args: argparse.Namespace) -> dict[str, Callable[[], list[Row]]]:
    num_rank_kills = max(1, args.kills // 4)
    calls: dict[str, Callable[[], list[Row]]] = {
        "reference": lambda: [same_twice(bench)],
        "kills": lambda: [kills.random_kills(bench, args.kills, executed=args.executed)],
        "ranks": lambda: _rank_rows(bench, args, num_rank_kills),
        "signals": lambda: [signals.signals_in_phases(bench, args.rounds)],
        "training": lambda: [every_operation.training(bench, args.stride)],
        "commands": lambda: every_operation.commands(bench, args.stride),
        "disk": lambda: [checkpoint_faults.full_disk(bench)],
        "damage": lambda: [checkpoint_faults.damaged_checkpoints(bench)],
        "starts": lambda: [two_starts.two_starts(bench, args.pairs), two_starts.held_folder(bench)],
        "memory": lambda: [two_starts.flat_memory(bench, args.epochs)],
        "workers": lambda: [changes.workers(bench)],
        "world": lambda: [changes.ranks(bench, args.ranks)] if args.ranks > 1 else [],
        "data": lambda: [changes.data(bench)],
    }
    return calls


def _rank_rows(bench: Bench, args: argparse.Namespace, num_kills: int) -> list[Row]:
    if args.ranks < 2:
        return []
    rows = [kills.rank_kills(bench, num_kills, args.ranks), kills.silent_rank(bench, args.ranks)]
    if args.torchruns:
        rows.append(kills.torchrun_kills(bench, args.ranks, args.torchruns))
    return rows


def same_twice(bench: Bench) -> Row:
    """Compare a forked run with one that is started anew; otherwise no comparison would mean anything."""
    row = Row("two undisturbed runs, one of them not forked")
    for recipe in kills.RANDOM_RECIPES:
        row.cases += 1
        reference = bench.reference(recipe)
        case = bench.case(recipe)
        process = execute(case.command().line(), case.folder)
        process.wait()
        row.problems += [f"{recipe}: {problem}" for problem in bench.end_problems(case, process, reference, 0)]
        if differences(reference.run, reference.outcome):
            row.problems.append(f"{recipe}: the reference differs from itself")
        bench.forget(case)
    return row


def _print_row(row: Row) -> None:
    state = "right" if not row.problems else f"BROKEN {len(row.problems)}"
    print(f"{state:<10} {row.name}: {row.cases} cases in {row.seconds:.0f} s  {'; '.join(row.notes)}", flush=True)
    for problem in row.problems[:MAX_PROBLEMS]:
        print(f"           {problem}", flush=True)
    if len(row.problems) > MAX_PROBLEMS:
        print(f"           and {len(row.problems) - MAX_PROBLEMS} more", flush=True)


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="random kills of one process; a quarter as many of ranks")
    parser.add_argument("--executed", type=int, default=4, help="how many of the kills are of processes started anew")
    parser.add_argument("--ranks", type=int, default=2, help="1: none of the rows on several ranks")
    parser.add_argument("--torchruns", type=int, default=1, help="rounds of kills under torchrun; 0 for none")
    parser.add_argument("--rounds", type=int, default=1, help="how often each signal is sent in each phase")
    parser.add_argument("--pairs", type=int, default=20, help="how often a command is started twice at once")
    parser.add_argument("--epochs", type=int, default=300, help="of the row about memory")
    parser.add_argument("--stride", type=int, default=1, help="kill at every K-th file operation")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=ROWS, metavar="ROW", help=", ".join(ROWS))
    parser.add_argument("--folder", type=Path, help="where the temporary folder is created")
    parser.add_argument(
        "--self-test", action="store_true", help="break resuming on purpose, and see that it is noticed"
    )
    parser.add_argument("--faults", type=int, help="with --self-test: how many faults; default: all")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
