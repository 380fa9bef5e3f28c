"""Breaks resuming on purpose, in ways in which it could be wrong, to see that the rows of chaos.py notice each."""

import itertools
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from disturbances import changes, checkpoint_faults, every_operation, two_starts
from disturbances.bench import Bench, References, Row, stop_after
from disturbances.commands import Preparation, Process
from disturbances.outcome import saved_step, unreadable_files
from disturbances.signals import stop_problems

Check = Callable[[Bench], Row]


def forget_optimizer() -> None:
    """The state of the optimizer is not restored."""
    _change_checkpoint(lambda state: state["optimizer"].update(state={}))


def shift_data() -> None:
    """A resumed run skips a batch."""
    from reptk.data.loading.loader import Loader

    batches = Loader.batches

    def shifted(self: Loader, first: int, *arguments: Any) -> Iterator[Any]:
        if first:
            first += 1
            arguments = tuple(argument + 1 for argument in arguments)
        return batches(self, first, *arguments)

    _replace(Loader, "batches", shifted)


def skip_key() -> None:
    """One tensor of the method, of its momentum encoder, stays as it was initialized."""
    from reptk.training import restore_run

    restore = restore_run.restore

    def restore_all_but_one(parts: Any, saved: dict[str, Any]) -> Any:
        name, value = next(
            (name, value) for name, value in parts.method.state_dict().items() if name.startswith("target")
        )
        initial = value.clone()
        state = restore(parts, saved)
        parts.method.state_dict()[name].copy_(initial)
        return state

    _replace(restore_run, "restore", restore_all_but_one)


def restart_from_zero() -> None:
    """The checkpoints are ignored: the end is the same, and the work is lost."""
    from reptk.training import checkpoint, run_folder

    _replace(checkpoint, "load_newest", lambda folder: None)
    _replace(run_folder, "lost_checkpoints", lambda folder, newest: [])


def leave_file() -> None:
    """A temporary file is not deleted."""
    from reptk.training import checkpoint

    save = checkpoint.save

    def save_and_leave(folder: Path, *arguments: Any, **options: Any) -> Path:
        target = save(folder, *arguments, **options)
        (folder.parent / ".metrics.jsonl.tmp").touch()
        return target

    _replace(checkpoint, "save", save_and_leave)


def leave_temporary_file() -> None:
    """A file stays in the folder for temporary files."""
    import os

    Path(os.environ["TMPDIR"], "reptk-1234").touch()


def keep_all_checkpoints() -> None:
    """Old checkpoints are not deleted."""
    from reptk.training import checkpoint

    _replace(checkpoint, "_delete_others", lambda *arguments: None)


def drop_row() -> None:
    """The last row of the metrics before the checkpoint is lost."""
    from reptk.core.console import Logger

    write = Logger.write_metrics_to

    def write_fewer(self: Logger, path: Path, rows: int = 0) -> None:
        write(self, path, max(0, rows - 1))

    _replace(Logger, "write_metrics_to", write_fewer)


def repeat_rows() -> None:
    """Rows after the checkpoint are logged twice."""
    from reptk.core.console import Logger

    write = Logger.write_metrics_to

    def write_more(self: Logger, path: Path, rows: int = 0) -> None:
        write(self, path, rows + 1000)

    _replace(Logger, "write_metrics_to", write_more)


def ignore_lock() -> None:
    """Two processes train in one folder."""
    from reptk.training.run_lock import RunLock

    _replace(RunLock, "acquire", lambda self, *arguments, **options: None)


def write_in_place() -> None:
    """Files are written under their final names, so that a kill leaves a part of one."""
    from contextlib import contextmanager

    from reptk.core import files

    @contextmanager
    def write(path: Path, **_: Any) -> Iterator[Path]:
        yield path

    _replace(files, "atomic_write", write)


def accept_damage() -> None:
    """The hash of a checkpoint is not compared."""
    from reptk.training import checkpoint

    _replace(checkpoint, "sha256_of", lambda path: checkpoint._read_manifest(path.parent)["sha256"])


def save_late() -> None:
    """After a signal, nothing is saved."""
    from reptk.training.run_process import RunProcess

    save = RunProcess.save

    def save_unless_stopped(self: RunProcess, parts: Any, state: Any) -> None:
        if self.signals.received is None:
            save(self, parts, state)

    _replace(RunProcess, "save", save_unless_stopped)


def wrong_exit_code() -> None:
    """A run that was stopped ends with 0."""
    from reptk.core import command_line

    command_line.Stopped.exit_code = property(lambda self: 0, lambda self, value: None)


def forget_data() -> None:
    """The data is not compared."""
    from reptk.training import run_folder

    _replace(run_folder, "check_same_data", lambda *arguments: None)


def _replace(owner: Any, name: str, value: Any) -> None:
    """Replace a part of reptk, which must be there: a fault that changes nothing would test nothing."""
    if name not in vars(owner):
        raise AttributeError(f"{owner} has no {name} any more: adapt this fault")
    setattr(owner, name, value)


def _change_checkpoint(change: Callable[[dict[str, Any]], None]) -> None:
    from reptk.training import checkpoint

    load_newest = checkpoint.load_newest

    def load_changed(folder: Path) -> Any:
        saved = load_newest(folder)
        if saved is not None:
            change(saved.state)
        return saved

    _replace(checkpoint, "load_newest", load_changed)


def kill_and_resume(bench: Bench) -> Row:
    """SIGKILL after step 6, the same command, SIGTERM in step 9 or later, the same command."""
    row = Row("kill and resume", cases=1)
    reference = bench.reference("byol_batchnorm")
    case = bench.case("byol_batchnorm")
    stop_after(bench, case, 3, signal.SIGKILL)
    row.problems += unreadable_files(case.run)
    step = saved_step(case.run)
    process: Process = bench.start(case.command())
    process.wait()
    row.problems += bench.end_problems(case, process, reference, step)
    return row


def stop_once(bench: Bench) -> Row:
    """SIGTERM in the middle, and what a user sees then."""
    row = Row("stop", cases=1)
    case = bench.case("moco_stochastic_depth")
    process = stop_after(bench, case, 4, signal.SIGTERM)
    row.problems += stop_problems(case, process, signal.SIGTERM)
    return row


class Expectation(NamedTuple):
    """The rows that notice a fault, and a part of the problem that they report, since they might report another one."""

    check: Check
    problem: str


def _expectations() -> dict[Preparation, Expectation]:
    other_weights = "model.safetensors differs"
    other_rows = "metrics.jsonl has"
    return {
        forget_optimizer: Expectation(kill_and_resume, other_weights),
        shift_data: Expectation(kill_and_resume, other_weights),
        skip_key: Expectation(kill_and_resume, other_weights),
        restart_from_zero: Expectation(kill_and_resume, "does not go on from there"),
        leave_file: Expectation(kill_and_resume, "left over: .metrics.jsonl.tmp"),
        leave_temporary_file: Expectation(kill_and_resume, "left over: tmp/reptk-1234"),
        keep_all_checkpoints: Expectation(kill_and_resume, "checkpoints are left"),
        drop_row: Expectation(kill_and_resume, other_rows),
        repeat_rows: Expectation(kill_and_resume, other_rows),
        save_late: Expectation(stop_once, "the checkpoint is that of"),
        wrong_exit_code: Expectation(stop_once, "exit code 0"),
        ignore_lock: Expectation(lambda bench: two_starts.held_folder(bench, pairs=1), "exit code 0"),
        write_in_place: Expectation(lambda bench: every_operation.training(bench, stride=3), "cannot be read"),
        accept_damage: Expectation(checkpoint_faults.damaged_checkpoints, "bit of state.pt flipped"),
        forget_data: Expectation(changes.data, "it is not refused"),
    }


def self_test(folder: Path, seed: int, count: int | None = None) -> bool:
    """Return whether rows notice every fault, and report nothing without one.

    Args:
        folder: for the runs.
        seed: of the moments.
        count: how many of the faults, those that take least time first; None for all.
    """
    is_right = True
    # Nothing breaks these, so that all faults are compared with the same ones.
    references: References = {}
    for check in (kill_and_resume, stop_once):
        row = check(_bench(folder, seed, f"without_{check.__name__}", (), references))
        state = "FALSE ALARM" if row.problems else "quiet"
        print(f"{state:<12} {row.name}, without a fault  {row.problems}", flush=True)
        is_right = is_right and not row.problems
    for fault, expectation in itertools.islice(_expectations().items(), count):
        row = expectation.check(_bench(folder, seed, fault.__name__, (fault,), references))
        noticed = [problem for problem in row.problems if expectation.problem in problem]
        state = "noticed" if noticed else "NOT NOTICED"
        print(f"{state:<12} {fault.__name__}: {fault.__doc__}  {(noticed or row.problems)[:1]}", flush=True)
        is_right = is_right and bool(noticed)
    return is_right


def _bench(folder: Path, seed: int, name: str, faults: tuple[Preparation, ...], references: References) -> Bench:
    below = folder / name
    below.mkdir()
    return Bench(below, seed, faults, references)
