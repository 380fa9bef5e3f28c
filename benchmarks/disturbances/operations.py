"""Kills a process at its n-th operation on the file system: before a file is opened or renamed, or when half is written."""

import builtins
import io
import itertools
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

PATH_EVENTS = {
    "os.mkdir": 2,
    "os.rename": 2,
    "os.remove": 1,
    "os.rmdir": 1,
    "os.truncate": None,
    "os.utime": 3,
    "os.link": 2,
    "os.symlink": 2,
    "shutil.rmtree": None,
    "shutil.copyfile": None,
    "shutil.move": None,
}
"""Audit events of Python by which something changes, and which argument is the open folder that a relative path is below."""

WRITING_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class KillAtOperation:
    """Ends this process by SIGKILL at an operation below a folder.

    Operations are the audit events above, opening a file to write, `os.fsync`, and the first write to each file, of which half
    is done. What libraries do outside of Python is not seen, apart from the fsync and the renaming that follow.

    Args:
        number: from 1; 0 to count only.
        folder: operations elsewhere do not count.
        log: where the operation at which it ends is written; with number 0, all of them.
    """

    def __init__(self, number: int, folder: Path, log: Path) -> None:
        self.number = number
        self.folder = str(folder)
        self.log = log
        self._descriptor = -1
        self._numbers = itertools.count(1)

    def __call__(self) -> None:
        """Watch this process from now on, which cannot be undone."""
        self._descriptor = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._wrap_fsync()
        self._wrap_open()
        sys.addaudithook(self._audit)

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if isinstance(flags, int) and flags & WRITING_FLAGS:
                self._pass("open", path)
        elif event in PATH_EVENTS:
            self._pass(event, arguments[0], self._folder_descriptor(event, arguments))

    def _folder_descriptor(self, event: str, arguments: tuple[Any, ...]) -> int:
        position = PATH_EVENTS[event]
        if position is None or position >= len(arguments):
            return -1
        value = arguments[position]
        if not isinstance(value, int):
            return -1
        return value

    def _pass(
        self, event: str, path: Any, folder_descriptor: int = -1, before_end: Callable[[], None] | None = None
    ) -> None:
        """Count an operation, and end this process if it is the one."""
        name = self._absolute(path, folder_descriptor)
        if name is None or not name.startswith(self.folder):
            return
        number = next(self._numbers)
        if self.number not in (0, number):
            return
        os.write(self._descriptor, f"{number} {event} {name[len(self.folder) + 1 :]}\n".encode())
        if self.number == number:
            if before_end is not None:
                before_end()
            os.kill(os.getpid(), signal.SIGKILL)

    def _absolute(self, path: Any, folder_descriptor: int) -> str | None:
        try:
            if isinstance(path, int):
                return str(Path(f"/proc/self/fd/{path}").readlink())
            name = os.fsdecode(path)
            if folder_descriptor >= 0 and not os.path.isabs(name):  # noqa: PTH117 - called at every operation
                return str(Path(f"/proc/self/fd/{folder_descriptor}").readlink() / name)
            return os.path.abspath(name)  # noqa: PTH100
        except (OSError, TypeError):
            return None

    def _wrap_fsync(self) -> None:
        fsync = os.fsync

        def watched_fsync(descriptor: Any) -> None:
            self._pass("fsync", descriptor if isinstance(descriptor, int) else descriptor.fileno())
            fsync(descriptor)

        os.fsync = watched_fsync

    def _wrap_open(self) -> None:
        plain_open = io.open

        def watched_open(file: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
            opened = plain_open(file, mode, *arguments, **options)
            if set(mode) & set("wax+"):
                return _WatchedFile(opened, lambda before_end: self._pass("write", file, before_end=before_end))
            return opened

        builtins.open = watched_open
        io.open = watched_open


class _WatchedFile:
    """A file that reports its first write, which can then be done by half."""

    def __init__(self, file: Any, report: Callable[[Callable[[], None]], None]) -> None:
        self._file = file
        self._report: Callable[[Callable[[], None]], None] | None = report

    def write(self, content: Any) -> int:
        report, self._report = self._report, None
        if report is not None:
            report(lambda: self._write_half(content))
        return self._file.write(content)

    def _write_half(self, content: Any) -> None:
        self._file.write(content[: len(content) // 2])
        self._file.flush()

    def __enter__(self) -> "_WatchedFile":
        self._file.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._file.__exit__(*error)

    def __iter__(self) -> Any:
        return iter(self._file)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)
