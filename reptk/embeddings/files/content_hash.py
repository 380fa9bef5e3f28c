"""The hash that a file of embeddings carries of all its other bytes, and how a file is compared with it.

Neither safetensors nor Parquet notice all damage of a disk or a copy: a flipped bit would be searched with. The hash is
computed while the file is written. Files of other programs, and of earlier versions, have none.
"""

import hashlib
from pathlib import Path
from typing import Any, BinaryIO

from reptk.core.errors import DataError

MAX_HASHED_BYTES = 1 << 30
"""Files up to this size are compared with their hash whenever they are read, larger ones on request: it takes a second a GB."""


class HashedFile:
    """A file that is open for writing, with the hash of all that has been written to it.

    Attributes:
        sha256: the hash.
        closed: as Arrow expects it of a file.
    """

    closed = False

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.sha256 = hashlib.sha256()

    def write(self, content: Any) -> int:
        """Write bytes, or an array in C order."""
        self.sha256.update(content)
        return self.file.write(content)

    def flush(self) -> None:
        """Pass what was written on to the operating system."""
        self.file.flush()


def is_hashed(path: Path, verify: bool | None) -> bool:
    """Return whether a file is to be compared with its hash: as `verify` says, or if that is None, unless it is large."""
    if verify is None:
        return path.stat().st_size <= MAX_HASHED_BYTES
    return verify


def damaged(path: Path) -> DataError:
    """Return the error for a file that differs from its hash."""
    return DataError(
        f"{path} is damaged: its content has another hash than when it was written. Copy it again from an intact copy, or "
        "embed the images again: --force"
    )
