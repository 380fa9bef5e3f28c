"""Atomic writing of files: to a temporary name in the same folder, flushed to disk, then renamed."""

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

MAX_INT_DIGITS = 300
"""Of integers in JSON files. Longer ones cannot become floating-point numbers."""


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path next to `path`; what the block writes there replaces `path` in one step.

    A reader sees the old content or the new one, never a part. If the block raises, `path` is left as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        # Otherwise a crash of the system soon after the renaming could leave an empty file.
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Replace the content of `path` atomically."""
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Replace the content of `path` atomically, in UTF-8; undecodable file names survive (surrogateescape)."""
    write_bytes(path, text.encode("utf-8", "surrogateescape"))


def json_text(value: Any, indent: int | None = None) -> str:
    """Return a value as JSON, in which NaN and infinity, which JSON does not have, are null."""
    return json.dumps(_without_nan(value), indent=indent, allow_nan=False)


def parse_json(text: str | bytes) -> Any:
    """Return what JSON holds.

    Raises:
        ValueError: it is not JSON, holds an integer beyond all floating-point numbers, or is too deeply nested, for which
            `json.loads` raises a RecursionError.
    """
    try:
        return json.loads(text, parse_int=_bounded_int)
    except RecursionError as cause:
        raise ValueError("too deeply nested") from cause


def _bounded_int(text: str) -> int:
    if len(text) > MAX_INT_DIGITS:
        raise ValueError(f"an integer of {len(text):,} digits")
    return int(text)


def _without_nan(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _without_nan(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(inner) for inner in value]
    return value


def expand_home(path: str | Path) -> Path:
    """Return a path with its leading `~` replaced by the home folder; unchanged if there is no such user.

    `Path.expanduser` raises a RuntimeError then, although `~x` may be the name of a file.
    """
    return Path(os.path.expanduser(path))  # noqa: PTH111 - see above


def real_path(path: str | Path) -> Path:
    """Return the absolute path without links; where links lead in a circle, they stay.

    `Path.resolve` raises a RuntimeError then, up to Python 3.12.
    """
    return Path(os.path.realpath(path))


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
