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
from reptk.data.large_arrays import stored
from reptk.data.shard_names import file_id
from reptk.data.table_headings import HEADINGS, heading_key

MAX_CACHED_BYTES = 1 << 29
"""Encoded images that are in memory at once, in whole row groups; one group is, however large."""

HUB_METADATA = b"huggingface"
LFS_POINTER = b"version https://git-lfs"
PARQUET_SIGNATURE = b"PAR1"

NO_LABEL = -1
"""What the hub writes for the secret labels of a test split."""


class LabelColumn(NamedTuple):
    """The entries of a column, of all rows.

    codes: (n,) int64 numbers of the entries in `names`, -1 for none.
    names: the distinct entries, as text; those of the file's metadata in their order, if it names them.
    is_ordered: whether the metadata names them.
    heading: of the column.
    unread: other columns of the kind.
    """

    codes: NDArray[np.int64]
    names: tuple[str, ...]
    is_ordered: bool
    heading: str
    unread: tuple[str, ...] = ()


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
        self._file_ids = [file_id(path, base) for path in self.paths]
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

    def place(self, number: int) -> tuple[Path, str]:
        """Return the file that holds a row, and the number of the row in this file, from 0: `row 17`."""
        file = self.file_of(number)
        return self.paths[file], f"row {number - int(self.file_starts[file])}"

    def name(self, number: int) -> str:
        """Return how messages call a row."""
        path, row = self.place(number)
        return f"{path}, {row}"

    def image_id(self, number: int) -> str:
        """Return a name of a row that is the same wherever the files are: train-00000-of-00014/17."""
        file = self.file_of(number)
        return f"{self._file_ids[file]}/{number - int(self.file_starts[file])}"

    def find(self, image_id: str) -> int | None:
        """Return the number of the row with this id; None if there is none."""
        name, _, row = image_id.rpartition("/")
        if name not in self._file_ids or not row.isdecimal():
            return None
        file = self._file_ids.index(name)
        number = int(self.file_starts[file]) + int(row)
        return number if number < int(self.file_starts[file + 1]) else None

    def block_starts(self) -> NDArray[np.int64]:
        """Return the number of the first row of each row group."""
        return self._group_starts[:-1]

    def contents(self, numbers: Sequence[int]) -> list[bytes | DataError]:
        """Return the encoded images of rows, in this order; an error in place of one that cannot be read."""
        contents: list[bytes | DataError] = []
        for number in numbers:
            try:
                contents.append(self.content(number))
            except DataError as error:
                contents.append(error)
        return contents

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
        return self._column(heading, tuple(class_order))._replace(unread=tuple(unread))

    def splits(self) -> LabelColumn | None:
        """Return the entries of the column of splits; None if there is none, or it is not one of text.

        Raises:
            DataError: a file lacks the column, or it cannot be read.
        """
        heading = _split_column(self._files[0].schema_arrow)
        if heading is None:
            return None
        return self._column(heading, ())

    def _column(self, heading: str, class_order: tuple[str, ...]) -> LabelColumn:
        """Return the entries of a column; with `class_order`, numbers in it mean these names."""
        code_of = {name: code for code, name in enumerate(class_order)}
        pieces = self._codes(heading, class_order, code_of)
        codes = stored(pieces, len(self), np.int64)
        return LabelColumn(codes, tuple(code_of), bool(class_order), heading)

    def _codes(
        self, heading: str, class_order: tuple[str, ...], code_of: dict[str, int]
    ) -> Iterator[NDArray[np.int64]]:
        """Yield the codes of the entries of a column; names that are new get the next ones in `code_of`."""
        for path, file in zip(self.paths, self._files, strict=True):
            if heading not in file.schema_arrow.names:
                raise DataError(f"{path} has no column {heading}, as {self.paths[0]} has")
            for group in range(file.metadata.num_row_groups):
                with _explained(path):
                    column = file.read_row_group(group, columns=[heading]).column(0)
                for chunk in column.chunks:
                    # Of each distinct entry once: a Python object for every row would take long.
                    encoded = chunk.dictionary_encode(null_encoding="encode")
                    names = [_class_name(path, value, class_order) for value in encoded.dictionary.to_pylist()]
                    codes = [code_of.setdefault(name, len(code_of)) if name else -1 for name in names]
                    yield np.array([*codes, -1], np.int64)[encoded.indices.to_numpy(zero_copy_only=False)]

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


def _split_column(schema: Any) -> str | None:
    """Return the column of splits, which holds text."""
    import pyarrow

    by_key = {}
    for field in reversed(list(schema)):
        is_text = pyarrow.types.is_string(field.type) or pyarrow.types.is_large_string(field.type)
        if is_text and schema.names.count(field.name) == 1:
            by_key[heading_key(field.name)] = field.name
    for key in HEADINGS["split"]:
        if key in by_key:
            return by_key[key]
    return None


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
