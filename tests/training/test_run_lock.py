"""One process at a time has the folder of a run, and one that was killed does not."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from reptk.core.errors import EnvironmentProblem
from reptk.training import run_lock
from reptk.training.run_lock import RunLock

HOLD = """
import sys, time
from pathlib import Path
from reptk.training.run_lock import RunLock
RunLock(Path(sys.argv[1])).acquire(print)
print("held", flush=True)
time.sleep(600)
"""


def acquire(folder: Path, wait_seconds: float = 0.0) -> RunLock:
    lock = RunLock(folder)
    lock.acquire(lambda text: None, wait_seconds)
    return lock


def test_a_lock_is_held_by_one_of_many(tmp_path: Path) -> None:
    locks, refusals = [], []

    def start() -> None:
        try:
            locks.append(acquire(tmp_path))
        except EnvironmentProblem as error:
            refusals.append(str(error))

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(locks) == 1
    assert all(refusal.startswith(f"{tmp_path} is in use by") for refusal in refusals)
    locks[0].release()
    assert (tmp_path / ".lock").read_text() == ""
    acquire(tmp_path).release()


def test_the_lock_of_a_process_that_was_killed_is_free(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == process.pid
        with pytest.raises(EnvironmentProblem, match=rf"is in use by process {process.pid} of .* since 20"):
            acquire(tmp_path)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    acquire(tmp_path).release()


def test_a_process_that_is_about_to_end_is_waited_for(tmp_path: Path) -> None:
    first = acquire(tmp_path)
    lines: list[str] = []
    timer = threading.Timer(0.5, first.release)
    timer.start()
    second = RunLock(tmp_path)
    second.acquire(lines.append, 30.0)
    second.release()
    assert lines[0].endswith("waiting 30 s for it")


def written_by(folder: Path, **holder: object) -> Path:
    path = folder / ".lock"
    path.write_text(json.dumps({"user": "ann", "since": "2026-01-01", **holder}))
    return path


def test_a_silent_process_of_another_machine_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_lock, "STALE_SECONDS", 0.5)
    written_by(tmp_path, host="elsewhere", pid=1)
    lines: list[str] = []
    lock = RunLock(tmp_path)
    lock.acquire(lines.append)
    lock.release()
    assert lines[0].startswith(f"{tmp_path} is in use by process 1 of ann on elsewhere, since 2026-01-01; waiting")


def test_a_process_of_another_machine_that_shows_signs_of_life_has_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_lock, "STALE_SECONDS", 30.0)
    path = written_by(tmp_path, host="elsewhere", pid=1)
    timer = threading.Timer(0.5, lambda: os.utime(path, (time.time() + 1, time.time() + 1)))
    timer.start()
    with pytest.raises(EnvironmentProblem, match="on elsewhere"):
        acquire(tmp_path)
    timer.join()


def test_a_process_that_was_seen_long_ago_is_not_waited_for(tmp_path: Path) -> None:
    path = written_by(tmp_path, host="elsewhere", pid=1)
    os.utime(path, (0, 0))
    acquire(tmp_path).release()


def test_without_locks_of_the_system_a_living_process_has_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_lock, "try_lock", lambda descriptor: None)
    written_by(tmp_path, host=socket.gethostname(), pid=os.getppid())
    with pytest.raises(EnvironmentProblem, match=f"process {os.getppid()}"):
        acquire(tmp_path)
    written_by(tmp_path, host=socket.gethostname(), pid=2**22 + 1)  # Linux numbers processes up to 2**22
    acquire(tmp_path).release()


def test_a_lock_that_is_a_pipe_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / ".lock")
    with pytest.raises(OSError, match="is a named pipe"):
        acquire(tmp_path)


def test_a_holder_shows_signs_of_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_lock, "HEARTBEAT_SECONDS", 0.05)
    lock = acquire(tmp_path)
    path = tmp_path / ".lock"
    os.utime(path, (0, 0))
    deadline = time.monotonic() + 20
    while path.stat().st_mtime == 0 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert path.stat().st_mtime > 0
    lock.release()
