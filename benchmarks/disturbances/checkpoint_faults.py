"""Rows about checkpoints that cannot be written, and checkpoints that are damaged."""

import resource
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

from disturbances.bench import Bench, Case, Row, is_saved, stop_after, wait_until
from disturbances.outcome import is_whole, saved_step

LONG = ("train.epochs=40", "eval.knn.every_epochs=10", "train.report=false")
"""120 steps, so that there is time to take away the space."""

LIMIT_BYTES = 200_000
"""Enough for every file of a run but its checkpoints."""

UNLIMITED = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)


def full_disk(bench: Bench) -> Row:
    """Take away the space while a run trains: by a limit to the size of files, which fails as a full disk does."""
    row = Row("no space for checkpoints (RLIMIT_FSIZE)")
    reference = bench.reference("byol_batchnorm", *LONG)
    for is_back_in_time in (False, True):
        row.cases += 1
        case = bench.case("byol_batchnorm", *LONG)
        process = bench.start(case.command())
        wait_until(lambda: is_saved(case, 6) or process.has_ended(), 60.0, 0.002)  # noqa: B023
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (LIMIT_BYTES, resource.RLIM_INFINITY))
        problems = []
        if is_back_in_time:
            wait_until(lambda: "cannot save a checkpoint" in process.text(), 60.0, 0.002)  # noqa: B023
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, UNLIMITED)
        code = process.wait()
        text = process.text()
        if is_back_in_time:
            problems += bench.end_problems(case, process, reference, 0)
            if "cannot save a checkpoint" not in text:
                problems.append("no line says that a checkpoint could not be written")
        else:
            if code != 4:
                problems.append(f"exit code {code}, not 4: {process.last_line()}")
            if text.count("Training continues") != 2 or "File too large" not in text:
                problems.append(f"two warnings and an error are expected: {text[-600:]}")
            if "Traceback" in text:
                problems.append("it prints a traceback")
            step = saved_step(case.run)
            if step < 6:
                problems.append(f"the checkpoint of step 6 is gone: {step}")
            process = bench.start(case.command())
            process.wait()
            problems += bench.end_problems(case, process, reference, step)
        row.problems += [f"{case.folder.name}: {problem}" for problem in problems]
        if not problems:
            bench.forget(case)
    return row


def _truncate(path: Path) -> None:
    with path.open("rb+") as file:
        file.truncate(path.stat().st_size // 2)


def _flip_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _empty_folder(path: Path) -> None:
    for file in path.iterdir():
        file.unlink()


DAMAGES: dict[str, Callable[[Path], None]] = {
    "state.pt truncated": lambda checkpoint: _truncate(checkpoint / "state.pt"),
    "a bit of state.pt flipped": lambda checkpoint: _flip_bit(checkpoint / "state.pt"),
    "state.pt empty": lambda checkpoint: _empty(checkpoint / "state.pt"),
    "state.pt deleted": lambda checkpoint: (checkpoint / "state.pt").unlink(),
    "manifest.json truncated": lambda checkpoint: _truncate(checkpoint / "manifest.json"),
    "manifest.json empty": lambda checkpoint: _empty(checkpoint / "manifest.json"),
    "manifest.json deleted": lambda checkpoint: (checkpoint / "manifest.json").unlink(),
    "folder emptied": _empty_folder,
    "folder deleted": shutil.rmtree,
}


def damaged_checkpoints(bench: Bench) -> Row:
    """Damage the newest checkpoint in every way, then all of them."""
    row = Row("damaged checkpoints: the newest, all")
    overrides = ("train.epochs=8", "train.report=false")
    reference = bench.reference("byol_batchnorm", *overrides)
    stopped = bench.case("byol_batchnorm", *overrides)
    stop_after(bench, stopped, 9, signal.SIGTERM)
    checkpoints = sorted((stopped.run / "checkpoints").glob("step_*"))
    if len(checkpoints) != 2 or not all(map(is_whole, checkpoints)):
        row.problems.append(f"the run that is to be damaged has other checkpoints: {checkpoints}")
        return row
    names = [path.name for path in checkpoints]
    for damage, inflict in DAMAGES.items():
        row.cases += 2
        case = bench.copy(stopped)
        inflict(case.run / "checkpoints" / names[-1])
        process = bench.start(case.command())
        process.wait()
        problems = bench.end_problems(case, process, reference, int(names[0][5:13]))
        if f"resuming from {names[0]}" not in process.text():
            problems.append(f"no line says that {names[-1]} is left out")
        _record(bench, row, case, [f"newest, {damage}: {problem}" for problem in problems])

        case = bench.copy(stopped)
        for name in names:
            inflict(case.run / "checkpoints" / name)
        process = bench.start(case.command())
        code = process.wait()
        problems = []
        if code != 3 or "checkpoint" not in process.text() or "Traceback" in process.text():
            problems.append(f"exit code {code}, not 3 and a sentence: {process.last_line()}")
        if (case.run / "model").exists():
            problems.append("it has trained from step 0")
        _record(bench, row, case, [f"all, {damage}: {problem}" for problem in problems])
    return row


def _record(bench: Bench, row: Row, case: Case, problems: list[str]) -> None:
    row.problems += [f"{case.folder.name}, {problem}" for problem in problems]
    if not problems:
        bench.forget(case)
