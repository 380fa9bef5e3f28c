"""Approximate indexes beyond memory: filled part by part, with inverted lists in a file that is mapped into memory.

The index is trained once, on a sample. Every part of the rows is added to a copy of it, which is written to disk. The lists of
all parts are then merged into one file, of which a search reads the lists that it visits, see
https://github.com/facebookresearch/faiss/wiki/Indexes-that-do-not-fit-in-RAM. The memory needed is that of a part and of the
trained index.
"""

import ctypes
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from torch import Tensor

from reptk.core.disk_space import check_free_space
from reptk.core.errors import DataError, UsageError
from reptk.neighbors.approximate import ApproximateIndex
from reptk.neighbors.engine import require_faiss
from reptk.neighbors.faiss_factory import (
    as_array,
    create_index,
    reason_of,
    set_effort,
    single_thread_for_graphs,
    train_index,
    untransformed_lists,
)
from reptk.neighbors.vectors import CHUNK_BYTES, check_vectors, chunks

PART_BYTES = 1 << 28
"""Size of the lists that are in memory at once."""

ID_BYTES = 8
"""Of the number of a row, in a list."""


def build_on_disk(
    bank: Tensor,
    factory: str,
    lists_path: Path,
    *,
    seed: int = 0,
    effort: int | None = None,
    part_bytes: int = PART_BYTES,
    progress: Callable[[int], None] | None = None,
) -> ApproximateIndex:
    """Build an index whose inverted lists are in a file; see `ApproximateIndex.build`.

    Args:
        bank: (n, F), floating point of any precision; may be memory-mapped.
        factory: FAISS's factory string of inverted lists: "IVF4096,PQ64", "OPQ64,IVF65536_HNSW32,PQ64", "IVF256,Flat", ...
        lists_path: the file to write.
        seed: of the sample and of k-means.
        effort: how many inverted lists a search visits.
        part_bytes: size of the parts.
        progress: called with how many further rows are in a part.

    Raises:
        UsageError: FAISS cannot build such an index, or its lists cannot be in a file.
        EnvironmentProblem: FAISS is missing, or there is no space for twice the lists.
        ValueError: the bank is not floating point or not finite.
    """
    faiss = require_faiss("an approximate index")
    check_vectors("bank", bank)
    index = create_index(faiss, bank.shape[1], factory, seed)
    mergeable = _mergeable_lists(faiss, index)
    if mergeable is None:
        raise UsageError(
            f"{factory!r} cannot be on disk, only kinds of inverted lists can: IVF4096,PQ64  OPQ64,IVF65536_HNSW32,PQ64  "
            "IVF256,Flat"
        )
    row_bytes = mergeable.code_size + ID_BYTES
    # Pages of a mapped file that find no space on the disk end the process, so there must be enough before.
    check_free_space(
        lists_path, 2 * len(bank) * row_bytes, "Choose an --out on another disk, or a --kind with a smaller code"
    )
    with single_thread_for_graphs(faiss, factory):
        train_index(faiss, index, factory, bank, seed)
    with tempfile.TemporaryDirectory(dir=lists_path.parent, prefix="parts-") as folder:
        parts = _write_parts(faiss, index, bank, Path(folder), max(1, part_bytes // row_bytes), progress)
        _merge(faiss, index, parts, lists_path)
    set_effort(faiss, index, effort)
    return ApproximateIndex(index, factory)


def open_on_disk(data: bytes, lists_path: Path) -> ApproximateIndex:
    """Open what `build_on_disk` has built.

    Args:
        data: what `ApproximateIndex.to_bytes` returned. Verify its hash before.
        lists_path: the file of the lists, of the length that it was written with. What is in it can make a search return wrong
            rows, or rows that do not exist, but nothing else: where each list lies is in `data`.

    Raises:
        DataError: the bytes are no such index, or the file is missing.
        EnvironmentProblem: FAISS is missing.
    """
    faiss = require_faiss("an approximate index")
    approximate = ApproximateIndex.from_bytes(data, faiss.IO_FLAG_SKIP_IVF_DATA | faiss.IO_FLAG_READ_ONLY)
    _, ivf = untransformed_lists(faiss, approximate.index)
    mapped = None
    if ivf is not None:
        mapped = faiss.downcast_InvertedLists(ivf.invlists)
    if not isinstance(mapped, faiss.OnDiskInvertedLists):
        raise DataError("the index is damaged: its lists are in no file; build it again")
    # What is beyond the end of a file that is too short cannot be read, which would end the process.
    if not lists_path.is_file() or lists_path.stat().st_size < mapped.totsize:
        raise DataError(f"the index is damaged: {lists_path.name} is missing or too short; build it again")
    mapped.filename = str(lists_path)
    try:
        mapped.do_mmap()
    except RuntimeError as cause:
        raise DataError(f"{lists_path} cannot be read: {reason_of(cause)}") from cause
    return approximate


def lists_bytes(width: int, factory: str, count: int) -> int | None:
    """Return the size of the inverted lists of `count` rows; None if they cannot be in a file.

    Raises:
        UsageError: FAISS cannot build such an index.
        EnvironmentProblem: FAISS is missing.
    """
    faiss = require_faiss("an approximate index")
    index = create_index(faiss, width, factory, 0)
    mergeable = _mergeable_lists(faiss, index)
    if mergeable is None:
        return None
    return count * (mergeable.code_size + ID_BYTES)


def _mergeable_lists(faiss: ModuleType, index: Any) -> Any | None:
    """Return the inverted lists of an index; None if it has none, or such that cannot be in a file."""
    _, lists = untransformed_lists(faiss, index)
    # Codes of the others are partly outside of their lists, or in blocks that cannot be joined.
    if lists is None or isinstance(lists, (faiss.IndexIVFPQR, faiss.IndexIVFFastScan)):
        return None
    return lists


def _write_parts(
    faiss: ModuleType,
    trained: Any,
    bank: Tensor,
    folder: Path,
    rows_per_part: int,
    progress: Callable[[int], None] | None,
) -> list[Path]:
    """Add the rows, part by part, to copies of an empty index, and write them to files."""
    paths = []
    chunk_rows = min(rows_per_part, max(1, CHUNK_BYTES // (4 * bank.shape[1])))
    for first in range(0, len(bank), rows_per_part):
        part = faiss.clone_index(trained)
        rows = bank[first : first + rows_per_part]
        try:
            for offset, chunk in chunks(rows, chunk_rows):
                start = first + offset
                part.add_with_ids(as_array(chunk), np.arange(start, start + len(chunk)))
                if progress is not None:
                    progress(len(chunk))
            path = folder / f"{len(paths)}.faiss"
            faiss.write_index(part, str(path))
        except RuntimeError as cause:
            raise UsageError(f"FAISS cannot add rows to this index: {reason_of(cause)}") from cause
        paths.append(path)
    return paths


def _merge(faiss: ModuleType, index: Any, paths: list[Path], lists_path: Path) -> None:
    """Write the lists of all parts into one file, and put it into an empty index.

    As `faiss.contrib.ondisk.merge_ondisk`, which never closes the parts, so that their disk space stays in use.
    """
    parts = [faiss.read_index(str(path), faiss.IO_FLAG_MMAP) for path in paths]
    sources = faiss.InvertedListsPtrVector()
    for part in parts:
        sources.push_back(faiss.extract_index_ivf(part).invlists)
    ivf = faiss.extract_index_ivf(index)
    with _without_messages():
        merged = faiss.OnDiskInvertedLists(ivf.nlist, ivf.code_size, str(lists_path))
        count = merged.merge_from_multiple(sources.data(), sources.size(), False)
    index.ntotal = ivf.ntotal = count
    ivf.replace_invlists(merged, True)
    merged.this.disown()
    # The name that is written into the index; it is opened in the folder in which it lies then.
    merged.filename = lists_path.name


@contextmanager
def _without_messages() -> Iterator[None]:
    """Drop what C code prints in the block: FAISS says on standard output how large its file becomes."""
    try:
        saved = os.dup(1)
    except OSError:  # standard output is closed
        yield
        return
    libc = ctypes.CDLL(None)
    libc.fflush(None)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    try:
        yield
    finally:
        libc.fflush(None)
        os.dup2(saved, 1)
        os.close(null)
        os.close(saved)
