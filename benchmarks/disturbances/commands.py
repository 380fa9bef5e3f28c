"""Commands of reptk in processes that can be killed: forked from this one, started anew, or as several ranks.

A forked process has imported reptk already, and runs the same `main` with the same arguments. That saves the six seconds which
the import of torch takes. It ends by `os._exit` after its output is written.
"""

import importlib
import os
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

LIMIT_SECONDS = 300.0
"""After which a command counts as hanging."""

POLL_SECONDS = 0.005

LAUNCHER_GRACE_SECONDS = 30.0
"""torchrun sends SIGTERM to the other ranks when one has ended, and SIGKILL so much later."""

MARK = "REPTK_BENCHMARK_CASE"
"""Environment variable by which processes of a case are found, whatever started them."""

RECIPE = "reptk.recipe"
REPTK = "reptk.cli"

Preparation = Callable[[], None]
"""What a forked process does before its command: it prepares, e.g., to be killed."""


class HangsError(Exception):
    """A command did not end."""


class Command(NamedTuple):
    """A command line and where it runs.

    module: `RECIPE` or `REPTK`, whose `main` it calls.
    folder: the current folder; temporary files go into `tmp` there.
    """

    module: str
    arguments: tuple[str, ...]
    folder: Path

    def line(self) -> list[str]:
        """As a user types it."""
        return [sys.executable, "-m", self.module, *self.arguments]


class Process:
    """A process that this one has started, at the head of its own session."""

    def __init__(self, pid: int, output: Path) -> None:
        self.pid = pid
        self.output = output
        self.exit_code: int | None = None

    def has_ended(self) -> bool:
        """Return whether it has ended; then `exit_code` is set, negative if a signal ended it."""
        if self.exit_code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.exit_code = os.waitstatus_to_exitcode(status)
        return self.exit_code is not None

    def wait(self, seconds: float = LIMIT_SECONDS) -> int:
        """Wait for its end and return its exit code.

        Raises:
            HangsError: it runs on; it is killed.
        """
        if not self.ends_within(seconds):
            self.send(signal.SIGKILL)
            self.ends_within(10.0)
            raise HangsError(f"does not end in {seconds:.0f} s: {self.last_line()}")
        return self.exit_code

    def ends_within(self, seconds: float) -> bool:
        """Wait for its end for so long, and return whether it has ended."""
        deadline = time.monotonic() + seconds
        while not self.has_ended():
            if time.monotonic() >= deadline:
                return False
            time.sleep(POLL_SECONDS)
        return True

    def send(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if not self.has_ended():
            os.kill(self.pid, number)

    def text(self) -> str:
        """What it has printed."""
        return self.output.read_text(encoding="utf-8", errors="replace")

    def last_line(self) -> str:
        lines = self.text().strip().splitlines()
        if not lines:
            return "nothing printed"
        return lines[-1][:200]


def fork(
    command: Command, preparations: Sequence[Preparation] = (), environment: dict[str, str] | None = None
) -> Process:
    """Run a command in a fork of this process."""

    def call() -> int:
        tempfile.tempdir = None  # read from the environment again
        for prepare in preparations:
            prepare()
        return importlib.import_module(command.module).main(list(command.arguments))

    return _start(call, command.folder, environment or {})


def execute(line: Sequence[str], folder: Path) -> Process:
    """Run a command line in a process that imports everything anew, as a shell starts it."""

    def call() -> int:
        os.execvpe(line[0], list(line), dict(os.environ))  # noqa: S606 - the command itself, without a shell

    return _start(call, folder, {})


def fork_ranks(command: Command, count: int, preparations: Sequence[Preparation] = ()) -> list[Process]:
    """Run a command on several ranks of this machine, with the environment that torchrun gives them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = []
    for rank in range(count):
        environment = {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(count),
            "LOCAL_WORLD_SIZE": str(count),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        ranks.append(fork(command, preparations, environment))
    return ranks


def torchrun_line(command: Command, ranks: int) -> list[str]:
    """The command under torchrun."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    return [*launcher, "-m", command.module, *command.arguments]


def wait_as_launcher(
    ranks: Sequence[Process], seconds: float = LIMIT_SECONDS, *, sends_signal: bool = True
) -> list[int]:
    """Wait for all ranks, and return their exit codes.

    When one fails, the others get SIGTERM, and after `LAUNCHER_GRACE_SECONDS` SIGKILL, as by torchrun.

    Args:
        seconds: until a rank counts as hanging.
        sends_signal: whether they get SIGTERM; otherwise they have to notice by themselves.

    Raises:
        HangsError: a rank runs on, although none has failed.
    """
    deadline = time.monotonic() + seconds
    failed_at = None
    while True:
        running = [rank for rank in ranks if not rank.has_ended()]
        if not running:
            return [rank.exit_code for rank in ranks]
        now = time.monotonic()
        if failed_at is None and any(rank.exit_code for rank in ranks):
            failed_at = now
            if sends_signal:
                _send_to_all(running, signal.SIGTERM)
        is_grace_over = failed_at is not None and now - failed_at > LAUNCHER_GRACE_SECONDS
        if is_grace_over or now > deadline:
            _send_to_all(running, signal.SIGKILL)
            if not is_grace_over:
                raise HangsError("ranks do not end: " + "; ".join(rank.last_line() for rank in ranks))
        time.sleep(POLL_SECONDS)


def _send_to_all(processes: Sequence[Process], number: int) -> None:
    for process in processes:
        process.send(number)


def marked_processes(folder: Path) -> list[int]:
    """Return the processes that commands of this folder have left: those of their sessions, and those with their mark."""
    mark = f"{MARK}={folder}".encode()
    sessions = _sessions.get(folder, set())
    pids = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            state, session = fields[0], int(fields[3])
            variables = (entry / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if state != "Z" and (session in sessions or mark in variables):
            pids.append(int(entry.name))
    return pids


_sessions: dict[Path, set[int]] = {}
"""Sessions of the forked processes by folder: their environment in /proc is that of this process."""


def _start(call: Callable[[], int], folder: Path, environment: dict[str, str]) -> Process:
    temporary = folder / "tmp"
    temporary.mkdir(exist_ok=True)
    outputs = folder.with_name(f"{folder.name}.out")
    outputs.mkdir(exist_ok=True)
    output = outputs / f"{len(list(outputs.iterdir())):03d}.txt"
    output.touch()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        _sessions.setdefault(folder, set()).add(pid)
        return Process(pid, output)
    exit_code = 1
    try:
        os.setsid()
        os.chdir(folder)
        _restore_signals()
        os.environ.update(environment | {MARK: str(folder), "TMPDIR": str(temporary), "OMP_NUM_THREADS": "1"})
        descriptor = os.open(output, os.O_WRONLY | os.O_APPEND)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        exit_code = call()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(exit_code)


def _restore_signals() -> None:
    """A program that is started in the background of a script ignores Ctrl-C, and its children would, too."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
