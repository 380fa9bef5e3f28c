"""Rows that need not fit into memory: written to a file block after block, read back as a memory-mapped tensor.

The file is a NumPy array (.npy), which numpy.load reads as well.
"""

import os
from pathlib import Path
from types import TracebackType

import numpy as np
import torch
from torch import Tensor

from reptk.errors import DataError

DTYPES = {torch.float32: np.dtype("<f4"), torch.float16: np.dtype("<f2")}
"""What NumPy's format can hold of what banks can be."""


class RowWriter:
    """Writes (count, width) rows in their order; the file is in its place when all of them are, and never before.

        with RowWriter("bank.npy", count, width) as writer:
            for block in blocks:
                writer.add(block)
        bank = read_rows("bank.npy")

    Meanwhile rows are written beside it, to `NAME.unfinished`, which an exception inside the block removes.

    Args:
        path: of the file; replaced if it is there.
        count: how many rows there will be.
        width: values a row.
        dtype: float32, or float16 for half the space (search with `exact=` or accept its rounding).

    Raises:
        ValueError: another dtype, or count or width below 1.
        DataError: the file cannot be written.
    """

    def __init__(self, path: str | Path, count: int, width: int, dtype: torch.dtype = torch.float32) -> None:
        if dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(map(str, DTYPES))}, got {dtype}")
        if count < 1 or width < 1:
            raise ValueError(f"count and width must be at least 1, got {count} and {width}")
        self.path, self.count, self.width, self.dtype = Path(path), count, width, dtype
        self.written = 0
        self._beside = self.path.with_name(self.path.name + ".unfinished")

    def __enter__(self) -> "RowWriter":
        header = {"descr": DTYPES[self.dtype].str, "fortran_order": False, "shape": (self.count, self.width)}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._beside.open("wb")
            np.lib.format.write_array_header_1_0(self._file, header)
        except OSError as cause:
            raise DataError(f"{self.path} cannot be written: {cause.strerror or cause}") from cause
        return self

    def add(self, rows: Tensor) -> None:
        """The next rows, (b, width), floating point.

        Raises:
            ValueError: another width, not finite once rounded to the file's precision, or more rows than announced.
            DataError: they cannot be written (the disk is full).
        """
        if rows.ndim != 2 or rows.shape[1] != self.width or not rows.is_floating_point():
            raise ValueError(f"rows must be (b, {self.width}) floating point, got {rows.dtype} {tuple(rows.shape)}")
        if self.written + len(rows) > self.count:
            raise ValueError(f"{self.count} rows were announced, these would make {self.written + len(rows)}")
        rounded = rows.detach().to("cpu", self.dtype).contiguous()
        bad = (~rounded.isfinite().all(1)).nonzero().flatten()
        if len(bad):
            numbers = (bad[:5] + self.written).tolist()
            raise ValueError(f"{len(bad)} rows hold NaN, infinity or values beyond {self.dtype}, first {numbers}")
        try:
            self._file.write(rounded.numpy().astype(DTYPES[self.dtype], copy=False).data)
        except OSError as cause:
            raise DataError(f"{self.path} cannot be written: {cause.strerror or cause}") from cause
        self.written += len(rows)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            self._file.close()
            self._beside.unlink(missing_ok=True)

    def _finish(self) -> None:
        if self.written < self.count:
            raise ValueError(f"{self.count} rows were announced, {self.written} were written: {self.path} is not made")
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self._beside.replace(self.path)
        except OSError as cause:
            raise DataError(f"{self.path} cannot be written: {cause.strerror or cause}") from cause


def read_rows(path: str | Path) -> Tensor:
    """The rows in a file as a (n, F) tensor in memory only where it is touched; what is written to it stays in memory.

    Raises:
        DataError: the file is missing, shorter than it says, or no two-dimensional array of float16 or float32.
    """
    try:
        held = np.load(path, mmap_mode="c", allow_pickle=False)
    except (OSError, ValueError, EOFError) as cause:
        raise DataError(f"{path} holds no rows that can be read: {cause}") from cause
    if not isinstance(held, np.ndarray) or held.ndim != 2 or held.dtype not in DTYPES.values():
        raise DataError(f"{path} holds no rows of float16 or float32")
    return torch.from_numpy(held)
