"""Embeddings as one safetensors file: written row by row, read by mapping it into memory.

The vectors stand first, so that their place is known before their number; the header, which says how many there are, is
given its room at the start and written last.
"""

import json
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
from reptk.embeddings.place import beside, check_room
from reptk.embeddings.rows import FORMAT, VERSION, Rows, Whole
from reptk.embeddings.texts import Growing, Texts

ROOM = 1 << 15
"""Bytes of the header kept for what is added to `about` while rows are written."""

ALIGNMENT = 64
_MAPPED = {"F32": np.float32, "F16": np.float16, "I64": np.int64, "U8": np.uint8}
_NAMES = {np.dtype(kind): name for name, kind in _MAPPED.items()}


@contextmanager
def writing(path: Path, whole: Whole) -> Iterator["Writer"]:
    """A writer for `path`, where the file appears when the block ends without an error.

    Raises:
        EnvironmentProblem: no room, or no right to write.
    """
    check_room(path, whole.vector_bytes())
    with beside(path) as unfinished, unfinished.open("wb") as file:
        writer = Writer(file, whole)
        yield writer
        writer.finish()


class Writer:
    """Takes rows and writes their vectors at once; the rest is small and waits for the end."""

    def __init__(self, file: BinaryIO, whole: Whole) -> None:
        self.file, self.whole, self.count = file, whole, 0
        self.labels: list[NDArray[np.int64]] = []
        self.ids, self.paths = Growing(), Growing()
        self.start = -(-(len(self._header({})) + ROOM) // ALIGNMENT) * ALIGNMENT
        self.file.seek(self.start)

    def add(self, rows: Rows) -> None:
        self.file.write(rows.vectors.to(self.whole.dtype).contiguous().numpy())
        self.labels.append(rows.labels.numpy().astype(np.int64))
        if not self.whole.ids_are_paths:
            self.ids.extend(rows.ids)
        if self.whole.has_paths:
            self.paths.extend(rows.paths or ())
        self.count += len(rows.vectors)

    def finish(self) -> None:
        width, kind = self.whole.width, _NAMES[np.dtype("f2" if self.whole.half else "f4")]
        place = self.count * width * self.whole.dtype.itemsize
        entries = {"vectors": _entry(kind, [self.count, width], 0, place)}
        for name, column in self._columns(place).items():
            self.file.write(column)
            entries[name] = _entry(_NAMES[column.dtype], [len(column)], place, place + column.nbytes)
            place += column.nbytes
        header = self._header(entries)
        room = self.start - 8
        if len(header) > room:
            self.whole.about["left_out"] = "more was to be said than there was room for"
            self.whole.about.pop("skipped", None)
            header = self._header(entries)
        self.file.seek(0)
        self.file.write(struct.pack("<Q", room) + header.ljust(room))
        self.file.flush()

    def _columns(self, place: int) -> dict[str, NDArray[Any]]:
        padding = np.zeros(-place % 8, np.uint8)  # what follows has 8 bytes a value, and readers want it aligned
        texts = {} if self.whole.ids_are_paths else {"ids": self.ids.kept()}
        texts |= {"paths": self.paths.kept()} if self.whole.has_paths else {}
        columns = {"padding": padding} if len(padding) else {}
        columns["labels"] = np.concatenate(self.labels or [np.zeros(0, np.int64)])
        columns |= {f"{name}_ends": kept.ends for name, kept in texts.items()}
        return columns | {name: kept.letters for name, kept in texts.items()}

    def _header(self, entries: dict[str, Any]) -> bytes:
        words = {
            "format": FORMAT,
            "version": str(VERSION),
            "ids": "paths" if self.whole.ids_are_paths else "ids",
            "classes": json.dumps(self.whole.classes),
            "about": json.dumps(self.whole.about),
        }
        return json.dumps({"__metadata__": words, **entries}).encode()


def read(path: Path) -> dict[str, Any]:
    """The columns of a file, mapped into memory: vectors, labels, ids, paths, classes, about.

    Any safetensors file with a matrix `vectors` will do; the rest may be missing.

    Raises:
        DataError: damaged, of a newer reptk, or no embeddings.
    """
    try:
        with safe_open(path, framework="pt") as file:  # it holds the whole header against the file
            names, words = set(file.keys()), file.metadata() or {}
            strange = {name: file.get_tensor(name) for name in _strange(file, names)}
        if words.get("format") == FORMAT and int(words["version"]) > VERSION:
            raise DataError(f"{path} was written by a newer reptk (format {words['version']}); update reptk to read it")
        if "vectors" not in names:
            raise DataError(f"{path} holds no embeddings: it has no 'vectors', only {_few(names)}")
        mapped = _Mapped(path)
        columns: dict[str, Any] = {name: strange.get(name, mapped.get(name)) for name in ("vectors", "labels")}
        texts = {name: mapped.texts(name) for name in ("ids", "paths") if f"{name}_ends" in names}
        columns |= texts | ({"ids": texts["paths"]} if words.get("ids") == "paths" else {})
        return columns | {name: json.loads(words[name]) for name in ("classes", "about") if name in words}
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as cause:
        raise DataError(f"{path} cannot be read as embeddings: {cause}") from cause


class _Mapped:
    """Tensors of a file as arrays that are read when they are looked at."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            self.entries, self.start, self.path = json.loads(file.read(length)), 8 + length, path

    def array(self, name: str) -> NDArray[Any]:
        entry = self.entries[name]
        kind, shape = _MAPPED[entry["dtype"]], tuple(entry["shape"])
        if 0 in shape:
            return np.zeros(shape, kind)
        # Copy on write: nothing is ever written, but torch warns of arrays that cannot be.
        return np.memmap(self.path, kind, "c", self.start + entry["data_offsets"][0], shape)

    def get(self, name: str) -> Tensor | None:
        known = name in self.entries and self.entries[name]["dtype"] in _MAPPED
        return torch.from_numpy(self.array(name)) if known else None

    def texts(self, name: str) -> Texts:
        return Texts(self.array(name), self.array(f"{name}_ends"))


def _strange(file: Any, names: set[str]) -> list[str]:
    """Columns of types that other programs may have chosen, which are converted in memory."""
    return [name for name in ("vectors", "labels") if name in names and file.get_slice(name).get_dtype() not in _MAPPED]


def _entry(kind: str, shape: list[int], first: int, last: int) -> dict[str, Any]:
    return {"dtype": kind, "shape": shape, "data_offsets": [first, last]}


def _few(names: set[str]) -> str:
    return ", ".join(sorted(names)[:4]) + (" ..." if len(names) > 4 else "") or "nothing"
