"""Images in Parquet files, as the Hugging Face hub stores data sets; few row groups are in memory at once."""

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reptk.core.errors import DataError, EnvironmentProblem
from reptk.core.foreign_files import open_regular
from reptk.data.records.arrow_columns import (
    ColumnEntries,
    image_bytes,
    image_column,
    image_columns,
    label_entries,
    split_entries,
)
from reptk.data.records.numbered_parts import NumberedParts
from reptk.data.records.shard_names import file_id

MAX_CACHED_BYTES = 1 << 29
"""Encoded images that are in memory at once, in whole row groups; one group is, however large."""

LFS_POINTER = b"version https://git-lfs"
PARQUET_SIGNATURE = b"PAR1"


class ParquetShards:
    """The rows of several Parquet files with a column of images, numbered from 0 through all files.

    Several threads may read at the same time.

    Args:
        paths: the files, in order.
        base: the folder that `image_id` names files from; None for that of each file.

    Raises:
        DataError: a file cannot be read, or has no column of images.
        EnvironmentProblem: pyarrow is not installed.
    """

    def __init__(self, paths: Sequence[Path], base: Path | None = None) -> None:
        self.paths = list(paths)
        if not self.paths:
            raise DataError("there are no Parquet files")
        self._files = [_open(path) for path in self.paths]
        self.image_column = image_column(self.paths[0], self._files[0].schema_arrow)
        self._groups: list[tuple[int, int]] = []
        """The file of each row group, and its number in the file."""
        group_sizes = []
        self.num_bytes = 0
        for number, (path, file) in enumerate(zip(self.paths, self._files, strict=True)):
            if image_column(path, file.schema_arrow) != self.image_column:
                raise DataError(f"{path} has no images in the column {self.image_column}, as {self.paths[0]} has")
            for group in range(file.metadata.num_row_groups):
                self._groups.append((number, group))
                group_sizes.append(file.metadata.row_group(group).num_rows)
                self.num_bytes += file.metadata.row_group(group).total_byte_size
        self._group_parts = NumberedParts(group_sizes)
        file_sizes = [file.metadata.num_rows for file in self._files]
        self._file_parts = NumberedParts(file_sizes, [file_id(path, base) for path in self.paths])
        self._file_locks = [threading.Lock() for _ in self._files]
        self._cache_lock = threading.Lock()
        self._cached: OrderedDict[int, Any] = OrderedDict()
        self._num_cached_bytes = 0

    def __len__(self) -> int:
        return self._file_parts.num_images

    @property
    def num_groups(self) -> int:
        return len(self._groups)

    @property
    def file_sizes(self) -> list[int]:
        """The number of rows of each file."""
        return np.diff(self._file_parts.starts).tolist()

    def location(self, number: int) -> tuple[Path, str]:
        """Return the file that holds a row, and the number of the row in this file, from 0: `row 17`."""
        file, row = self._file_parts.find_row(number)
        return self.paths[file], f"row {row}"

    def name(self, number: int) -> str:
        """Return how messages call a row."""
        path, row = self.location(number)
        return f"{path}, {row}"

    def image_id(self, number: int) -> str:
        """Return a name of a row that is the same wherever the files are: train-00000-of-00014/17."""
        return self._file_parts.image_id(number)

    def find(self, image_id: str) -> int | None:
        """Return the number of the row with this id; None if there is none."""
        return self._file_parts.find(image_id)

    def block_starts(self) -> NDArray[np.int64]:
        """Return the number of the first row of each row group."""
        return self._group_parts.starts[:-1]

    def contents(self, numbers: Sequence[int]) -> list[bytes | DataError]:
        """Return the encoded images of rows, in this order; an error in place of one that cannot be read.

        Raises:
            DataError: the system cannot read a file, which may pass, and is no fault of its images.
        """
        contents: list[bytes | DataError] = []
        for number in numbers:
            try:
                contents.append(self.content(number))
            except DataError as error:
                cause = error.__cause__
                # pyarrow raises OSError for damaged content as well, without a number of the system.
                if isinstance(cause, OSError) and cause.errno is not None:
                    raise
                contents.append(error)
        return contents

    def content(self, number: int) -> bytes:
        """Return the encoded image of a row.

        Raises:
            DataError: the row has none, or its row group cannot be read.
        """
        group, row = self._group_parts.find_row(number)
        content = image_bytes(self._read_group(group)[row].as_py(), self.name(number))
        if isinstance(content, DataError):
            raise content
        return content

    def labels(self) -> ColumnEntries | None:
        """Return the labels of all rows; None if there is no column of labels.

        Raises:
            DataError: a file lacks the column, or it cannot be read.
        """
        return label_entries(self._files[0].schema_arrow, self._chunks, len(self))

    def splits(self) -> ColumnEntries | None:
        """Return the entries of the column of splits; None if there is none.

        Raises:
            DataError: a file lacks the column, or it cannot be read.
        """
        return split_entries(self._files[0].schema_arrow, self._chunks, len(self))

    def _chunks(self, heading: str) -> Iterator[tuple[Path, Any]]:
        """Yield the arrays of a column, with the files that they are from."""
        for path, file in zip(self.paths, self._files, strict=True):
            if heading not in file.schema_arrow.names:
                raise DataError(f"{path} has no column {heading}, as {self.paths[0]} has")
            for group in range(file.metadata.num_row_groups):
                with _explained(path):
                    column = file.read_row_group(group, columns=[heading]).column(0)
                for chunk in column.chunks:
                    yield path, chunk

    def _read_group(self, group: int) -> Any:
        """Return the column of images of a row group, from memory or from the file."""
        column = self._from_cache(group)
        if column is not None:
            return column
        file, group_of_file = self._groups[group]
        # One thread reads a group, and the others that need it wait.
        with self._file_locks[file]:
            column = self._from_cache(group)
            if column is not None:
                return column
            with _explained(self.paths[file]):
                table = self._files[file].read_row_group(group_of_file, columns=[self.image_column.bytes_column])
            column = table.column(0)
            with self._cache_lock:
                self._cached[group] = column
                self._num_cached_bytes += column.nbytes
                while len(self._cached) > 1 and self._num_cached_bytes > MAX_CACHED_BYTES:
                    _, oldest = self._cached.popitem(last=False)
                    self._num_cached_bytes -= oldest.nbytes
        return column

    def _from_cache(self, group: int) -> Any:
        with self._cache_lock:
            if group not in self._cached:
                return None
            self._cached.move_to_end(group)
            return self._cached[group]


def holds_images(path: Path) -> bool:
    """Return whether a file is Parquet with a column of encoded images; False without pyarrow."""
    try:
        with open_regular(path) as file:
            if file.read(len(PARQUET_SIGNATURE)) != PARQUET_SIGNATURE or find_spec("pyarrow") is None:
                return False
        return bool(image_columns(_open(path).schema_arrow))
    except (OSError, DataError):
        return False


def _open(path: Path) -> Any:
    if find_spec("pyarrow") is None:
        raise EnvironmentProblem(f"{path.name} needs pyarrow, which is not installed: pip install 'reptk[parquet]'")
    import pyarrow.parquet

    with _explained(path):
        return pyarrow.parquet.ParquetFile(path, memory_map=True)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn an exception of pyarrow into a DataError that names the file."""
    try:
        yield
    except Exception as cause:
        reason = str(cause)
        if _is_lfs_pointer(path):
            reason = "it is a Git LFS pointer; fetch the file itself (git lfs pull)"
        raise DataError(f"cannot read {path} as Parquet: {reason}. Download it again, or take it out") from cause


def _is_lfs_pointer(path: Path) -> bool:
    try:
        with open_regular(path) as file:
            return file.read(len(LFS_POINTER)) == LFS_POINTER
    except OSError:
        return False
