"""How the processes of a run on several ranks ended: which of them failed first, and which ended without a message."""

import os
import shutil
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

from reptk.core.counts import format_count
from reptk.core.errors import EnvironmentProblem
from reptk.core.file_locks import is_alive, machine_name
from reptk.core.files import json_text, write_text
from reptk.core.foreign_files import read_json

FOLDER_NAME = ".ranks"

RUNNING = "running"
STOPPED = "stopped"
FAILED = "failed"
LOST = "lost"
"""A collective failed, since another rank has ended or does not answer."""

WAIT_SECONDS = 8.0
"""How long a rank that was stopped or lost waits to learn how the others ended. torchrun kills ranks after 30 s."""

POLL_SECONDS = 0.1


class RankEnd(NamedTuple):
    """How one rank ended: `kind` is `STOPPED`, `FAILED` or `LOST`, `reason` the signal or the error."""

    kind: str
    reason: str
    time: float


class RankEnds:
    """The ends of all ranks, each written into a file of the run's folder.

    Not by collectives: these fail when a rank has ended.

    Args:
        folder: the run's.
        rank, world_size: of this process.
    """

    def __init__(self, folder: Path, rank: int, world_size: int) -> None:
        self.folder = folder / FOLDER_NAME
        self.rank = rank
        self.world_size = world_size

    def clear(self) -> None:
        """Remove what the ranks have written."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def begin(self) -> None:
        """Write that this rank runs, and in which process."""
        if self.world_size > 1:
            self.record(RUNNING, "")

    def record(self, kind: str, reason: str) -> None:
        """Write how this rank ends."""
        try:
            self.folder.mkdir(exist_ok=True)
            content = {
                "job": _job(),
                "kind": kind,
                "reason": reason,
                "time": time.time(),
                "host": machine_name(),
                "pid": os.getpid(),
            }
            write_text(self.folder / f"{self.rank}.json", json_text(content))
        except (OSError, EnvironmentProblem):
            return  # the disk that fails is the reason, which this rank prints

    def wait(self) -> dict[int, RankEnd]:
        """Return how the ranks ended, once all have, or after `WAIT_SECONDS` those that have."""
        deadline = time.monotonic() + WAIT_SECONDS
        while True:
            ends = self.read()
            if len(ends) == self.world_size or time.monotonic() >= deadline:
                return ends
            time.sleep(POLL_SECONDS)

    def read(self) -> dict[int, RankEnd]:
        """Return how the ranks ended that have."""
        ends = {}
        for rank, content in self._contents().items():
            try:
                end = RankEnd(str(content["kind"]), str(content["reason"]), float(content["time"]))
            except (ValueError, KeyError, TypeError):
                continue
            if end.kind != RUNNING:
                ends[rank] = end
        return ends

    def running(self) -> set[int]:
        """Return the ranks on this machine that have not ended."""
        ranks = set()
        for rank, content in self._contents().items():
            pid = content.get("pid")
            is_here = content.get("kind") == RUNNING and content.get("host") == machine_name()
            if is_here and isinstance(pid, int) and pid > 0 and is_alive(pid):
                ranks.add(rank)
        return ranks

    def _contents(self) -> dict[int, dict[str, Any]]:
        """Return what the ranks of this job have written."""
        contents = {}
        for rank in range(self.world_size):
            try:
                content = read_json(self.folder / f"{rank}.json")
            except (OSError, ValueError):
                continue
            # Otherwise it is of a process of an earlier job that has ended since.
            if isinstance(content, dict) and content.get("job") == _job():
                contents[rank] = content
        return contents


def _job() -> str:
    """Return what distinguishes the processes of this start of torchrun from those of another."""
    return f"{os.environ.get('TORCHELASTIC_RUN_ID')} {os.environ.get('MASTER_PORT')}"


def first_failure(ends: dict[int, RankEnd], world_size: int, running: Collection[int] = ()) -> tuple[int, str] | None:
    """Return the rank that failed first and why; None if the ranks were stopped by a signal.

    A rank that has left no message was killed, or does not answer.

    Args:
        ends: of the ranks that have left one.
        world_size: number of ranks.
        running: ranks whose processes still exist.
    """
    failed = [(end.time, rank, end.reason) for rank, end in ends.items() if end.kind == FAILED]
    if failed:
        _, rank, reason = min(failed)
        return rank, reason
    is_stopped = any(end.kind == STOPPED for end in ends.values())
    silent = [rank for rank in range(world_size) if rank not in ends]
    if is_stopped:
        # Those that still run wait for this rank in a collective, which no signal interrupts.
        silent = [rank for rank in silent if rank not in running]
    if silent:
        others = ""
        if len(silent) > 1:
            others = f" (and {format_count(len(silent) - 1, 'other')})"
        return silent[0], f"ended without a message{others}: it was killed, e.g. for want of memory, or it hangs"
    if is_stopped:
        return None
    rank = min(ends, key=lambda other: ends[other].time)
    return rank, ends[rank].reason
