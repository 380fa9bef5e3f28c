"""The lock of a run's folder: one process trains in it, and a process that was killed holds no lock."""

import getpass
import json
import os
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from reptk.core.errors import EnvironmentProblem
from reptk.core.file_locks import is_alive, machine_name, try_lock
from reptk.core.files import parse_json
from reptk.core.foreign_files import require_regular_file

LOCK_FILE = ".lock"

HEARTBEAT_SECONDS = 10.0
"""How often the holder of a lock updates the time of its file."""

STALE_SECONDS = 60.0
"""How long no heartbeat must come before a lock of another machine counts as that of a process that is gone."""

LONG_AGO_SECONDS = 3600.0
"""Age of the last heartbeat, by the clock of this machine, at which there is no need to wait for another one."""

WAIT_SECONDS = 15.0
"""How long a start waits for a process that is about to end, e.g. since its launcher was killed."""

POLL_SECONDS = 0.25

MAX_HOLDER_BYTES = 10_000


class RunLock:
    """A lock on a folder, held by this process until `release` or its end.

    The system releases the lock of a process that ends, however it ends. Where locks are not shared between machines, or do
    not exist, the file's time tells: its holder renews it every `HEARTBEAT_SECONDS`.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / LOCK_FILE
        self._file: TextIO | None = None
        self._released = threading.Event()

    def acquire(self, report: Callable[[str], None], wait_seconds: float = WAIT_SECONDS) -> None:
        """Take the lock.

        Args:
            report: prints a line if this takes more than a moment.
            wait_seconds: how long to wait for another process of this machine.

        Raises:
            EnvironmentProblem: another process has it, and does not end.
            OSError: the folder cannot be written.
        """
        if self.path.exists():
            require_regular_file(self.path)
        file = self.path.open("a+", encoding="utf-8")
        try:
            is_supported = self._wait_for_lock(file, report, wait_seconds)
            self._check_holder(file, report, is_lock_supported=is_supported)
        except BaseException:
            file.close()
            raise
        self._file = file
        self._write_holder(file)
        threading.Thread(target=self._renew, name="reptk-lock", daemon=True).start()

    def release(self) -> None:
        """Give the lock back. The file stays: to delete it could take a lock from under the next process."""
        self._released.set()
        if self._file is not None:
            # No holder: the next process need not wait for a heartbeat.
            self._file.truncate(0)
            self._file.close()
            self._file = None

    def _wait_for_lock(self, file: TextIO, report: Callable[[str], None], wait_seconds: float) -> bool:
        """Wait for the system's lock; return False if the system or the file system has none.

        Raises:
            EnvironmentProblem: another process has it, even after `wait_seconds`.
        """
        deadline = time.monotonic() + wait_seconds
        is_first = True
        while True:
            is_locked = try_lock(file.fileno())
            if is_locked is None:
                return False
            if is_locked:
                return True
            in_use = self._in_use(_read(file))
            if time.monotonic() >= deadline:
                raise EnvironmentProblem(in_use)
            if is_first:
                report(f"{in_use}; waiting {wait_seconds:.0f} s for it")
                is_first = False
            time.sleep(POLL_SECONDS)

    def _check_holder(self, file: TextIO, report: Callable[[str], None], *, is_lock_supported: bool) -> None:
        """Return when the process that the file names has ended.

        Raises:
            EnvironmentProblem: it has not.
        """
        holder = _read(file)
        if not holder:
            return
        if holder.get("host") == machine_name():
            # The system's lock is reliable among the processes of one machine.
            if not is_lock_supported and holder["pid"] != os.getpid() and is_alive(holder["pid"]):
                raise EnvironmentProblem(self._in_use(holder))
            return
        last_beat = self.path.stat().st_mtime
        # A difference much larger than that between the clocks of two machines.
        if time.time() - last_beat > LONG_AGO_SECONDS:
            return
        report(f"{self._in_use(holder)}; waiting up to {STALE_SECONDS:.0f} s for a sign of it")
        deadline = time.monotonic() + STALE_SECONDS
        while time.monotonic() < deadline:
            if self.path.stat().st_mtime != last_beat:
                raise EnvironmentProblem(self._in_use(_read(file) or holder))
            time.sleep(POLL_SECONDS)

    def _in_use(self, holder: dict[str, Any]) -> str:
        who = "another process"
        if holder:
            since = holder.get("since")
            who = f"process {holder['pid']} of {holder.get('user')} on {holder.get('host')}, since {since}"
        return f"{self.path.parent} is in use by {who}"

    def _write_holder(self, file: TextIO) -> None:
        holder = {
            "user": _user(),
            "host": machine_name(),
            "pid": os.getpid(),
            "since": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        file.seek(0)
        file.truncate()
        file.write(json.dumps(holder) + "\n")
        file.flush()

    def _renew(self) -> None:
        while not self._released.wait(HEARTBEAT_SECONDS):
            try:
                os.utime(self.path)
            except OSError:
                continue  # the disk may be back at the next beat


def _read(file: TextIO) -> dict[str, Any]:
    file.seek(0)
    try:
        holder = parse_json(file.read(MAX_HOLDER_BYTES))
    except ValueError:
        return {}
    if not isinstance(holder, dict) or not isinstance(holder.get("pid"), int):
        return {}
    return holder


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may run under a number that has no name
        return str(os.getuid())
