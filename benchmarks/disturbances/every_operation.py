"""Rows that kill a command at its 1st, 2nd, 3rd, ... operation on the file system, until it finishes."""

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path

from disturbances.bench import Bench, Case, Row
from disturbances.commands import REPTK, Command, Process
from disturbances.operations import KillAtOperation
from disturbances.outcome import saved_step, unreadable_files
from disturbances.recipes import write_images

SHORT = ("train.epochs=2", "data.train=32", "train.keep_best=true")
"""Four steps, two of them with an evaluation and a checkpoint."""

MAX_OPERATIONS = 2000

Check = Callable[[Case], list[str]]


def training(bench: Bench, stride: int) -> Row:
    """Kill a run at every operation: its folder, checkpoints, evaluations, results and report."""
    row = Row("SIGKILL at every file operation: training")
    reference = bench.reference("byol_batchnorm", *SHORT)
    for number in range(1, MAX_OPERATIONS, stride):
        case = bench.case("byol_batchnorm", *SHORT)
        log = case.folder.with_name(f"{case.folder.name}.operation")
        process = bench.start(case.command(), KillAtOperation(number, case.folder, log))
        if process.wait() != -signal.SIGKILL:
            _end(row, process, number - 1, stride)
            bench.forget(case)
            break
        row.cases += 1
        problems = unreadable_files(case.run)
        step = saved_step(case.run)
        process = bench.start(case.command())
        process.wait()
        problems += bench.end_problems(case, process, reference, step)
        _record(bench, row, case, log, problems)
    return row


def _end(row: Row, process: Process, num_operations: int, stride: int) -> None:
    """Record the command that came to its end, since it has fewer operations."""
    row.check(process.exit_code == 0, f"without a kill it ends with {process.exit_code}: {process.last_line()}")
    note = f"{num_operations} operations"
    if stride > 1:
        note += f", one of {stride} of them"
    row.notes.append(note)


def _record(bench: Bench, row: Row, case: Case, log: Path, problems: list[str]) -> None:
    operation = log.read_text().strip()
    row.problems += [f"{case.folder.name}, operation {operation}: {problem}" for problem in problems]
    if not problems:
        bench.forget(case)


def commands(bench: Bench, stride: int) -> list[Row]:
    """Kill `reptk embed`, `index` and `evaluate` at every operation."""
    images = bench.folder / "images"
    write_images(images)
    run = bench.reference("byol_batchnorm", *SHORT).run
    old_images = bench.folder / "old_images"
    write_images(old_images, per_class=8)
    embed = ["embed", str(run), "--data", str(images), "--device", "cpu", "--out"]
    embed_old = ["embed", str(run), "--data", str(old_images), "--device", "cpu", "--out"]
    rows = []
    for suffix in ("safetensors", "parquet"):
        rows.append(_command(bench, stride, f"reptk embed, {suffix}", [*embed, f"new.{suffix}"], f"new.{suffix}", []))
    old = bench.case("byol_batchnorm")
    for arguments in ([*embed, "e.safetensors"], [*embed_old, "old.safetensors"]):
        process = bench.start(Command(REPTK, tuple(arguments), old.folder))
        if process.wait():
            raise RuntimeError(process.text())
    for suffix in ("safetensors", "parquet"):
        prepare = [[*embed_old, f"new.{suffix}"]]
        arguments = [*embed, f"new.{suffix}", "--force"]
        rows.append(_command(bench, stride, f"reptk embed --force, {suffix}", arguments, f"new.{suffix}", prepare))
    embeddings, old_embeddings = str(old.folder / "e.safetensors"), str(old.folder / "old.safetensors")
    index = ["index", embeddings, "--out", "new.index"]
    rows.append(_command(bench, stride, "reptk index", index, "new.index", []))
    prepare = [["index", old_embeddings, "--out", "new.index"]]
    rows.append(_command(bench, stride, "reptk index --force", [*index, "--force"], "new.index", prepare))
    evaluate = ["evaluate", str(run), "--device", "cpu", "--out", "new.json"]
    rows.append(_command(bench, stride, "reptk evaluate --out FILE", evaluate, "new.json", []))
    evaluate = ["evaluate", str(run), "--device", "cpu", "--out", "new"]
    rows.append(_command(bench, stride, "reptk evaluate --out FOLDER", evaluate, "new", []))
    return rows


def _command(bench: Bench, stride: int, name: str, arguments: list[str], target: str, prepare: list[list[str]]) -> Row:
    """Kill a command at every operation; then what the user would type finishes it.

    Args:
        arguments: of `reptk`.
        target: what it writes.
        prepare: commands before it, which write an older target.
    """
    row = Row(f"SIGKILL at every file operation: {name}")
    start = time.monotonic()
    reference = _prepared(bench, prepare)
    process = bench.start(Command(REPTK, tuple(arguments), reference.folder))
    if process.wait():
        row.problems.append(f"it fails: {process.text()}")
        return row
    expected = _content(reference.folder / target)
    template = _prepared(bench, prepare)
    for number in range(1, MAX_OPERATIONS, stride):
        case = bench.copy(template)
        log = case.folder.with_name(f"{case.folder.name}.operation")
        command = Command(REPTK, tuple(arguments), case.folder)
        process = bench.start(command, KillAtOperation(number, case.folder, log))
        if process.wait() != -signal.SIGKILL:
            _end(row, process, number - 1, stride)
            bench.forget(case)
            break
        row.cases += 1
        problems = _target_problems(case.folder / target, must_exist=bool(prepare))
        process = bench.start(command)
        process.wait()
        is_refused = process.exit_code == 2 and target in process.text() and "--force" not in arguments
        if is_refused and "--force" in process.text():
            # The user replaces it, as the message says.
            process = bench.start(Command(REPTK, (*arguments, "--force"), case.folder))
            process.wait()
        is_whole = is_refused and not _target_problems(case.folder / target, must_exist=True)
        if process.exit_code != 0 and not is_whole:
            problems.append(f"the same command fails with {process.exit_code}: {process.last_line()}")
        elif _content(case.folder / target) != expected:
            problems.append("it ends in something else")
        case_files = {target, *(path.name for path in template.folder.iterdir())}
        left_over = {path.name for path in case.folder.iterdir()} - case_files
        if left_over:
            problems.append(f"left over: {', '.join(sorted(left_over))}")
        left_over = {str(path.relative_to(case.folder)) for path in (case.folder / "tmp").rglob("*")}
        if left_over:
            problems.append(f"left over: {', '.join(sorted(left_over))}")
        _record(bench, row, case, log, problems)
    row.seconds = time.monotonic() - start
    return row


def _prepared(bench: Bench, prepare: list[list[str]]) -> Case:
    case = bench.case("byol_batchnorm")
    (case.folder / "tmp").mkdir()
    for arguments in prepare:
        process = bench.start(Command(REPTK, tuple(arguments), case.folder))
        if process.wait():
            raise RuntimeError(process.text())
    return case


def _target_problems(target: Path, *, must_exist: bool) -> list[str]:
    """Return whether the target cannot be opened. Without an older one it may be missing."""
    is_unfinished = target.is_dir() and target.suffix != ".index" and not (target / "results.json").is_file()
    if is_unfinished or not target.exists():
        if must_exist:
            return [f"{target.name} is gone"]
        return []
    try:
        _content(target)
    except Exception as error:
        return [f"{target.name} cannot be opened: {error}"]
    return []


def _content(target: Path) -> object:
    """Open what a command has written; return what is the same every time."""
    from reptk.embeddings import Embeddings, Index  # imports torch, as late as the commands do

    if target.suffix == ".json":
        return json.loads(target.read_text())["metrics"]
    if target.suffix == ".index":
        index = Index.open(target, verify=True)
        return _rows(index.embeddings)
    if target.is_dir():
        files = sorted(path.name for path in target.iterdir())
        return files, json.loads((target / "results.json").read_text())["metrics"]
    return _rows(Embeddings.load(target))


def _rows(embeddings: object) -> object:
    return embeddings.vectors.tolist(), list(embeddings.ids), embeddings.labels.tolist()
