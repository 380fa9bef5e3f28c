"""Everything that is written goes through here: a file or folder appears, or is replaced, as a whole or not at all.

New content is written in a hidden folder next to its target, flushed to disk, and renamed. A writer holds a lock in its
hidden folder for as long as it lives, so the next writer of the same target can tell the leftovers of one that was killed,
and removes them.
"""

import ctypes
import errno
import hashlib
import json
import math
import os
import re
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from reptk.core.disk_space import WORK_SUFFIX, explain_full_disk
from reptk.core.file_locks import is_alive, machine_name, try_lock

LOCK_FILE = ".reptk-lock"
REPLACED = ".reptk-replaced"
"""Within such a folder: the file that its writer locks, and the former target, where two folders cannot be exchanged."""

MAX_NAME_BYTES = 200
"""Longer names are replaced by a hash in the names of hidden folders, since file systems allow 255 bytes."""

UNLOCKED_SECONDS = 24 * 3600
"""On a file system without locks, a hidden folder of another machine that has not changed for so long is abandoned."""

MAX_INT_DIGITS = 300
"""Of integers in JSON files. Longer ones cannot become floating-point numbers."""

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
"""Arguments of renameat2, as Linux defines them."""


@contextmanager
def atomic_write(path: Path, *, needed_bytes: int | None = None) -> Iterator[Path]:
    """Yield a temporary path; the file that the block writes there replaces `path` in one step.

    A reader sees the old content or the new one, never a part. If the block raises, or the process is killed, `path` is left
    as it was. A link is followed. A pipe or a device gets the content when the block ends.

    Args:
        path: the file, in a folder that exists.
        needed_bytes: its size, if that is known, for the message if the disk is full.

    Raises:
        EnvironmentProblem: the disk is full.
        OSError: the file cannot be written for another reason.
    """
    if _is_stream(path):
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder, "content")
            with Path(folder, "content").open("rb") as content, path.open("wb") as stream:
                shutil.copyfileobj(content, stream)
        return
    target = real_path(path)
    with explain_full_disk(path, needed_bytes=needed_bytes), _work_folder(target) as work:
        temporary = work / target.name
        yield temporary
        # Otherwise a crash of the system soon after the renaming could leave an empty file.
        flush_to_disk(temporary)
        temporary.replace(target)
        flush_to_disk(target.parent)


@contextmanager
def atomic_folder(path: Path, *, force: bool = False, needed_bytes: int | None = None) -> Iterator[Path]:
    """Yield a temporary folder, empty; with what the block writes into it, it becomes or replaces `path` in one step.

    Under `path` there is the old folder or the new one, complete, at every moment. (On systems that cannot exchange two
    folders it is missing for an instant; see `recover_folder`.) If the block raises, or the process is killed, the old one is
    left as it was. A link is followed.

    Args:
        path: the folder, in one that exists.
        force: replace a folder that exists, with all that it holds.
        needed_bytes: its size, if that is known, for the message if the disk is full.

    Raises:
        FileExistsError, NotADirectoryError: `path` exists and `force` is not set, or it is no folder.
        EnvironmentProblem: the disk is full.
        OSError: the folder cannot be written for another reason.
    """
    target = real_path(path)
    with explain_full_disk(path, needed_bytes=needed_bytes), _work_folder(target) as work:
        if target.exists() and not force:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
        if target.exists() and not target.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
        temporary = work / target.name
        temporary.mkdir()
        yield temporary
        _flush_tree(temporary)
        if target.exists():
            _swap(temporary, target, work)
        else:
            temporary.rename(target)
        flush_to_disk(target.parent)


def remove_folder(path: Path) -> None:
    """Remove a folder with all that it holds; under `path` there is all of it or nothing, even if the process is killed.

    Raises:
        OSError: it cannot be removed.
    """
    with _work_folder(path) as work:
        path.rename(work / path.name)


def recover_folder(path: Path) -> None:
    """Put a folder back that a killed writer had moved aside, on systems that cannot exchange two folders.

    For readers of a folder, before they report that it is missing; writers do so themselves.
    """
    if not path.exists():
        with suppress(OSError):  # e.g. no right to write
            remove_leftovers(real_path(path))


def flush_to_disk(path: Path) -> None:
    """Wait until the content of a file, or the names in a folder, would survive a crash of the system."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems cannot flush a folder; nothing else can be done there.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(descriptor)


def write_bytes(path: Path, content: bytes) -> None:
    """Replace the content of `path` atomically; see `atomic_write`."""
    with atomic_write(path, needed_bytes=len(content)) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Replace the content of `path` atomically, in UTF-8; undecodable file names survive (surrogateescape)."""
    write_bytes(path, text.encode("utf-8", "surrogateescape"))


def holds_only(folder: Path, names: frozenset[str]) -> bool:
    """Return whether `folder` is a folder with files of these names alone, which may be replaced by new ones.

    What a killed writer of one of them left is no other file. Earlier versions wrote to `.NAME.PROCESS`.
    """
    if not folder.is_dir():
        return False
    leftovers = tuple(f".{name}." for name in names)
    return all(path.name in names or path.name.startswith(leftovers) for path in folder.iterdir())


# What a writer does


@contextmanager
def _work_folder(target: Path) -> Iterator[Path]:
    """Yield a new hidden folder next to `target`, which is removed afterwards; those of dead writers are removed first."""
    remove_leftovers(target)
    work, lock = _create_work_folder(target)
    try:
        yield work
    finally:
        try:
            _remove(work)
        finally:
            os.close(lock)  # which releases the lock


def _create_work_folder(target: Path) -> tuple[Path, int]:
    """Create a hidden folder with a locked file in it; return both, the file as a descriptor."""
    while True:
        work = target.with_name(f"{_work_prefix(target)}{secrets.token_hex(4)}{WORK_SUFFIX}")
        work.mkdir()
        try:
            lock = os.open(work / LOCK_FILE, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o644)
        except FileNotFoundError:
            continue  # another writer swept the folder before it was locked
        # Only needed where there are no locks. A disk may be full already.
        with suppress(OSError):
            os.write(lock, f"{machine_name()} {os.getpid()}".encode())
        if try_lock(lock) is not False and (work / LOCK_FILE).exists():
            return work, lock
        os.close(lock)


def _swap(temporary: Path, target: Path, work: Path) -> None:
    """Put `temporary` in the place of `target`, which ends up in `work`."""
    if _exchange(temporary, target):
        return
    target.rename(work / REPLACED)
    try:
        temporary.rename(target)
    except OSError:
        (work / REPLACED).rename(target)
        raise


def _exchange(first: Path, second: Path) -> bool:
    """Exchange the names of two folders in one step; False where the system or the file system cannot."""
    if sys.platform != "linux":
        return False
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):  # a C library before 2018
        return False
    # As os.rename does, so that audit hooks see every change of names.
    sys.audit("os.rename", str(first), str(second), -1, -1)
    # Paths are copied before the call, so their bytes need to live only as long as it.
    status = renameat2(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), ctypes.c_uint(_RENAME_EXCHANGE))
    if status == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        return False
    raise OSError(code, os.strerror(code), str(second))


def _flush_tree(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir():
            _flush_tree(path)
        else:
            flush_to_disk(path)
    flush_to_disk(folder)


# What dead writers leave


def sweep_leftovers(folder: Path) -> None:
    """Remove what dead writers of any file or folder in `folder` have left there."""
    pattern = re.compile(r"\.(.+)\.[0-9a-f]{8}" + re.escape(WORK_SUFFIX))
    if not folder.is_dir():
        return
    for path in list(folder.iterdir()):
        match = pattern.fullmatch(path.name)
        if match is not None:
            with suppress(OSError):
                _sweep_one(path, folder / match[1])


def remove_leftovers(target: Path) -> None:
    """Remove the hidden folders of writers of `target` that are dead, after putting back what one had moved aside.

    Every writer does so; for readers that know that a file is complete and will not be written again.
    """
    pattern = re.compile(re.escape(_work_prefix(target)) + "[0-9a-f]{8}" + re.escape(WORK_SUFFIX))
    try:
        with os.scandir(target.parent) as entries:
            names = [entry.name for entry in entries if pattern.fullmatch(entry.name)]
    except PermissionError:
        return  # files can be written to a folder whose names cannot be read
    for name in names:
        # One that another process removes at the same time is no error, nor one that belongs to another user.
        with suppress(OSError):
            _sweep_one(target.with_name(name), target)


def _sweep_one(work: Path, target: Path) -> None:
    try:
        lock = os.open(work / LOCK_FILE, os.O_RDWR)
    except FileNotFoundError:
        # Killed before it had a lock, or after all else was removed: it is empty.
        work.rmdir()
        return
    try:
        if _is_abandoned(work, lock):
            if (work / REPLACED).exists() and not target.exists():
                (work / REPLACED).rename(target)
            _remove(work)
    finally:
        os.close(lock)


def _is_abandoned(work: Path, lock: int) -> bool:
    """Return whether the writer of a hidden folder is dead. If so, this process holds its lock."""
    is_locked = try_lock(lock)
    if is_locked is not None:
        return is_locked
    machine, _, process = os.read(lock, 1000).decode("utf-8", "replace").rpartition(" ")
    if machine == machine_name() and process.isdecimal():
        return not is_alive(int(process))
    return time.time() - work.stat().st_mtime > UNLOCKED_SECONDS


def _remove(work: Path) -> None:
    """Remove a hidden folder, its lock last: as long as anything is left in it, others can see whether its writer lives."""
    with suppress(OSError):
        for path in work.iterdir():
            if path.name == LOCK_FILE:
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        (work / LOCK_FILE).unlink(missing_ok=True)
        work.rmdir()


def _work_prefix(target: Path) -> str:
    name = target.name
    if len(os.fsencode(name)) > MAX_NAME_BYTES:
        name = hashlib.sha256(os.fsencode(name)).hexdigest()[:32]
    return f".{name}."


def _is_stream(path: Path) -> bool:
    """Return whether `path` is a pipe or a device such as /dev/stdout, which cannot be replaced."""
    return path.exists() and not path.is_file() and not path.is_dir()


# JSON and paths


def json_text(value: Any, indent: int | None = None) -> str:
    """Return a value as JSON, in which NaN and infinity, which JSON does not have, are null."""
    return json.dumps(_without_nan(value), indent=indent, allow_nan=False)


def parse_json(text: str | bytes) -> Any:
    """Return what JSON holds.

    Raises:
        ValueError: it is not JSON, holds an integer beyond all floating-point numbers, or is too deeply nested, for which
            `json.loads` raises a RecursionError.
    """
    try:
        return json.loads(text, parse_int=_bounded_int)
    except RecursionError as cause:
        raise ValueError("too deeply nested") from cause


def _bounded_int(text: str) -> int:
    if len(text) > MAX_INT_DIGITS:
        raise ValueError(f"an integer of {len(text):,} digits")
    return int(text)


def _without_nan(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _without_nan(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(inner) for inner in value]
    return value


def expand_home(path: str | Path) -> Path:
    """Return a path with its leading `~` replaced by the home folder; unchanged if there is no such user.

    `Path.expanduser` raises a RuntimeError then, although `~x` may be the name of a file.
    """
    return Path(os.path.expanduser(path))  # noqa: PTH111 - see above


def real_path(path: str | Path) -> Path:
    """Return the absolute path without links; where links lead in a circle, they stay.

    `Path.resolve` raises a RuntimeError then, up to Python 3.12.
    """
    return Path(os.path.realpath(path))


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal."""
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "not a regular file", str(path))  # e.g. a pipe, which may never end
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
