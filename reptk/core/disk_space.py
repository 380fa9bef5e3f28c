"""A disk that is full is called that, whichever library noticed it, with how much is needed and how much is free."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from reptk.core.counts import format_bytes
from reptk.core.errors import EnvironmentProblem, ReptkError

FULL_DISK_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""No space on the device, the user's share is used up, and a file above the limit of the process or file system."""

FULL_DISK_TEXTS = (*map(os.strerror, sorted(FULL_DISK_ERRORS)), "unexpected pos", "PytorchStreamWriter failed writing")
"""What messages contain where a library has turned the OSError into its own type: safetensors, Arrow; the last two, torch."""

WORK_SUFFIX = ".writing"
"""Hidden folders in which files and folders are written are called `.NAME.0123abcd.writing`; see `reptk.core.files`."""

DEFAULT_ADVICE = "Choose another --out"


def check_free_space(path: Path, needed_bytes: int, advice: str) -> None:
    """Raise EnvironmentProblem unless the disk of `path`, which need not exist yet, has that much free space.

    Args:
        path: the file or folder to be written.
        needed_bytes: its size.
        advice: what the user can do, as the sentence that follows.
    """
    free_bytes = _free_bytes(path)
    if free_bytes is not None and needed_bytes > free_bytes:
        needed, free = format_bytes(needed_bytes), format_bytes(free_bytes)
        raise EnvironmentProblem(f"{_final_path(path)} needs {needed}, and {free} are free on its disk. {advice}")


def is_disk_full(error: BaseException) -> bool:
    """Return whether an error, or one that it was raised from or after, says that a disk is full."""
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, OSError) and link.errno in FULL_DISK_ERRORS:
            return True
        if isinstance(link, Exception) and any(text in str(link) for text in FULL_DISK_TEXTS):
            return True
        link = link.__cause__ or link.__context__
    return False


def disk_problem(
    path: Path, error: BaseException, *, needed_bytes: int | None = None, advice: str | None = None
) -> EnvironmentProblem:
    """Return the message for a disk that was full when `path` was written.

    Args:
        path: the file or folder.
        error: what was raised; see `is_disk_full`.
        needed_bytes: its size, if that is known.
        advice: what the user can do; by default, to free space or choose another disk.
    """
    needed = ""
    if needed_bytes is not None:
        needed = f"{format_bytes(needed_bytes)} needed, "
    # A quota, and a limit on the size of files, leave free space that cannot be used.
    free_bytes = _free_bytes(path)
    free = "free space unknown"
    if free_bytes is not None:
        free = f"{format_bytes(free_bytes)} free"
    if advice is None:
        advice = "Free some space, or choose another disk"
    return EnvironmentProblem(f"the disk of {_final_path(path)} is full ({_reason(error)}): {needed}{free}. {advice}")


@contextmanager
def explain_full_disk(path: Path, *, needed_bytes: int | None = None) -> Iterator[None]:
    """Turn an error of the block that says that the disk is full into an EnvironmentProblem; see `disk_problem`."""
    try:
        yield
    except ReptkError:
        raise  # it has its message
    except Exception as cause:
        if is_disk_full(cause):
            raise disk_problem(path, cause, needed_bytes=needed_bytes) from cause
        raise


@contextmanager
def explain_write_errors(path: Path, advice: str = DEFAULT_ADVICE) -> Iterator[None]:
    """Turn an OSError of the block, or a full disk by another name, into an EnvironmentProblem that names `path`.

    Args:
        path: the file or folder that the block writes.
        advice: what the user can do.
    """
    try:
        with explain_full_disk(path):
            yield
    except BrokenPipeError:
        raise  # the reader of a pipe has closed it, which is no mistake
    except OSError as cause:
        raise EnvironmentProblem(f"cannot write {_final_path(path)}: {cause.strerror or cause}. {advice}") from cause


def _final_path(path: Path) -> Path:
    """Return the path that a file will have: that of a file in a hidden folder is the same without this folder."""
    return Path(*[part for part in path.parts if not (part.startswith(".") and part.endswith(WORK_SUFFIX))])


def _reason(error: BaseException) -> str:
    """Return the words of the operating system, as far as they are known."""
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, OSError) and link.errno in FULL_DISK_ERRORS:
            return os.strerror(link.errno)
        for number in FULL_DISK_ERRORS:
            if os.strerror(number) in str(link):
                return os.strerror(number)
        link = link.__cause__ or link.__context__
    return "a write was cut short"


def _free_bytes(path: Path) -> int | None:
    """Return the free space of the nearest folder that exists; None where the system does not say."""
    for folder in (path.absolute(), *path.absolute().parents):
        if folder.exists():
            try:
                return shutil.disk_usage(folder).free
            except OSError:
                return None
    return None
