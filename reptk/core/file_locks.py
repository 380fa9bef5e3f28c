"""Locks of files between processes. The system releases the lock of a process that ends, however it ends."""

import os
import socket


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
    except OSError:
        return None
    return True


def is_alive(pid: int) -> bool:
    """Return whether a process of this machine exists."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it belongs to another user
        return True
    return True


def machine_name() -> str:
    """Return what files call the machine that wrote them."""
    return socket.gethostname()
