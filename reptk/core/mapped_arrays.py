"""Arrays with a value for each image: small ones in memory, large ones in a file that is mapped.

The functions are those of NumPy, computed chunk by chunk. The pages of a mapped file belong to the system,
which drops them when memory is short, so the memory of a process does not grow with the number of images.
"""

import errno
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import DTypeLike, NDArray

from reptk.core.user_folders import cache_folder

MAX_BYTES_IN_MEMORY = 1 << 24
"""16 MB: labels of two million images."""

CHUNK = 1 << 20
"""Values that are computed at once."""


def chunks(length: int) -> Iterator[slice]:
    """Yield consecutive slices of at most `CHUNK` values."""
    for start in range(0, length, CHUNK):
        yield slice(start, min(start + CHUNK, length))


def from_chunks(pieces: Iterable[NDArray], length: int, dtype: DTypeLike) -> NDArray:
    """Return an array of all pieces one after the other.

    Above `MAX_BYTES_IN_MEMORY` it is in a file without a name in the user's cache folder, which is deleted with the array; in
    memory, if nothing can be written there.

    Args:
        pieces: (n,) each.
        length: sum of their lengths.
        dtype: of the values.
    """
    out = zeros(length, dtype)
    position = 0
    for piece in pieces:
        out[position : position + len(piece)] = piece
        position += len(piece)
    if position != length:
        raise ValueError(f"the pieces have {position:,} values, not {length:,}")
    return out


def zeros(length: int, dtype: DTypeLike) -> NDArray:
    """Return an array (length,) of zeros, in memory or in a file; see `from_chunks`."""
    num_bytes = length * np.dtype(dtype).itemsize
    if num_bytes <= MAX_BYTES_IN_MEMORY:
        return np.zeros(length, dtype)
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            _reserve(file, folder, num_bytes)
            return np.memmap(file, dtype, "r+", shape=(length,))
    except OSError:
        return np.zeros(length, dtype)


def _reserve(file: IO[bytes], folder: Path, num_bytes: int) -> None:
    """Allocate the space of a file on the disk: without this, writing to a mapped array on a full disk ends the process.

    Raises:
        OSError: there is not enough space.
    """
    if sys.platform == "linux":
        os.posix_fallocate(file.fileno(), 0, num_bytes)
        return
    if shutil.disk_usage(folder).free < num_bytes:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    os.ftruncate(file.fileno(), num_bytes)


def full(length: int, value: int, dtype: DTypeLike) -> NDArray:
    """Return an array (length,) of one value."""
    return from_chunks((np.full(part.stop - part.start, value) for part in chunks(length)), length, dtype)


def arange(start: int, stop: int) -> NDArray[np.int64]:
    """Return the integers from `start` up to, but not including, `stop`."""
    length = stop - start
    return from_chunks((np.arange(part.start, part.stop) + start for part in chunks(length)), length, np.int64)


def apply(function: Callable[[NDArray], NDArray], values: NDArray, dtype: DTypeLike) -> NDArray:
    """Return `function(values)` of a function that computes each value from one, called for a chunk at a time."""
    return from_chunks((function(values[part]) for part in chunks(len(values))), len(values), dtype)


def flatnonzero(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the indices (n,) at which a mask is true, ascending."""
    count = sum(int(np.count_nonzero(mask[part])) for part in chunks(len(mask)))
    return from_chunks((np.flatnonzero(mask[part]) + part.start for part in chunks(len(mask))), count, np.int64)


def take(values: NDArray, indices: NDArray[np.int64]) -> NDArray:
    """Return `values[indices]`."""
    return apply(values.__getitem__, indices, values.dtype)


def concatenate(arrays: list[NDArray]) -> NDArray:
    """Return the values of all arrays, one after the other; a single array itself."""
    if len(arrays) == 1:
        return arrays[0]
    length = sum(map(len, arrays))
    pieces = (array[part] for array in arrays for part in chunks(len(array)))
    return from_chunks(pieces, length, arrays[0].dtype)
