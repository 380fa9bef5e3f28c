"""Processes that run one after another or some at a time, each with a log, and are all stopped by one signal."""

import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from reptk.core.errors import EnvironmentProblem
from reptk.core.foreign_files import append_to_regular
from reptk.core.stop_signals import handled_stop_signals

POLL_SECONDS = 0.1


class Job(NamedTuple):
    """What a process is started with.

    label: of the job, for the caller.
    command: program and arguments.
    log: a regular file, or none yet, that its output is appended to, in a folder that exists.
    """

    label: str
    command: list[str]
    log: Path


class EndedJob(NamedTuple):
    """A process that has ended.

    code: its exit code; negative for the number of the signal that has killed it.
    log_begin: size of the log in bytes when it was started.
    """

    job: Job
    code: int
    seconds: float
    log_begin: int


class _Running(NamedTuple):
    job: Job
    process: subprocess.Popen
    started: float
    log_begin: int


def run_jobs(
    jobs: Sequence[Job],
    slots: Sequence[Mapping[str, str]],
    *,
    on_start: Callable[[Job], None],
    on_end: Callable[[EndedJob], None],
    on_stop: Callable[[int], None],
) -> None:
    """Run all jobs in their order, at most one in each slot at a time.

    A signal, or an exception in this process, stops all of them: each gets SIGTERM and has the time that it needs to save a
    checkpoint. A second Ctrl-C kills them.

    Args:
        jobs: to run.
        slots: environment variables of the process in each slot, besides those of this process.
        on_start, on_end: called in this thread when a process is started, and when it has ended.
        on_stop: called with the number of processes that are stopped, before they are waited for.

    Raises:
        Stopped: a signal has come; all processes have ended.
        EnvironmentProblem: a process cannot be started.
    """
    waiting = list(jobs)
    running: list[_Running | None] = [None] * len(slots)
    with handled_stop_signals() as signals, signals.deferred(), _none_left_behind(running, on_stop):
        while waiting or any(item is not None for item in running):
            if signals.received is not None:
                _stop(running, on_stop)
                signals.raise_if_received()
            for slot, item in enumerate(running):
                if item is not None:
                    code = item.process.poll()
                    if code is None:
                        continue
                    running[slot] = None
                    on_end(EndedJob(item.job, code, time.monotonic() - item.started, item.log_begin))
                if waiting:
                    job = waiting.pop(0)
                    running[slot] = _start(job, slots[slot])
                    on_start(job)
            time.sleep(POLL_SECONDS)


def _start(job: Job, environment: Mapping[str, str]) -> _Running:
    try:
        # The output is a stream, which no atomic file can hold; a log that is cut off harms nobody.
        with append_to_regular(job.log) as log:
            log_begin = log.tell()
            process = subprocess.Popen(
                job.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environment},
                # Of its own group: Ctrl-C in a terminal goes to the whole group, and would reach it twice.
                start_new_session=True,
            )
    except OSError as cause:
        raise EnvironmentProblem(f"cannot start {job.label}: {cause}") from cause
    return _Running(job, process, time.monotonic(), log_begin)


def _stop(running: Sequence[_Running | None], on_stop: Callable[[int], None]) -> None:
    """Send SIGTERM to all processes that still run, and wait until they have ended."""
    processes = [item.process for item in running if item is not None and item.process.poll() is None]
    for process in processes:
        process.terminate()
    # Perhaps nobody reads what is printed any more: `reptk sweep ... | head`.
    with suppress(OSError):
        on_stop(len(processes))
    for process in processes:
        process.wait()


def _kill(running: Sequence[_Running | None]) -> None:
    for item in running:
        if item is not None and item.process.poll() is None:
            with suppress(OSError):
                item.process.kill()
            item.process.wait()


@contextmanager
def _none_left_behind(running: Sequence[_Running | None], on_stop: Callable[[int], None]) -> Iterator[None]:
    """Stop what still runs when the block ends by an exception.

    Signals are deferred in the block, so that KeyboardInterrupt is the second Ctrl-C, which kills without a checkpoint.
    """
    try:
        yield
    except KeyboardInterrupt:
        _kill(running)
        raise
    except BaseException:
        try:
            _stop(running, on_stop)
        finally:
            _kill(running)  # nothing is left to kill, unless the wait was interrupted
        raise
