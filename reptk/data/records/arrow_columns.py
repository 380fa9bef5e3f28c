"""Columns of tables of Arrow by their names and types: images, labels and splits."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from reptk.core import mapped_arrays
from reptk.core.counts import format_count
from reptk.core.errors import DataError
from reptk.core.files import parse_json
from reptk.data.table_headings import HEADINGS, heading_key

HUB_METADATA = b"huggingface"

NO_LABEL = -1
"""What the hub writes for the secret labels of a test split."""

Chunks = Callable[[str], Iterable[tuple[Path, Any]]]
"""The arrays of a column by its name, with the files that they are from."""


class ColumnEntries(NamedTuple):
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


class ImageColumn(NamedTuple):
    """Name of a column of images, and whether it is a structure with the images in its field `bytes`."""

    name: str
    is_struct: bool

    def __str__(self) -> str:
        return self.name

    @property
    def bytes_column(self) -> str:
        """What to read: of a structure only the bytes, without the paths next to them."""
        if self.is_struct:
            return f"{self.name}.bytes"
        return self.name


def image_bytes(value: Any, name: str) -> bytes | DataError:
    """Return the encoded image in a column of images; an error if there is none.

    Args:
        value: the entry as a Python object; a structure is a dict.
        name: what messages call the image.
    """
    if isinstance(value, dict):
        value = value["bytes"]
    if not value:
        return DataError(f"cannot read {name}: it holds no image")
    return value


def label_entries(schema: Any, chunks: Chunks, num_rows: int) -> ColumnEntries | None:
    """Return the labels of all rows; None if there is no column of labels.

    Args:
        schema: of the table.
        chunks: yields the arrays of a column.
        num_rows: of the table.
    """
    columns = _label_columns(schema)
    if not columns:
        return None
    heading, *unread = columns
    class_order = tuple(_hub_class_names(schema).get(heading, ()))
    return _entries(heading, class_order, chunks, num_rows)._replace(unread=tuple(unread))


def split_entries(schema: Any, chunks: Chunks, num_rows: int) -> ColumnEntries | None:
    """Return the entries of the column of splits, which holds text; None if there is none. See `label_entries`."""
    heading = _split_column(schema)
    if heading is None:
        return None
    return _entries(heading, (), chunks, num_rows)


def _entries(heading: str, class_order: tuple[str, ...], chunks: Chunks, num_rows: int) -> ColumnEntries:
    """Return the entries of a column; with `class_order`, numbers in it mean these names."""
    code_of = {name: code for code, name in enumerate(class_order)}
    codes = mapped_arrays.from_chunks(_codes(chunks(heading), class_order, code_of), num_rows, np.int64)
    return ColumnEntries(codes, tuple(code_of), bool(class_order), heading)


def _codes(
    chunks: Iterable[tuple[Path, Any]], class_order: tuple[str, ...], code_of: dict[str, int]
) -> Iterator[NDArray[np.int64]]:
    """Yield the codes of the entries of a column; names that are new get the next ones in `code_of`."""
    for path, chunk in chunks:
        # Of each distinct entry once: a Python object for every row would take long.
        encoded = chunk.dictionary_encode(null_encoding="encode")
        names = [_class_name(path, value, class_order) for value in encoded.dictionary.to_pylist()]
        codes = []
        for name in names:
            code = -1
            if name:
                code = code_of.setdefault(name, len(code_of))
            codes.append(code)
        yield np.array([*codes, -1], np.int64)[encoded.indices.to_numpy(zero_copy_only=False)]


def image_columns(schema: Any) -> list[ImageColumn]:
    """Return the columns that may hold encoded images, those with usual names first."""
    import pyarrow

    columns = []
    for field in schema:
        if schema.names.count(field.name) > 1:
            continue
        if pyarrow.types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0:
            columns.append(ImageColumn(field.name, is_struct=True))
        elif pyarrow.types.is_binary(field.type) or pyarrow.types.is_large_binary(field.type):
            columns.append(ImageColumn(field.name, is_struct=False))
    return sorted(columns, key=lambda column: heading_key(column.name) not in HEADINGS["path"])


def image_column(path: Path, schema: Any) -> ImageColumn:
    """Return the column of encoded images of a file.

    Raises:
        DataError: there is none, or several that may be it.
    """
    columns = image_columns(schema)
    usual = [column for column in columns if heading_key(column.name) in HEADINGS["path"]]
    if len(columns) == 1 or usual:
        return columns[0]
    listed = ", ".join(schema.names[:8])
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
