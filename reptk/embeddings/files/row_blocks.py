"""What a file of embeddings consists of, whatever its format: a header, and rows, which are read and written in blocks."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from reptk.embeddings.files.string_array import StringArrayBuilder

FORMAT = "reptk embeddings"
VERSION = 1

BLOCK_BYTES = 1 << 26
"""About how many bytes of vectors are in memory at once while a file is read or written."""


class RowBlock(NamedTuple):
    """Consecutive rows: vectors (b, F), labels (b,) int64, and one id each.

    For images that are files also paths, and `file_stats` (b, 2) int64, the size in bytes and the time of modification in
    nanoseconds of each file when it was embedded; otherwise None.
    """

    vectors: Tensor
    labels: Tensor
    ids: Sequence[str]
    paths: Sequence[str] | None
    file_stats: Tensor | None = None


@dataclass
class Header:
    """What holds for all rows of a file. `metadata` may be added to until the file is finished.

    Args:
        max_rows: upper bound of the number of rows; there are fewer if images cannot be read.
        width: F, values per vector.
        dtype: of the stored vectors, float16 or float32.
        ids_are_paths: whether one column serves as both.
        has_paths: whether the images are files.
        has_file_stats: whether the sizes and times of the files are stored.
        has_non_utf8_names: whether an id or path is not valid UTF-8.
        classes: class names, by label.
        metadata: encoder, preprocessing, data, versions; see `Embeddings`.
    """

    max_rows: int
    width: int
    dtype: torch.dtype
    ids_are_paths: bool
    has_paths: bool
    has_file_stats: bool = False
    has_non_utf8_names: bool = False
    classes: tuple[str, ...] = ()
    metadata: dict[str, Any] = field(default_factory=dict)

    def vector_bytes(self) -> int:
        """Return the size of all vectors in bytes."""
        return self.max_rows * self.width * self.dtype.itemsize


class StoredColumns(NamedTuple):
    """All rows of a file, column by column, as they were read; `Embeddings` checks that they match.

    A column that the file lacks is None, or empty.
    """

    vectors: Tensor
    ids: Sequence[str] | None = None
    paths: Sequence[str] | None = None
    labels: Tensor | None = None
    file_stats: Tensor | None = None
    classes: Sequence[str] = ()
    metadata: dict[str, Any] | None = None


def dtype_name(dtype: torch.dtype) -> str:
    """Return e.g. `float16`."""
    return str(dtype).removeprefix("torch.")


def rows_per_block(width: int) -> int:
    """Return how many float32 vectors of this width make a block."""
    return max(1, BLOCK_BYTES // (4 * width))


def concatenate(header: Header, blocks: Iterable[RowBlock]) -> StoredColumns:
    """Copy blocks into one set of columns, in memory that is allocated once."""
    vectors = torch.empty(header.max_rows, header.width, dtype=header.dtype)
    labels = torch.empty(header.max_rows, dtype=torch.int64)
    file_stats = None
    if header.has_file_stats:
        file_stats = torch.empty(header.max_rows, 2, dtype=torch.int64)
    ids = StringArrayBuilder()
    paths = StringArrayBuilder()
    count = 0
    for block in blocks:
        rows = slice(count, count + len(block.vectors))
        vectors[rows] = block.vectors
        labels[rows] = block.labels
        if file_stats is not None:
            file_stats[rows] = block.file_stats
        ids.extend(block.ids)
        if block.paths is not None:
            paths.extend(block.paths)
        count = rows.stop

    # A block without paths leaves the column incomplete; ids then have to do.
    path_column = None
    if header.has_paths and len(paths) == count:
        path_column = paths.build()
    if header.ids_are_paths and path_column is not None:
        id_column = path_column
    else:
        id_column = ids.build()
    if file_stats is not None:
        file_stats = file_stats[:count]
    return StoredColumns(
        vectors[:count], id_column, path_column, labels[:count], file_stats, header.classes, header.metadata
    )


def relabeled(labels: Tensor, old_classes: Sequence[str], classes: Sequence[str]) -> Tensor:
    """Return labels (n,) that count in `old_classes` as those of the same names in `classes`; -1 for none."""
    if tuple(old_classes) == tuple(classes):
        return labels
    new_label_of = {name: label for label, name in enumerate(classes)}
    new_labels = [new_label_of.get(name, -1) for name in old_classes]
    # Label -1, which is no label, picks the last entry and stays -1.
    return torch.tensor([*new_labels, -1])[labels.clamp(-1, len(old_classes))]
