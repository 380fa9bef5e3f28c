"""Images in Parquet files, as the Hugging Face hub stores data sets; few row groups are in memory at once."""

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from reptk.core.counts import format_count
from reptk.core.errors import DataError, EnvironmentProblem
from reptk.core.files import parse_json
from reptk.core.foreign_files import open_regular
from reptk.data.table_headings import HEADINGS, heading_key

MAX_CACHED_BYTES = 1 << 29
"""Encoded images that are in memory at once, in whole row groups; one group is, however large."""

HUB_METADATA = b"huggingface"
LFS_POINTER = b"version https://git-lfs"
PARQUET_SIGNATURE = b"PAR1"

NO_LABEL = -1
"""What the hub writes for the secret labels of a test split."""


class ShardRow(NamedTuple):
    """One row of Parquet shards, which can be read and printed as if it were the path of an image file."""

    number: int
    shards: "ParquetShards"

    def read_bytes(self) -> bytes:
        """Return the encoded image.

        Raises:
            DataError: the row has none, or cannot be read.
        """
        return self.shards.content(self.number)

    def __str__(self) -> str:
        return self.shards.name(self.number)


class LabelColumn(NamedTuple):
    """The labels of all rows: names of classes, empty without one.

    `class_order` are the names in the order of their labels if the file says so, else empty. `unread` are other columns of
    labels.
    """

    names: list[str]
    class_order: tuple[str, ...]
    heading: str
    unread: tuple[str, ...]


class ParquetShards:
    """The rows of several Parquet files with a column of images, numbered from 0 through all files.

    Several threads may read at the same time.

    Args:
        paths: the files, in order.

    Raises:
        DataError: a file cannot be read, or has no column of images.
        EnvironmentProblem: pyarrow is not installed.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = list(paths)
        if not self.paths:
            raise DataError("there are no Parquet files")
        self._files = [_open(path) for path in self.paths]
        self.image_column = _image_column(self.paths[0], self._files[0])
        self._groups: list[tuple[int, int]] = []
        """The file of each row group, and its number in the file."""
        group_rows = []
        self.num_bytes = 0
        for number, (path, file) in enumerate(zip(self.paths, self._files, strict=True)):
            if _image_column(path, file) != self.image_column:
                raise DataError(f"{path} has no images in the column {self.image_column}, as {self.paths[0]} has")
            for group in range(file.metadata.num_row_groups):
                self._groups.append((number, group))
                group_rows.append(file.metadata.row_group(group).num_rows)
                self.num_bytes += file.metadata.row_group(group).total_byte_size
        self._group_starts = np.array([0, *group_rows]).cumsum()
        file_rows = [file.metadata.num_rows for file in self._files]
        self.file_starts: NDArray[np.int64] = np.array([0, *file_rows]).cumsum()
        """The number of the first row of each file, and at the end the number of all rows."""
        self._file_locks = [threading.Lock() for _ in self._files]
        self._cache_lock = threading.Lock()
        self._cached: OrderedDict[int, Any] = OrderedDict()
        self._num_cached_bytes = 0

    def __len__(self) -> int:
        return int(self.file_starts[-1])

    @property
    def num_groups(self) -> int:
        return len(self._groups)

    def file_of(self, number: int) -> int:
        """Return the number of the file that holds a row."""
        return int(np.searchsorted(self.file_starts, number, side="right")) - 1

    def place(self, number: int) -> tuple[Path, int]:
        """Return the file that holds a row, and the number of the row in this file, from 0."""
        file = self.file_of(number)
        return self.paths[file], number - int(self.file_starts[file])

    def name(self, number: int) -> str:
        """Return how messages call a row."""
        path, row = self.place(number)
        return f"{path}, row {row}"

    def content(self, number: int) -> bytes:
        """Return the encoded image of a row.

        Raises:
            DataError: the row has none, or its row group cannot be read.
        """
        group = int(np.searchsorted(self._group_starts, number, side="right")) - 1
        column = self._read_group(group)
        value = column[number - int(self._group_starts[group])].as_py()
        if isinstance(value, dict):
            value = value["bytes"]
        if not value:
            raise DataError(f"cannot read {self.name(number)}: it holds no image")
        return value

    def labels(self) -> LabelColumn | None:
        """Return the labels of all rows; None if there is no column of labels.

        Raises:
            DataError: a file lacks the column, or it cannot be read.
        """
        columns = _label_columns(self._files[0].schema_arrow)
        if not columns:
            return None
        heading, *unread = columns
        class_order = _hub_class_names(self._files[0].schema_arrow).get(heading, ())
        names: list[str] = []
        for path, file in zip(self.paths, self._files, strict=True):
            if heading not in file.schema_arrow.names:
                raise DataError(f"{path} has no column {heading}, as {self.paths[0]} has")
            with _explained(path):
                values = file.read(columns=[heading]).column(heading).to_pylist()
            names += [_class_name(path, value, class_order) for value in values]
        return LabelColumn(names, tuple(class_order), heading, tuple(unread))

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
                table = self._files[file].read_row_group(group_of_file, columns=[_bytes_column(self.image_column)])
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
        return bool(_image_columns(_open(path).schema_arrow))
    except (OSError, DataError):
        return False


class _ImageColumn(NamedTuple):
    """Name of a column of images, and whether it is a structure with the images in its field `bytes`."""

    name: str
    is_struct: bool

    def __str__(self) -> str:
        return self.name


def _bytes_column(column: _ImageColumn) -> str:
    # Of a structure only the bytes, without the paths next to them.
    return f"{column.name}.bytes" if column.is_struct else column.name


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


def _image_columns(schema: Any) -> list[_ImageColumn]:
    """Return the columns that may hold encoded images, those with usual names first."""
    import pyarrow

    columns = []
    for field in schema:
        if schema.names.count(field.name) > 1:
            continue
        if pyarrow.types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0:
            columns.append(_ImageColumn(field.name, is_struct=True))
        elif pyarrow.types.is_binary(field.type) or pyarrow.types.is_large_binary(field.type):
            columns.append(_ImageColumn(field.name, is_struct=False))
    return sorted(columns, key=lambda column: heading_key(column.name) not in HEADINGS["path"])


def _image_column(path: Path, file: Any) -> _ImageColumn:
    columns = _image_columns(file.schema_arrow)
    usual = [column for column in columns if heading_key(column.name) in HEADINGS["path"]]
    if len(columns) == 1 or usual:
        return columns[0]
    listed = ", ".join(file.schema_arrow.names[:8])
    if columns:
        raise DataError(f"{path} has several columns of bytes, among {listed}; call that of the images image")
    raise DataError(
        f"{path} has no column of images among {listed}. A table of paths is read if it is named itself: data.root={path}"
    )


def _label_columns(schema: Any) -> list[str]:
    """Return the columns of labels: those with usual headings, then those that the hub calls class labels, largest first."""
    import pyarrow

    columns = [field for field in schema if not pyarrow.types.is_nested(field.type)]
    flat = [field.name for field in columns if not pyarrow.types.is_binary(field.type)]
    # pyarrow cannot read a column whose name another one has, too.
    flat = [name for name in flat if schema.names.count(name) == 1]
    by_key = {heading_key(name): name for name in reversed(flat)}
    usual = [by_key[key] for key in HEADINGS["label"] if key in by_key]
    hub = {name: classes for name, classes in _hub_class_names(schema).items() if name in flat and name not in usual}
    largest_first = sorted(hub, key=lambda name: (-len(hub[name]), name))
    return [*usual, *largest_first]


def _hub_class_names(schema: Any) -> dict[str, tuple[str, ...]]:
    """Return the names of the classes of each column that the hub's metadata calls a class label."""
    try:
        features = parse_json((schema.metadata or {})[HUB_METADATA])["info"]["features"]
        classes = {}
        for name, feature in features.items():
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel":
                classes[name] = tuple(map(str, feature.get("names") or ()))
        return classes
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        return {}


def _class_name(path: Path, value: Any, class_order: Sequence[str]) -> str:
    if value is None or (value == NO_LABEL and not isinstance(value, str)):
        return ""
    if class_order and isinstance(value, int):
        if not 0 <= value < len(class_order):
            named = format_count(len(class_order), "class", "classes")
            raise DataError(f"{path} has the label {value}, and names of {named}; download it again")
        return class_order[value]
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)
