"""Locks of files between processes. The system releases the lock of a process that ends, however it ends."""

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

UNSUPPORTED = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
"""Errors of file systems without locks."""


def try_lock(descriptor: int) -> bool | None:
    """Lock an open file without waiting.

    Returns:
        True; False if another process has locked it; None if the system or the file system has no locks.
    """
    try:
        import fcntl
    except ImportError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as cause:
        if cause.errno in UNSUPPORTED:
            return None
        raise
    return True


@contextmanager
def exclusive_lock(folder: Path, *, wait: bool = True) -> Iterator[None]:
    """Let one process at a time run the block; the others wait.

    Unlike a barrier of all ranks, waiting has no timeout.

    Args:
        folder: which holds the file `.lock`.
        wait: until no other process is in the block.

    Raises:
        BlockingIOError: another process is in the block, and `wait` is false.
        OSError: the system or the file system has no locks, or the folder cannot be written.
    """
    try:
        import fcntl
    except ImportError as cause:
        raise OSError("this system has no flock") from cause
    with (folder / ".lock").open("w") as file:
        mode = fcntl.LOCK_EX
        if not wait:
            mode |= fcntl.LOCK_NB
        fcntl.flock(file, mode)
        yield


def is_alive(pid: int) -> bool:
    """Return whether a process of this machine exists and has not ended."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it belongs to another user
        return True
    return not _is_zombie(pid)


def _is_zombie(pid: int) -> bool:
    """Return whether a process has ended, and its parent has not read its exit code. False where there is no /proc."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    # The name before it, in parentheses, may hold anything.
    state = stat.rpartition(")")[2].split()[0]
    return state == "Z"


def machine_name() -> str:
    """Return what files call the machine that wrote them."""
    return socket.gethostname()
