"""Processes of the benchmarks: a script in a process of its own, commands with a time limit, and process trees."""

import os
import signal
import subprocess
import sys
from pathlib import Path

GRACE_SECONDS = 5.0
"""Time to end after an interrupt, and once more after being killed."""


def run_script(script: str, *arguments: str) -> str:
    """Run a Python script in a separate process and return what it prints.

    Raises:
        subprocess.CalledProcessError: it failed; `stderr` says why.
    """
    command = [sys.executable, script, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def run_limited(command: list[str], output: Path, seconds: float) -> int | None:
    """Run a command and write what it prints to a file.

    When the command ends, is out of time, or an exception interrupts the waiting, all processes that it started end too.

    Returns:
        The exit code; None if the command was stopped after `seconds`.
    """
    # Unbuffered, so that the file shows how far a stopped command came; the fault handler shows where one crashed.
    environment = os.environ | {"PYTHONUNBUFFERED": "1", "PYTHONFAULTHANDLER": "1"}
    with output.open("w") as file:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,  # makes it the leader of a process group, which can be stopped as a whole
        )
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None
        finally:
            _stop(process)


def process_tree(process_id: int) -> set[int]:
    """Return a process and all that descend from it, as Linux lists them."""
    parents = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        status = read_process_file(folder / "stat")
        if status:
            # The name in front, in parentheses, may contain spaces.
            fields = status.rpartition(")")[2].split()
            parents[int(folder.name)] = int(fields[1])
    tree = {process_id}
    while True:
        children = {child for child, parent in parents.items() if parent in tree}
        if children <= tree:
            return tree
        tree |= children


def read_process_file(path: Path) -> str:
    """Return the text of a file below /proc; an empty string if the process has ended or the file may not be read."""
    try:
        return path.read_text()
    except OSError:
        return ""


def _stop(process: subprocess.Popen) -> None:
    """End what is left of a process group: by an interrupt, so that a traceback shows what it was doing, then by force."""
    if process.poll() is None:
        tree = process_tree(process.pid)  # includes children that started sessions of their own
        _signal_group(process.pid, signal.SIGINT)
        _wait(process)
        for member in tree - {process.pid}:
            _signal(member, signal.SIGKILL)
    _signal_group(process.pid, signal.SIGKILL)
    _wait(process)


def _wait(process: subprocess.Popen) -> None:
    try:
        process.wait(GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        return  # a process that hangs in a driver cannot be killed, and nothing should wait for it


def _signal_group(group: int, number: signal.Signals) -> None:
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return


def _signal(process_id: int, number: signal.Signals) -> None:
    try:
        os.kill(process_id, number)
    except ProcessLookupError:
        return
