"""Kills writers at every moment at which they change the file system, fills their disk, and damages files.

A moment is an operation of the child process that an audit hook sees (a file is opened to be written, a folder is created, a
name is changed or removed) or a flush to the disk. The child is a real process that ends without cleaning up.
"""

import io
import os
import resource
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

from reptk.core.errors import EnvironmentProblem

OPERATIONS = (
    "os.mkdir",
    "os.rename",
    "os.remove",
    "os.rmdir",
    "os.truncate",
    "os.link",
    "os.symlink",
    "shutil.copyfile",
)
WRITE_FLAGS = os.O_WRONLY | os.O_RDWR
MAX_MOMENTS = 1000


class MomentCounter:
    """Ends this process at the `moment`-th operation: before it, or, of a file that is opened to be emptied, right after it.

    Args:
        moment: counted from 0.
        folder: operations elsewhere are not counted.
    """

    def __init__(self, moment: int, folder: Path) -> None:
        self.moments_left = moment
        self.folder = os.path.realpath(folder)
        fsync = os.fsync

        def counted_fsync(descriptor: int) -> None:
            self._next_moment()
            fsync(descriptor)

        os.fsync = counted_fsync
        sys.addaudithook(self._hook)

    def _hook(self, event: str, args: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = args
            if isinstance(path, int) or not flags & WRITE_FLAGS or not self._is_inside(path):
                return
            self._next_moment()
            if flags & os.O_TRUNC:
                self._next_moment(lambda: os.truncate(path, 0) if os.path.exists(path) else None)  # noqa: PTH110
        elif event in OPERATIONS and self._is_inside(args[0]):
            self._next_moment()

    def _is_inside(self, path: Any) -> bool:
        # Names relative to a descriptor, which shutil.rmtree uses, are inside: nothing else is removed.
        name = os.fsdecode(path)
        return not os.path.isabs(name) or os.path.realpath(name).startswith(self.folder)  # noqa: PTH117

    def _next_moment(self, last_action: Callable[[], object] = lambda: None) -> None:
        self.moments_left -= 1
        if self.moments_left == -1:
            last_action()
            os.kill(os.getpid(), signal.SIGKILL)


def is_killed(action: Callable[[], object], moment: int, folder: Path) -> bool:
    """Run `action` in a child process that is killed at this moment; False if it ends before.

    Args:
        action: what the child does; an exception in it is an AssertionError here.
        moment: see `MomentCounter`.
        folder: what is written to.
    """
    child = fork()
    if child == 0:
        exit_code = 1
        try:
            MomentCounter(moment, folder)
            action()
            exit_code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(exit_code)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) == 0, "the action failed; its traceback is printed above"
    return False


def kill_at_every_moment(
    prepare: Callable[[], object], action: Callable[[], object], folder: Path
) -> Iterator[tuple[int, bool]]:
    """Run `prepare`, then `action` killed at the first moment, at the second, ...; yield the moment, and whether it was killed.

    The last time, `action` ends by itself.
    """
    for moment in count():
        assert moment < MAX_MOMENTS
        prepare()
        killed = is_killed(action, moment, folder)
        yield moment, killed
        if not killed:
            return


def run_with_full_disk(action: Callable[[], object], max_file_bytes: int) -> str:
    """Run `action` in a child process that cannot write files of more than so many bytes; return what it prints as errors.

    `action` returns the exit code of a command, which must be that of a problem of the environment, or raises one.
    """
    reader, writer = os.pipe()
    child = fork()
    if child == 0:
        sys.stderr = io.StringIO()
        exit_code = 1
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (max_file_bytes, max_file_bytes))
            exit_code = action()
        except EnvironmentProblem as problem:
            exit_code = problem.exit_code
            print(f"error: {problem}", file=sys.stderr)
        except BaseException:
            traceback.print_exc()
        finally:
            os.write(writer, sys.stderr.getvalue().encode("utf-8", "replace")[:60_000])  # what a pipe holds
            os._exit(exit_code)
    os.close(writer)
    with open(reader, encoding="utf-8") as pipe:  # noqa: PTH123 (a descriptor)
        message = pipe.read()
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == EnvironmentProblem.exit_code, message
    return message


def fork() -> int:
    sys.stdout.flush()
    sys.stderr.flush()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of Python 3.12: other threads are not copied
        return os.fork()


def hidden_names(folder: Path) -> list[str]:
    """Return the names of hidden files and folders, at any depth, except for the lock of a cache, which stays."""
    return sorted(path.name for path in folder.rglob(".*") if path.name != ".lock")


def flip_bit(path: Path, at: int, bit: int = 0) -> None:
    """Flip one bit of a file in place, in the byte at this position; negative ones are counted from the end."""
    content = bytearray(path.read_bytes())
    content[at] ^= 1 << bit
    path.write_bytes(content)
