"""Checks of a path that is to be written to, made before any work is done, and the file that embeddings are written into."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from reptk.core.counts import format_count
from reptk.core.disk_space import check_free_space, explain_write_errors
from reptk.core.errors import DataError, EnvironmentProblem, UsageError
from reptk.core.files import atomic_write

MAX_REMOVED_ROWS = 100
MAX_REMOVED_SHARE = 0.1
"""More embeddings than these, and than this share of all, are not removed without --prune: a disk may be missing."""


def check_output_file(path: Path, *, force: bool) -> None:
    """Raise unless a file can be written to `path`.

    Raises:
        UsageError: the path is a folder, or a file that exists and `force` is not set.
        EnvironmentProblem: its folder is missing or not writable.
    """
    if path.is_dir():
        raise UsageError(f"{path} is a folder; name a file")
    if path.exists() and not force:
        raise UsageError(f"{path} exists. Choose another --out, or write over it: --force")
    check_parent_writable(path)


def check_parent_writable(path: Path) -> None:
    """Raise EnvironmentProblem unless the folder that holds `path` exists and is writable."""
    parent = path.absolute().parent
    if not parent.is_dir():
        raise EnvironmentProblem(f"cannot write {path}: there is no folder {parent}. Make it, or choose another --out")
    if not os.access(parent, os.W_OK):
        raise EnvironmentProblem(f"cannot write {path}: no right to write in {parent}. Choose another --out")


def check_new_folder(path: Path) -> None:
    """Raise EnvironmentProblem unless a folder that does not exist can be created, with those above it."""
    parent = next(folder for folder in path.absolute().parents if folder.exists())
    if not parent.is_dir():
        raise EnvironmentProblem(f"cannot write {path}: {parent} is no folder. Choose another --out")
    if not os.access(parent, os.W_OK):
        raise EnvironmentProblem(f"cannot write {path}: no right to write in {parent}. Choose another --out")


@contextmanager
def opened_for_embeddings(path: Path, vector_bytes: int) -> Iterator[BinaryIO]:
    """Yield a file to write embeddings into, which appears at `path` as a whole when the block ends.

    Raises:
        EnvironmentProblem: the disk is full, or the file cannot be written.
    """
    check_space_for_vectors(path, vector_bytes)
    with (
        explain_write_errors(path),
        atomic_write(path, needed_bytes=vector_bytes) as temporary,
        temporary.open("wb") as file,
    ):
        yield file


def check_space_for_vectors(path: Path, needed_bytes: int) -> None:
    """Raise EnvironmentProblem unless the disk of `path` has that much free space."""
    # Before any work is done, and not after an hour of encoding.
    check_free_space(path, needed_bytes, "Choose an --out on another disk, or store half as much: --half")


def check_removal(out: Path, num_removed: int, num_rows: int) -> None:
    """Raise DataError if more embeddings are of images that are gone than are removed without --prune.

    Args:
        out: the file or folder of embeddings.
        num_removed: of images that are gone.
        num_rows: all that `out` holds.
    """
    if num_removed <= max(MAX_REMOVED_ROWS, MAX_REMOVED_SHARE * num_rows):
        return
    raise DataError(
        f"{num_removed:,} of the {format_count(num_rows, 'embedding')} in {out} are of images that are not in --data: a disk "
        "may be missing, or these are other images. Nothing was removed. To remove them: --prune; for other images choose "
        "another --out"
    )
