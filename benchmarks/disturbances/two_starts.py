"""Rows about two processes of the same run, and about what a long run accumulates."""

import signal
import time
from pathlib import Path

from disturbances.bench import COMPLETE, Bench, Row, leftovers, stop_after, wait_until
from disturbances.commands import RECIPE, Command, Process
from disturbances.outcome import Outcome, differences, metric_rows, saved_step

RECIPE_NAME = "byol_batchnorm"


def two_starts(bench: Bench, pairs: int) -> Row:
    """Start the same command twice at once: without a folder, into one new folder, and to resume."""
    row = Row("the same command twice at once: without --out, with --out, to resume")
    reference = bench.reference(RECIPE_NAME).outcome
    refused = 0
    for number in range(pairs):
        row.cases += 1
        case = bench.case(RECIPE_NAME)
        kind = ("without --out", "with --out", "to resume")[number % 3]
        command = case.command()
        if kind == "without --out":
            command = Command(RECIPE, (case.recipe,), case.folder)
        if kind == "to resume":
            stop_after(bench, case, 3, signal.SIGTERM)
        processes = [bench.start(command), bench.start(command)]
        codes = [process.wait() for process in processes]
        if kind == "without --out":
            problems = _two_folders_problems(case.folder / "runs", codes, reference)
        else:
            refused += codes.count(4)
            problems = _one_folder_problems(processes, reference, case.run) + leftovers(case)
        row.problems += [f"{case.folder.name} {kind}: {problem}" for problem in problems]
        if not problems:
            bench.forget(case)
    row.notes.append(f"{refused} second starts refused, the others waited until the first had finished")
    return row


def _two_folders_problems(runs: Path, codes: list[int], reference: Outcome) -> list[str]:
    folders = sorted(runs.glob("*/*"))
    if codes != [0, 0] or [folder.name for folder in folders] != ["1", "2"]:
        return [f"exit codes {codes}, folders {[str(folder) for folder in folders]}"]
    problems = []
    for folder in folders:
        # Recipes and reports name nothing of the folder; the rest equals that of a run with --out.
        problems += differences(folder, reference)
    return problems


def _one_folder_problems(processes: list[Process], reference: Outcome, run: Path) -> list[str]:
    codes = sorted(process.exit_code for process in processes)
    problems = differences(run, reference)
    if codes not in ([0, 0], [0, 4]):
        problems.append(f"exit codes {codes}")
    trained = 0
    for process in processes:
        text = process.text()
        is_refused = process.exit_code == 4 and "in use by process" in text
        if not is_refused and COMPLETE not in text:
            trained += 1
        if "Traceback" in text:
            problems.append(f"a traceback: {process.last_line()}")
    if trained != 1:
        problems.append(f"{trained} processes have trained, not 1")
    return problems


def held_folder(bench: Bench, pairs: int = 5) -> Row:
    """Start a command again while its first process is paused, so that it cannot finish meanwhile."""
    row = Row("a second start while the first run goes on")
    reference = bench.reference(RECIPE_NAME).outcome
    first, second = [], []
    for _ in range(pairs):
        case = bench.case(RECIPE_NAME)
        process = bench.start(case.command())
        wait_until(lambda: saved_step(case.run) >= 3 or process.has_ended(), 60.0, 0.002)  # noqa: B023
        process.send(signal.SIGSTOP)
        first.append((case, process))
    for case, _ in first:
        second.append(bench.start(case.command()))
    for (case, process), refused in zip(first, second, strict=True):
        row.cases += 1
        code = refused.wait()
        problems = []
        if code != 4 or f"in use by process {process.pid}" not in refused.text():
            problems.append(f"exit code {code}: {refused.last_line()}")
        process.send(signal.SIGCONT)
        process.wait()
        problems += differences(case.run, reference) + leftovers(case)
        row.problems += [f"{case.folder.name}: {problem}" for problem in problems]
        if not problems:
            bench.forget(case)
    return row


def flat_memory(bench: Bench, epochs: int, first: int = 20) -> Row:
    """Compare memory, open files and threads of a process after `first` epochs with those after all."""
    row = Row(f"memory, open files and threads, epoch {first} and {epochs}", cases=1)
    overrides = (f"train.epochs={epochs}", "train.log_every_steps=100", "data.train=16", "eval.knn.every_epochs=2")
    case = bench.case(RECIPE_NAME, *overrides)
    process = bench.start(case.command())
    samples = {}
    for epoch in (first, epochs - 1):
        wait_until(lambda: _epoch(case.run) >= epoch or process.has_ended(), 900.0, 0.02)  # noqa: B023
        samples[epoch] = _resources(process.pid)
    code = process.wait()
    row.check(code == 0, f"it fails with {code}: {process.last_line()}")
    before, after = samples.values()
    if not before or not after:
        row.problems.append("the process ended before it could be measured")
        return row
    row.notes.append(", ".join(f"{key} {before[key]} to {after[key]}" for key in before))
    row.check(after["RSS MB"] - before["RSS MB"] < 32, f"memory grows from {before['RSS MB']} to {after['RSS MB']} MB")
    row.check(after["files"] <= before["files"] + 2, f"open files grow from {before['files']} to {after['files']}")
    row.check(after["threads"] <= before["threads"] + 1, f"threads grow from {before['threads']} to {after['threads']}")
    bench.forget(case)
    return row


def _epoch(run: Path) -> int:
    rows = metric_rows(run)
    if not rows:
        return 0
    return int(rows[-1].get("epoch", 0))


def _resources(pid: int) -> dict[str, int]:
    """Return memory, open files and threads of a process; the largest of a few moments, since a checkpoint comes and goes."""
    samples = []
    for _ in range(20):
        try:
            status = Path(f"/proc/{pid}/status").read_text()
            files = len(list(Path(f"/proc/{pid}/fd").iterdir()))
        except OSError:
            break
        fields = dict(line.split(":", 1) for line in status.splitlines())
        if "VmRSS" not in fields:
            break  # a zombie
        memory_mb = int(fields["VmRSS"].split()[0]) // 1024
        samples.append({"RSS MB": memory_mb, "files": files, "threads": int(fields["Threads"])})
        time.sleep(0.01)
    if not samples:
        return {}
    return {key: max(sample[key] for sample in samples) for key in samples[0]}
