"""Reading that is tried again where a network file system may fail for a moment."""

import errno
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

TRANSIENT_ERRORS = frozenset({errno.EAGAIN, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ESTALE, errno.ETIMEDOUT})
"""A file server that was restarted or does not answer, and files that other threads are about to close."""

WAITS_SECONDS = (0.05, 0.5, 2.0)
"""Before each further attempt. A file that still fails then counts as unreadable."""


def with_retries(read: Callable[[], T]) -> T:
    """Call a function that reads a file, and again after each of `WAITS_SECONDS` if it fails in a way that may pass.

    Raises:
        OSError: it fails in another way, or still.
    """
    for seconds in WAITS_SECONDS:
        try:
            return read()
        except OSError as error:
            if error.errno not in TRANSIENT_ERRORS:
                raise
        time.sleep(seconds)
    return read()
