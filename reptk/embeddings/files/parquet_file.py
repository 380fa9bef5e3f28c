"""Embeddings as a Parquet table for data tools: columns id, path, label, class, vector; one row group a block.

Of images that are files, the columns file_bytes and file_mtime_ns follow.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from reptk.core.counts import format_count
from reptk.core.errors import DataError, EnvironmentProblem
from reptk.core.file_records import NO_HASH
from reptk.core.files import parse_json
from reptk.embeddings.files.content_hash import HashedFile, damaged, is_hashed
from reptk.embeddings.files.output_path import opened_for_embeddings
from reptk.embeddings.files.row_blocks import (
    FORMAT,
    VERSION,
    Header,
    RowBlock,
    StoredColumns,
    concatenate,
    rows_per_block,
)
from reptk.embeddings.files.string_array import are_utf8

COLUMNS = ("id", "path", "label", "class", "vector")
FILE_STATS = ("file_bytes", "file_mtime_ns")
METADATA_KEY = b"reptk"

HASH_MARK = b"reptk-sha256 "
"""Begins the hash of all other bytes, which stands between the rows and the footer, where no reader of Parquet looks.

It is not part of the metadata, which another program may copy into a file with other rows. There are two copies of it, so that
a damaged one is not taken for none.
"""

_TAIL_BYTES = 8
"""A Parquet file ends with the length of its footer and a mark, of four bytes each."""

_CHUNK_BYTES = 1 << 20


class ParquetFile:
    """A Parquet file of embeddings; see `EmbeddingsFile`.

    Any Parquet file with a column `vector` of lists of one length can be read; the other columns may be missing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def check_installed(self) -> None:
        """Raise EnvironmentProblem unless pyarrow is installed."""
        if find_spec("pyarrow") is None:
            raise EnvironmentProblem(
                f"{self.path.name} needs pyarrow, which is not installed: pip install 'reptk[parquet]', or use .safetensors"
            )

    @contextmanager
    def writer(
        self,
        header: Header,
        extra_fields: Sequence[Any] = (),
        schema_metadata: Callable[[Any], dict[bytes, bytes]] | None = None,
    ) -> Iterator["ParquetBlockWriter"]:
        """Open the file for writing; see `EmbeddingsFile`.

        Args:
            header: of the embeddings.
            extra_fields: further columns, of Arrow's type `Field`, which `ParquetBlockWriter.add` then takes.
            schema_metadata: from the schema to metadata that it gets, for other programs.
        """
        self.check_installed()
        import pyarrow.parquet

        schema = _schema(header)
        for field in extra_fields:
            schema = schema.append(field)
        if schema_metadata is not None:
            schema = schema.with_metadata(schema_metadata(schema))
        with opened_for_embeddings(self.path, header.vector_bytes()) as file:
            sink = HashedFile(file)
            # A dictionary pays off only for class names, which repeat. zstd shrinks ids and paths, and hardly the vectors.
            # Checksums of pages notice damage of files that are too large to be hashed whenever they are read.
            table = pyarrow.parquet.ParquetWriter(
                sink, schema, compression="zstd", use_dictionary=["class"], write_page_checksum=True
            )
            try:
                yield ParquetBlockWriter(table, header)
                table.add_key_value_metadata({METADATA_KEY: _encode_metadata(header)})
                hash_position = file.tell()
                file.write(_hash_entry(NO_HASH))
            finally:
                table.close()
            file.seek(hash_position)
            file.write(_hash_entry(sink.sha256.hexdigest()))

    def read(self, *, verify: bool | None = None) -> StoredColumns:
        """Return all columns, in memory; see `EmbeddingsFile`."""
        header = self.read_header(verify=verify)
        return concatenate(header, self.read_blocks(rows_per_block(header.width)))

    def read_header(self, *, verify: bool | None = None) -> Header:
        """Return what holds for all rows, after comparing the file with its hash; see `EmbeddingsFile.read`.

        Raises:
            DataError: the file is damaged, of a newer reptk, or holds no embeddings.
        """
        self.check_installed()
        import pyarrow

        with self._open() as file:
            self._check_hash(verify)
            metadata = _metadata(file)
            columns = file.schema_arrow.names
            if metadata.get("version", VERSION) > VERSION:
                raise DataError(
                    f"{self.path} was written by a newer reptk (format {metadata['version']}); update reptk to read it"
                )
            if "vector" not in columns:
                raise DataError(
                    f"{self.path} holds no embeddings: it has no column 'vector', only {', '.join(columns[:5])}"
                )
            # The width is that of the first vector; `read_blocks` checks the others.
            first_row = next(file.iter_batches(1, columns=["vector"]), None)
            if first_row is None:
                raise DataError(f"{self.path} holds no rows")
            vector = first_row.column("vector")
            width = _vectors(vector, 1).shape[1]
            dtype = torch.float32
            if pyarrow.types.is_float16(vector.type.value_type):
                dtype = torch.float16
            return Header(
                max_rows=file.metadata.num_rows,
                width=width,
                dtype=dtype,
                ids_are_paths=metadata.get("ids") == "paths",
                has_paths="path" in columns and metadata.get("paths", True),
                has_file_stats=set(columns).issuperset(FILE_STATS),
                classes=_class_names(file, metadata),
                metadata=metadata.get("about", {}),
            )

    def read_blocks(self, rows: int) -> Iterator[RowBlock]:
        """Yield all rows, `rows` at a time.

        Raises:
            DataError: the file is damaged, or holds no embeddings.
        """
        first_row = 0
        width = None
        with self._open() as file:
            class_names = _class_names(file, _metadata(file))
            label_of = {name: label for label, name in enumerate(class_names)}
            present = [name for name in (*COLUMNS, *FILE_STATS) if name in file.schema_arrow.names]
            for batch in file.iter_batches(rows, columns=present):
                columns = {name: batch.column(name) for name in batch.schema.names}
                block = _row_block(columns, len(batch), first_row, label_of)
                # `_vectors` compares the rows of one block; blocks may differ from each other as well.
                if width not in (None, block.vectors.shape[1]):
                    raise ValueError("its vectors differ in length")
                width = block.vectors.shape[1]
                yield block
                first_row += len(batch)

    def _check_hash(self, verify: bool | None) -> None:
        with self.path.open("rb") as file:
            footer_end = file.seek(-_TAIL_BYTES, os.SEEK_END)
            footer_bytes = int.from_bytes(file.read(4), "little")
            position = max(0, footer_end - footer_bytes - len(_hash_entry(NO_HASH)))
            file.seek(position)
            entry = file.read(len(_hash_entry(NO_HASH)))
            copies = [entry[: len(entry) // 2], entry[len(entry) // 2 :]]
            if not any(copy.startswith(HASH_MARK) for copy in copies):
                return
            if copies[0] != copies[1]:
                raise damaged(self.path)
            if not is_hashed(self.path, verify):
                return
            rest = file.read()
            file.seek(0)
            sha256 = _hash_of(file, position)
        sha256.update(rest)
        if _hash_entry(sha256.hexdigest()) != entry:
            raise damaged(self.path)

    @contextmanager
    def _open(self) -> Iterator[Any]:
        self.check_installed()
        import pyarrow
        import pyarrow.parquet

        try:
            with pyarrow.parquet.ParquetFile(self.path, memory_map=True, page_checksum_verification=True) as file:
                yield file
        except (OSError, pyarrow.ArrowException, ValueError, KeyError, TypeError) as cause:
            raise DataError(f"{self.path} cannot be read as embeddings: {cause}") from cause


class ParquetBlockWriter:
    """Writes each block as a row group."""

    def __init__(self, file: Any, header: Header) -> None:
        self.file = file
        self.header = header

    def add(self, block: RowBlock, extra: Sequence[Any] = ()) -> None:
        """Write the rows of a block, with the arrays of further columns."""
        import pyarrow

        schema = self.file.schema
        string_type = schema.field("id").type
        # A label without a name, and -1, have no class.
        name_of = dict(enumerate(self.header.classes))
        class_names = [name_of.get(label) for label in block.labels.tolist()]
        values = pyarrow.array(block.vectors.to(self.header.dtype).flatten().numpy())
        if block.paths is None:
            paths = pyarrow.nulls(len(block.vectors), string_type)
        else:
            paths = _encode_strings(block.paths, string_type)
        columns = [
            _encode_strings(block.ids, string_type),
            paths,
            pyarrow.array(block.labels.numpy().astype(np.int64)),
            _encode_strings(class_names, schema.field("class").type),
            pyarrow.FixedSizeListArray.from_arrays(values, self.header.width),
        ]
        if self.header.has_file_stats and block.file_stats is not None:
            columns += [pyarrow.array(column.numpy()) for column in block.file_stats.unbind(1)]
        columns += extra
        self.file.write_table(pyarrow.Table.from_arrays(columns, schema=schema))


def _hash_entry(digest: str) -> bytes:
    return 2 * (HASH_MARK + digest.encode())


def _hash_of(file: BinaryIO, num_bytes: int) -> "hashlib._Hash":
    """Return the hash of the next `num_bytes` bytes."""
    sha256 = hashlib.sha256()
    while num_bytes:
        chunk = file.read(min(num_bytes, _CHUNK_BYTES))
        if not chunk:
            break
        sha256.update(chunk)
        num_bytes -= len(chunk)
    return sha256


def _schema(header: Header) -> Any:
    import pyarrow

    # Parquet's strings are UTF-8, so file names that are not are stored as bytes.
    string_type = pyarrow.string()
    if header.has_non_utf8_names:
        string_type = pyarrow.binary()
    class_type = pyarrow.string()
    if not are_utf8(header.classes):
        class_type = pyarrow.binary()
    value_type = {torch.float16: pyarrow.float16(), torch.float32: pyarrow.float32()}[header.dtype]
    fields = [
        ("id", string_type),
        ("path", string_type),
        ("label", pyarrow.int64()),
        ("class", class_type),
        ("vector", pyarrow.list_(value_type, header.width)),
    ]
    if header.has_file_stats:
        fields += [(name, pyarrow.int64()) for name in FILE_STATS]
    return pyarrow.schema(fields)


def _encode_metadata(header: Header) -> str:
    id_column = "ids"
    if header.ids_are_paths:
        id_column = "paths"
    metadata = {
        "format": FORMAT,
        "version": VERSION,
        "classes": header.classes,
        "about": header.metadata,
        "ids": id_column,
        "paths": header.has_paths,
    }
    return json.dumps(metadata)


def _metadata(file: Any) -> dict[str, Any]:
    """Return the metadata that reptk wrote, empty for a table of another program."""
    metadata = file.metadata.metadata or {}
    return parse_json(metadata.get(METADATA_KEY, b"{}"))


def _class_names(file: Any, metadata: dict[str, Any]) -> tuple[str, ...]:
    """Return the class names of the metadata; of a table of another program, those in its column `class`."""
    names = metadata.get("classes")
    columns = file.schema_arrow.names
    if names is None and "class" in columns and "label" not in columns:
        column = file.read(columns=["class"]).column("class")
        present = [name for name in column.unique().to_pylist() if name is not None]
        names = sorted(map(str, present))
    return tuple(names or ())


def _row_block(columns: dict[str, Any], count: int, first_row: int, label_of: dict[str, int]) -> RowBlock:
    """Convert a record batch; rows without an id column are called by their numbers."""
    if "id" in columns:
        ids = _decode_strings(columns["id"])
    else:
        ids = [str(row) for row in range(first_row, first_row + count)]
    paths = None
    if "path" in columns and columns["path"].null_count == 0:
        paths = _decode_strings(columns["path"])
    file_stats = None
    if set(columns).issuperset(FILE_STATS):
        stats = [columns[name].fill_null(-1).to_numpy(zero_copy_only=False) for name in FILE_STATS]
        file_stats = torch.from_numpy(np.stack(stats, axis=1).astype(np.int64))
    return RowBlock(_vectors(columns["vector"], count), _labels(columns, count, label_of), ids, paths, file_stats)


def _encode_strings(strings: Any, string_type: Any) -> Any:
    import pyarrow

    values = list(strings)
    if pyarrow.types.is_binary(string_type):
        values = [None if string is None else string.encode("utf-8", "surrogateescape") for string in values]
    return pyarrow.array(values, string_type)


def _decode_strings(column: Any) -> list[str]:
    strings = []
    for value in column.to_pylist():
        if isinstance(value, bytes):
            strings.append(value.decode("utf-8", "surrogateescape"))
        else:
            strings.append(str(value))
    return strings


def _vectors(column: Any, count: int) -> Tensor:
    """Convert a column of lists to (count, F); float16 stays float16, other numbers become float32."""
    import pyarrow.compute

    if column.null_count:
        raise ValueError(f"no vector in {format_count(column.null_count, 'row')}")
    widths = pyarrow.compute.list_value_length(column).unique()
    if len(widths) != 1:
        raise ValueError("its vectors differ in length")
    values = column.flatten().to_numpy(zero_copy_only=False)
    dtype: Any = np.float32
    if values.dtype == np.float16:
        dtype = np.float16
    return torch.from_numpy(np.array(values, dtype).reshape(count, widths[0].as_py()))


def _labels(columns: dict[str, Any], count: int, label_of: dict[str, int]) -> Tensor:
    """Return the labels (count,) int64, from the column `label` or else `class`; -1 for rows without one."""
    if "label" in columns:
        labels = columns["label"].fill_null(-1).to_numpy(zero_copy_only=False)
        return torch.from_numpy(labels.astype(np.int64))
    labels = [-1] * count
    if "class" in columns:
        for row, name in enumerate(columns["class"].to_pylist()):
            if name is not None:
                labels[row] = label_of.get(str(name), -1)
    return torch.tensor(labels, dtype=torch.long)
