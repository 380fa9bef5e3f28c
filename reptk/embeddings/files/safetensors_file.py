"""Embeddings as one safetensors file, which is written row by row and read by mapping it into memory.

The file begins with a header that says where each tensor lies. How many rows there will be is only known at the end, so
space for the header is reserved at the start, the vectors follow, and the header is written last.
"""

import hashlib
import json
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from reptk.core.errors import DataError
from reptk.core.file_records import NO_HASH
from reptk.core.files import parse_json
from reptk.embeddings.files.content_hash import HashedFile, damaged, is_hashed
from reptk.embeddings.files.output_path import opened_for_embeddings
from reptk.embeddings.files.row_blocks import FORMAT, VERSION, Header, RowBlock, StoredColumns, dtype_name
from reptk.embeddings.files.string_array import StringArray, StringArrayBuilder

RESERVED_BYTES = 1 << 15
"""Space in the header for the tensors' entries and for what is added to `metadata` while rows are written."""

HASH_KEY = "reptk_sha256"
"""Key in the header's metadata: the hash of the data, then of the header with `NO_HASH` in this place."""

KEYS_WITHOUT_HASH = frozenset({"format", "version", "ids", "classes", "about"})
"""The metadata of earlier versions, which stored no hash."""

FILE_STATS = ("file_bytes", "file_mtimes_ns")

ALIGNMENT = 64
_LENGTH_BYTES = 8
"""A safetensors file begins with the length of its header, as a 64-bit integer."""

_NUMPY_TYPES = {"F32": np.float32, "F16": np.float16, "I64": np.int64, "U8": np.uint8}
_TYPE_NAMES = {np.dtype(numpy_type): name for name, numpy_type in _NUMPY_TYPES.items()}


class SafetensorsFile:
    """A safetensors file of embeddings; see `EmbeddingsFile`.

    Tensors: `vectors` (n, F); `labels` (n,); `ids` and `paths`, the bytes of the strings, with `ids_ends` and `paths_ends`,
    their offsets. One column serves as both if the ids are the paths. Of images that are files, `file_bytes` and
    `file_mtimes_ns` (n,).
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def check_installed(self) -> None:
        """Do nothing: safetensors is always installed."""

    @contextmanager
    def writer(self, header: Header) -> Iterator["SafetensorsWriter"]:
        """Open the file for writing; see `EmbeddingsFile`."""
        with opened_for_embeddings(self.path, header.vector_bytes()) as file:
            writer = SafetensorsWriter(file, header)
            yield writer
            writer.finish()

    def read(self, *, verify: bool | None = None) -> StoredColumns:
        """Return all columns, memory-mapped; see `EmbeddingsFile`.

        Any safetensors file with a matrix `vectors` can be read; the other tensors may be missing.
        """
        try:
            return self._read(verify)
        except (OSError, SafetensorError, ValueError, KeyError, TypeError) as cause:
            raise DataError(f"{self.path} cannot be read as embeddings: {cause}") from cause

    def _read(self, verify: bool | None) -> StoredColumns:
        with safe_open(self.path, framework="pt") as file:  # checks the whole header against the file
            names = set(file.keys())
            metadata = file.metadata() or {}
            converted = _unmapped_tensors(file, names)
        if metadata.get("format") == FORMAT and int(metadata["version"]) > VERSION:
            raise DataError(
                f"{self.path} was written by a newer reptk (format {metadata['version']}); update reptk to read it"
            )
        self._check_hash(metadata, verify)
        if "vectors" not in names:
            raise DataError(f"{self.path} holds no embeddings: it has no 'vectors', only {_list_some(names)}")

        mapped = _MappedTensors(self.path)
        tensors = {}
        for name in ("vectors", "labels"):
            tensors[name] = converted.get(name)
            if tensors[name] is None:
                tensors[name] = mapped.tensor(name)
        file_stats = None
        if names.issuperset(FILE_STATS):
            file_stats = torch.stack([mapped.tensor(name) for name in FILE_STATS], dim=1)
        strings = {}
        for name in ("ids", "paths"):
            if f"{name}_ends" in names:
                strings[name] = mapped.strings(name)
        if metadata.get("ids") == "paths":
            strings["ids"] = strings["paths"]
        return StoredColumns(
            vectors=tensors["vectors"],
            ids=strings.get("ids"),
            paths=strings.get("paths"),
            labels=tensors["labels"],
            file_stats=file_stats,
            classes=parse_json(metadata.get("classes", "[]")),
            metadata=parse_json(metadata.get("about", "{}")),
        )

    def _check_hash(self, metadata: dict[str, str], verify: bool | None) -> None:
        expected = metadata.get(HASH_KEY)
        if expected is None:
            # The key itself may be damaged.
            if metadata.get("format") == FORMAT and not KEYS_WITHOUT_HASH.issuperset(metadata):
                raise damaged(self.path)
            return
        if not is_hashed(self.path, verify):
            return
        with self.path.open("rb") as file:
            length = file.read(_LENGTH_BYTES)
            header = length + file.read(struct.unpack("<Q", length)[0])
            sha256 = hashlib.file_digest(file, "sha256")  # from here to the end
        sha256.update(header.replace(_hash_entry(expected), _hash_entry(NO_HASH)))
        if sha256.hexdigest() != expected:
            raise damaged(self.path)


class SafetensorsWriter:
    """Writes vectors as they come; the other columns are small and are kept in memory until the end."""

    def __init__(self, file: BinaryIO, header: Header) -> None:
        self.file = file
        self.data = HashedFile(file)
        self.header = header
        self.count = 0
        self.labels: list[NDArray[np.int64]] = []
        self.file_stats: list[NDArray[np.int64]] = []
        self.ids = StringArrayBuilder()
        self.paths = StringArrayBuilder()
        # Everything but the tensors' entries is known already; they and what is added to `metadata` get the reserved space.
        self.data_start = _round_up(len(self._encoded_header({})) + RESERVED_BYTES, ALIGNMENT)
        self.file.seek(self.data_start)

    def add(self, block: RowBlock) -> None:
        """Write the rows of a block."""
        self.data.write(block.vectors.to(self.header.dtype).contiguous().numpy())
        self.labels.append(block.labels.numpy().astype(np.int64))
        if self.header.has_file_stats and block.file_stats is not None:
            self.file_stats.append(block.file_stats.numpy().astype(np.int64))
        if not self.header.ids_are_paths:
            self.ids.extend(block.ids)
        if self.header.has_paths and block.paths is not None:
            self.paths.extend(block.paths)
        self.count += len(block.vectors)

    def finish(self) -> None:
        """Write the columns other than the vectors, then the header."""
        vectors_type = np.dtype(dtype_name(self.header.dtype))
        vectors_shape = [self.count, self.header.width]
        offset = self.count * self.header.width * vectors_type.itemsize
        entries = {"vectors": _entry(vectors_type, vectors_shape, 0, offset)}
        for name, column in self._columns(offset).items():
            self.data.write(column)
            entries[name] = _entry(column.dtype, [len(column)], offset, offset + column.nbytes)
            offset += column.nbytes

        reserved = self.data_start - _LENGTH_BYTES
        encoded = self._encoded_header(entries)
        if len(encoded) > reserved:
            # What was added while rows were written does not fit; only the names of skipped images can be that long.
            self.header.metadata["left_out"] = "the names of skipped images do not fit into the header"
            self.header.metadata.pop("skipped", None)
            encoded = self._encoded_header(entries)
        # Padded with spaces, as the format allows, to the length that was reserved.
        header = struct.pack("<Q", reserved) + encoded.ljust(reserved)
        sha256 = self.data.sha256
        sha256.update(header)
        self.file.seek(0)
        self.file.write(header.replace(_hash_entry(NO_HASH), _hash_entry(sha256.hexdigest())))
        self.file.flush()

    def _columns(self, offset: int) -> dict[str, NDArray[Any]]:
        """Return the arrays that follow the vectors, in their order."""
        columns: dict[str, NDArray[Any]] = {}
        padding = np.zeros(-offset % 8, np.uint8)  # int64 columns follow, which readers expect to be aligned
        if len(padding):
            columns["padding"] = padding
        columns["labels"] = np.concatenate([np.zeros(0, np.int64), *self.labels])
        if self.header.has_file_stats:
            file_stats = np.concatenate([np.zeros((0, 2), np.int64), *self.file_stats])
            for number, name in enumerate(FILE_STATS):
                columns[name] = np.ascontiguousarray(file_stats[:, number])
        strings = {}
        if not self.header.ids_are_paths:
            strings["ids"] = self.ids.build()
        if self.header.has_paths:
            strings["paths"] = self.paths.build()
        for name, array in strings.items():
            columns[f"{name}_ends"] = array.offsets
        for name, array in strings.items():
            columns[name] = array.data
        return columns

    def _encoded_header(self, entries: dict[str, Any]) -> bytes:
        id_column = "ids"
        if self.header.ids_are_paths:
            id_column = "paths"
        metadata = {
            "format": FORMAT,
            "version": str(VERSION),
            "ids": id_column,
            "classes": json.dumps(self.header.classes),
            "about": json.dumps(self.header.metadata),
            HASH_KEY: NO_HASH,
        }
        return json.dumps({"__metadata__": metadata, **entries}).encode()


class _MappedTensors:
    """Tensors of a file as memory-mapped arrays: bytes are read from the disk when they are used.

    The file is mapped once, and no descriptor stays open: a process may have 1,024, and a folder thousands of parts.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as file:
            (header_bytes,) = struct.unpack("<Q", file.read(_LENGTH_BYTES))
            self.entries = parse_json(file.read(header_bytes))
            num_bytes = os.fstat(file.fileno()).st_size
        self.data_start = _LENGTH_BYTES + header_bytes
        # Not shared, so copy on write: nothing is ever written, but torch warns of read-only arrays.
        # np.memmap would keep a descriptor for every array. Names need not be UTF-8, hence bytes.
        mapped = torch.from_file(os.fsencode(self.path), shared=False, size=num_bytes, dtype=torch.uint8)
        self.content: NDArray[np.uint8] = mapped.numpy()

    def array(self, name: str) -> NDArray[Any]:
        entry = self.entries[name]
        numpy_type = _NUMPY_TYPES[entry["dtype"]]  # `_unmapped_tensors` reads vectors and labels of other types
        start, stop = entry["data_offsets"]
        content = self.content[self.data_start + start : self.data_start + stop]
        return content.view(numpy_type).reshape(entry["shape"])

    def tensor(self, name: str) -> Tensor | None:
        """Return a tensor, None if the file has none of that name."""
        if name not in self.entries:
            return None
        return torch.from_numpy(self.array(name))

    def strings(self, name: str) -> StringArray:
        return StringArray(self.array(name), self.array(f"{name}_ends"))


def _unmapped_tensors(file: Any, names: set[str]) -> dict[str, Tensor]:
    """Read the vectors and labels whose types numpy cannot map; other programs may have chosen bfloat16, say."""
    tensors = {}
    for name in ("vectors", "labels"):
        if name in names and file.get_slice(name).get_dtype() not in _NUMPY_TYPES:
            tensors[name] = file.get_tensor(name)
    return tensors


def _entry(dtype: np.dtype, shape: list[int], start: int, stop: int) -> dict[str, Any]:
    return {"dtype": _TYPE_NAMES[dtype], "shape": shape, "data_offsets": [start, stop]}


def _hash_entry(digest: str) -> bytes:
    """Return the hash as the header holds it. In `about`, which is JSON within JSON, quotation marks are escaped."""
    return f'"{HASH_KEY}": "{digest}"'.encode()


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def _list_some(names: set[str]) -> str:
    if not names:
        return "nothing"
    listed = ", ".join(sorted(names)[:4])
    if len(names) > 4:
        listed += " ..."
    return listed
