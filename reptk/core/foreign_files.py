"""Files that somebody else may have written are opened here: regular files alone, and never more is read than is plausible.

A path in a table, a run or a file of embeddings may lead to a device, a pipe or a socket, whose content has no end or never
comes, and a file may claim or have any size. Everything that opens such a file goes through this module.
"""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from reptk.core.files import parse_json

MAX_TOML_BYTES = 1 << 20
MAX_JSON_BYTES = 1 << 26
"""Recipes have a few kilobytes; results of many thousand classes, and the index of a large model, a few megabytes."""

_KINDS = (
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


class UnsuitableFile(OSError):  # noqa: N818 - it is an OSError
    """A path leads to no regular file, or to one that is larger than such a file can be."""

    def __init__(self, path: str | Path, reason: str) -> None:
        super().__init__(f"{path} {reason}")
        self.reason = reason


def require_regular_file(path: str | Path, max_bytes: int | None = None) -> int:
    """Return the size of a file in bytes.

    Raises:
        UnsuitableFile: it is a device, a named pipe or a socket, or has more than `max_bytes`.
        OSError: it does not exist, or is a folder.
    """
    return _check(os.stat(path), path, max_bytes)  # noqa: PTH116 - several times as fast as by Path, for a million files


def require_regular_files(folder: Path) -> None:
    """Check that whatever is directly in a folder is a file or a folder; what is in those folders is not looked at.

    Raises:
        UnsuitableFile: there is a device, a named pipe or a socket, to which a program would write for ever.
    """
    for entry in folder.iterdir():
        # A link to nothing is written to as a file.
        if entry.exists():
            require_regular_file(entry)


@contextmanager
def open_regular(path: str | Path, max_bytes: int | None = None) -> Iterator[BinaryIO]:
    """Open a regular file for reading.

    Raises:
        UnsuitableFile, OSError: see `require_regular_file`.
    """
    require_regular_file(path, max_bytes)
    # Another file may have taken its place since. Opening a pipe without the flag waits for somebody to write to it.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with open(descriptor, "rb") as file:  # noqa: PTH123 - a descriptor
        _check(os.fstat(descriptor), path, max_bytes)
        yield file


@contextmanager
def append_to_regular(path: str | Path) -> Iterator[BinaryIO]:
    """Open a regular file for appending, or create it.

    Raises:
        UnsuitableFile: it is a link, a device, a named pipe or a socket.
        OSError: it is a folder, or cannot be written for another reason.
    """
    try:
        # Without the last flag, opening a pipe waits for somebody to read from it.
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
        descriptor = os.open(path, flags, 0o666)
    except OSError as cause:
        if cause.errno == errno.ELOOP:
            raise UnsuitableFile(path, "is a link, not a file") from cause
        if cause.errno == errno.ENXIO:
            raise UnsuitableFile(path, "is a named pipe or a socket, not a file") from cause
        raise
    with open(descriptor, "ab") as file:  # noqa: PTH123 - a descriptor
        _check(os.fstat(descriptor), path, None)
        yield file


def read_bytes(path: str | Path, max_bytes: int) -> bytes:
    """Return the content of a regular file.

    Raises:
        UnsuitableFile, OSError: see `require_regular_file`.
    """
    with open_regular(path, max_bytes) as file:
        # Not more than its size: files of the system claim none, and some of them have no end.
        return file.read(os.fstat(file.fileno()).st_size)


def read_text(
    path: str | Path, max_bytes: int = MAX_JSON_BYTES, *, encoding: str = "utf-8", errors: str = "strict"
) -> str:
    """Return the text of a regular file.

    Raises:
        UnsuitableFile, OSError: see `require_regular_file`.
        UnicodeDecodeError: it is not in this encoding.
    """
    return read_bytes(path, max_bytes).decode(encoding, errors)


def read_json(path: str | Path, max_bytes: int = MAX_JSON_BYTES) -> Any:
    """Return what a JSON file holds.

    Raises:
        UnsuitableFile, OSError: see `require_regular_file`.
        ValueError: it is not UTF-8, not JSON, or too deeply nested.
    """
    return parse_json(read_text(path, max_bytes))


def _check(status: os.stat_result, path: str | Path, max_bytes: int | None) -> int:
    for is_kind, kind in _KINDS:
        if is_kind(status.st_mode):
            raise UnsuitableFile(path, f"is {kind}, not a file")
    if max_bytes is not None and status.st_size > max_bytes:
        raise UnsuitableFile(
            path, f"has {status.st_size:,} bytes, more than the {max_bytes:,} that are read of such a file"
        )
    return status.st_size
