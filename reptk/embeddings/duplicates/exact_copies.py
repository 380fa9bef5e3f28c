"""Which of several similar images are copies of each other: the same bytes, or other bytes that decode to the same pixels."""

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

from PIL import ImageOps

from reptk.core.files import sha256_of
from reptk.data.decoding.decode import open_image, read_image_file

Copy = Literal["bytes", "pixels", ""]
"""What an image shares with another one: its bytes; its pixels alone, e.g. as PNG and BMP; or neither."""

EIGHT_BIT_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA")


def exact_copies(files: Mapping[int, Path | None], similar_rows: Iterable[int]) -> dict[int, Copy]:
    """Compare files with each other.

    Args:
        files: by row; None for an image that is not a file.
        similar_rows: those whose embeddings are so similar that their pixels may be equal. Only these are decoded.

    Returns:
        For each row, what it shares with at least one other row.
    """
    # Files are read only if several have the same size, as identical ones must.
    by_size = _shared({row: readable_size(file) for row, file in files.items()})
    hashes = {row: sha256_of(files[row]) for row in by_size}
    same_bytes = {row: hashes[row] for row in _shared(hashes)}
    copies: dict[int, Copy] = dict.fromkeys(files, "")
    candidates = set(similar_rows)
    if not candidates <= set(same_bytes):
        # Of files with the same bytes one is decoded.
        by_bytes = {row: same_bytes.get(row, str(row)) for row in candidates}
        pixels_of = {}
        for row, content in by_bytes.items():
            if content not in pixels_of:
                pixels_of[content] = _pixels_sha256(files[row])
        by_pixels = {row: pixels_of[content] for row, content in by_bytes.items()}
        copies |= dict.fromkeys(_shared(by_pixels), "pixels")
    copies |= dict.fromkeys(same_bytes, "bytes")
    return copies


def readable_size(file: Path | None) -> int | None:
    """Return the size of a file in bytes, None if it cannot be read."""
    if file is None or not os.access(file, os.R_OK):
        return None
    try:
        return file.stat().st_size
    except OSError:
        return None


def _shared(values: Mapping[int, object]) -> list[int]:
    """Return the rows whose value is that of another row, too; None is no value."""
    counts = Counter(values.values())
    return [row for row, value in values.items() if value is not None and counts[value] > 1]


def _pixels_sha256(file: Path | None) -> str | None:
    """Return the SHA-256 of the upright image's size and pixels, None if it cannot be read."""
    if file is None:
        return None
    try:
        with open_image(read_image_file(file)) as image:
            upright = ImageOps.exif_transpose(image)
            if upright.mode in EIGHT_BIT_MODES:
                upright = upright.convert("RGBA")
            content = upright.tobytes()
            head = f"{upright.mode} {upright.size} "
    except Exception:  # Pillow raises various types for damaged files
        return None
    return hashlib.sha256(head.encode() + content).hexdigest()
