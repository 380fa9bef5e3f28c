"""A place to write to: free, or given up on purpose; filled beside it and moved into it when all is there."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from reptk.core.errors import EnvironmentProblem, UsageError


def check_free(path: Path, *, force: bool) -> None:
    """Raise unless a file can go there.

    Raises:
        UsageError: something is there already, and nobody said that it may go; or it is a folder.
        EnvironmentProblem: the folder is missing or cannot be written.
    """
    if path.is_dir():
        raise UsageError(f"{path} is a folder; name a file")
    if path.exists() and not force:
        raise UsageError(f"{path} exists. Choose another --out, or write over it: --force")
    check_writable(path)


def check_writable(path: Path) -> None:
    """Raise EnvironmentProblem unless the folder around `path` is there and can be written."""
    home = path.absolute().parent
    if not home.is_dir():
        raise EnvironmentProblem(f"cannot write {path}: there is no folder {home}. Make it, or choose another --out")
    if not os.access(home, os.W_OK):
        raise EnvironmentProblem(f"cannot write {path}: no right to write in {home}. Choose another --out")


def check_room(path: Path, needed: int) -> None:
    """Raise EnvironmentProblem unless so many bytes are free on the disk of `path`."""
    free = shutil.disk_usage(path.absolute().parent).free
    if needed > free:
        raise EnvironmentProblem(
            f"{path} takes {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free there. Choose an --out on another disk, or "
            "store half as much: --half"
        )


@contextmanager
def beside(path: Path) -> Iterator[Path]:
    """The name of an unfinished file beside `path`, which takes its place at the end; on any error it is removed.

    Raises:
        EnvironmentProblem: it cannot be written.
    """
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        try:
            yield unfinished
            with unfinished.open("rb") as file:
                os.fsync(file.fileno())
            unfinished.replace(path)
        except OSError as cause:
            raise EnvironmentProblem(f"cannot write {path}: {cause.strerror or cause}. Choose another --out") from cause
    finally:
        unfinished.unlink(missing_ok=True)
