"""status.json: what became of a run, in its own folder."""

import os
import socket
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from reptk.core import distributed
from reptk.core.console import Logger
from reptk.core.errors import EnvironmentProblem, ReptkError
from reptk.core.files import json_text, write_text
from reptk.core.foreign_files import read_json
from reptk.core.stop_signals import Stopped, StopSignals
from reptk.training.rank_ends import FAILED, LOST, STOPPED, RankEnds, first_failure

STATUS_FILE = "status.json"
STOPPED_EARLY_KEY = "stopped_early_after_epoch"
FINISHED = "finished"
RUNNING = "running"


def read_status(folder: Path) -> dict[str, Any]:
    """Return the content of status.json.

    `status` is "running", "finished", "preempted" (a signal, `signal`, stopped it, and the last step is saved), "interrupted"
    (Ctrl-C twice) or "failed" (`reason`, and `rank` on several ranks). A process that was killed leaves "running". `step` is
    that of the last checkpoint. A finished run has `model`, which weights are in its folder of that name ("last", "best" or
    "pretrained"), and `stopped_early_after_epoch` if it did.

    The status is "unknown" if there is no such file, or if it is damaged.
    """
    try:
        content = read_json(folder / STATUS_FILE)
    except (OSError, ValueError):
        content = None
    if not isinstance(content, dict) or "status" not in content:
        return {"status": "unknown"}
    return content


def write_status(folder: Path, status: str, **details: Any) -> None:
    """Write status.json, with the process that writes it and the time.

    Raises:
        EnvironmentProblem: the disk is full.
        OSError: it cannot be written for another reason.
    """
    content = {
        "status": status,
        **details,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    write_text(folder / STATUS_FILE, json_text(content, indent=2) + "\n")


class RunStatus:
    """The status of a run that this process works on.

    Args:
        folder: the run's.
        logger: where to say that the file cannot be written, which stops no run.

    Attributes:
        step: of the last checkpoint.
        details: further entries of a run that has finished.
    """

    def __init__(self, folder: Path, logger: Logger) -> None:
        self.folder = folder
        self.logger = logger
        # Whatever ends this process before it has read a checkpoint must not say that nothing is saved.
        self.step = read_status(folder).get("step", 0)
        self.details: dict[str, Any] = {}

    def set(self, status: str, **details: Any) -> None:
        """Write the status and the step that is saved."""
        step = self.step
        if not distributed.is_main():
            # Rank 0 writes the checkpoints.
            step = read_status(self.folder).get("step", step)
        try:
            write_status(self.folder, status, step=step, **details)
        except (OSError, EnvironmentProblem) as cause:
            self.logger.line(f"cannot write {self.folder / STATUS_FILE}: {cause}")

    def checkpoint_written(self, step: int) -> None:
        """Record that everything up to this step is saved."""
        self.step = step
        self.set(RUNNING)


@contextmanager
def recorded_status(status: RunStatus, signals: StopSignals, resume_command: str) -> Iterator[None]:
    """Write how the block ended to status.json, and print how to resume if it was stopped.

    Raises:
        EnvironmentProblem: a collective failed since another rank failed, which the message names.
    """
    ends = RankEnds(status.folder, distributed.rank(), distributed.world_size())
    ends.begin()
    try:
        yield
    except BaseException as error:
        # torchrun sends a signal to the other ranks when one ends.
        with signals.deferred():
            reported = _record_end(status, ends, error, resume_command)
        if reported is error:
            raise
        raise reported from error
    if distributed.is_main():
        ends.clear()
        status.set(FINISHED, **status.details)


def _record_end(status: RunStatus, ends: RankEnds, error: BaseException, resume_command: str) -> BaseException:
    """Write how a run ended that did not finish, and return the error to raise."""
    if isinstance(error, Stopped):
        failure = _record_stop(status, ends, error)
        if failure is not None:
            return EnvironmentProblem(f"rank {failure[0]}: {failure[1]}")
        status.logger.line(f"stopped by {error.signal_name}; step {status.step} is saved. To resume: {resume_command}")
        return error
    if isinstance(error, KeyboardInterrupt):  # the second Ctrl-C
        if distributed.is_main():
            status.set("interrupted")
        status.logger.line(f"interrupted; step {status.step} is saved. To resume: {resume_command}")
        return error
    if ends.world_size > 1 and distributed.is_lost_connection(error):
        return _lost(status, ends, error)
    reason = f"{type(error).__name__}: {error}"
    if ends.world_size > 1:
        ends.record(FAILED, reason)
    _record_failure(status, error, reason)
    return error


def _record_failure(status: RunStatus, error: BaseException, reason: str) -> None:
    details: dict[str, Any] = {"reason": reason}
    if distributed.world_size() > 1:
        if read_status(status.folder)["status"] == "failed":
            return  # of the rank that failed first
        details["rank"] = distributed.rank()
    if not isinstance(error, ReptkError):
        # Of an error that has no message of ours, the place says more than its text.
        frame = traceback.extract_tb(error.__traceback__)[-1]
        details["place"] = f"{frame.filename}:{frame.lineno}, in {frame.name}"
    status.set("failed", **details)


def _record_stop(status: RunStatus, ends: RankEnds, stopped: Stopped) -> tuple[int, str] | None:
    """Record that a signal has stopped this rank. Returns the failure of another one for which torchrun has sent it, if any."""
    if ends.world_size == 1:
        status.set("preempted", signal=stopped.signal_name)
        return None
    ends.record(STOPPED, stopped.signal_name)
    return _record_ends_of_all(status, ends)


def _lost(status: RunStatus, ends: RankEnds, error: BaseException) -> EnvironmentProblem:
    """Record the failure of another rank, which ended a collective of this one, and return the error that names it."""
    ends.record(LOST, f"{type(error).__name__}: {error}")
    failure = _record_ends_of_all(status, ends)
    if failure is None:
        return EnvironmentProblem(f"another rank was stopped by a signal; step {status.step} is saved")
    rank, reason = failure
    return EnvironmentProblem(f"rank {rank}: {reason}")


def _record_ends_of_all(status: RunStatus, ends: RankEnds) -> tuple[int, str] | None:
    """Wait for the ends of the other ranks, write the status that follows from them, and return the first failure."""
    reported = ends.wait()
    failure = first_failure(reported, ends.world_size, ends.running())
    if min(reported, default=ends.rank) != ends.rank:
        return failure  # the lowest rank that has ended writes
    if failure is None:
        signal_names = [end.reason for end in reported.values() if end.kind == STOPPED]
        status.set("preempted", signal=signal_names[0])
        return None
    rank, reason = failure
    earlier = read_status(status.folder)
    # The rank itself may have written more.
    if earlier["status"] != "failed" or earlier.get("rank") != rank:
        status.set("failed", rank=rank, reason=reason)
    return failure
