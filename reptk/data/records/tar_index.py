"""The index of tar shards: where each image begins, its size and its label, in files that are mapped into memory.

A folder for each list of shards holds three files, of which the manifest is written last:

- `records.bin`: a record of each image, in the order of the shards
- `keys.bin`: the keys of the samples, one after the other
- `manifest.json`: the shards with their sizes and times of modification, and the names of the classes

The headers of all shards are read once (`tar_index_build`). From then on the memory of a process does not depend on the
number of images.
"""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reptk.core.counts import format_count, verb_form
from reptk.core.disk_space import explain_write_errors
from reptk.core.errors import DataError
from reptk.core.file_locks import exclusive_lock
from reptk.core.file_records import find_damage
from reptk.core.foreign_files import read_json
from reptk.core.user_folders import cache_folder
from reptk.data.records.tar_index_build import (
    CACHE_ADVICE,
    FORMAT_VERSION,
    INDEX_FILES,
    RECORD,
    build_index,
    first_lines,
)

MAX_HASHED_BYTES = 1 << 28
"""Of larger files of an index only the length is checked, since reading them would take long at every start."""


@dataclass(frozen=True)
class TarIndex:
    """The images in tar shards.

    Args:
        folder: of the index.
        paths: the shards.
        stats: size in bytes and time of modification in nanoseconds of each shard when it was indexed.
        records: (n,) `RECORD`, mapped.
        keys: the bytes of all keys, mapped.
        shard_starts: (shards + 1,) number of the first image of each shard, and of all images.
        classes: names of the classes, by label.
        notes: lines that say where labels come from, and what is skipped.
        unread_labels: which files of labels cannot be read as such; an empty text if all can.
    """

    folder: Path
    paths: list[Path]
    stats: list[tuple[int, int]]
    records: NDArray
    keys: NDArray[np.uint8]
    shard_starts: NDArray[np.int64]
    classes: tuple[str, ...]
    notes: tuple[str, ...]
    unread_labels: str = ""

    def __len__(self) -> int:
        return len(self.records)

    def key(self, number: int) -> str:
        """Return the key of an image's sample."""
        start = 0
        if number:
            start = int(self.records["key_end"][number - 1])
        return self.keys[start : int(self.records["key_end"][number])].tobytes().decode("utf-8", "surrogateescape")


def open_index(paths: Sequence[Path]) -> TarIndex:
    """Return the index of shards, which is built if there is none.

    Raises:
        DataError: a shard cannot be indexed, or has changed since, with all that is wrong with all shards.
        EnvironmentProblem: the index cannot be written.
    """
    paths = list(paths)
    folder = _index_folder(paths)
    manifest = _read_manifest(folder)
    if manifest is None:
        with explain_write_errors(folder, CACHE_ADVICE):
            folder.mkdir(parents=True, exist_ok=True)
            with exclusive_lock(folder):
                # Another process may have built it while this one waited.
                if _read_manifest(folder) is None:
                    build_index(paths, folder)
        manifest = _read_manifest(folder)
        if manifest is None:
            raise DataError(f"the index in {folder} was deleted while it was built; start again")
    stats = [(int(size), int(time)) for size, time in manifest["stats"]]
    _check_shards(paths, stats, folder)
    return TarIndex(
        folder,
        paths,
        stats,
        records=np.memmap(folder / "records.bin", RECORD, "r"),
        keys=np.memmap(folder / "keys.bin", np.uint8, "r"),
        shard_starts=np.array([0, *manifest["images"]], np.int64).cumsum(),
        classes=tuple(manifest["classes"]),
        notes=tuple(manifest["notes"]),
        # An earlier version refused such files, so its index has no such entry.
        unread_labels=manifest.get("unread_labels", ""),
    )


def _index_folder(paths: Sequence[Path]) -> Path:
    names = [os.path.abspath(path) for path in paths]  # noqa: PTH100 - links are not resolved
    digest = hashlib.blake2b(os.fsencode("\0".join(names)), digest_size=8).hexdigest()
    return cache_folder() / f"index-{paths[0].absolute().parent.name}-{digest}"


def _read_manifest(folder: Path) -> dict[str, Any] | None:
    """Return the manifest of a complete index; None if there is none, or it is damaged."""
    try:
        manifest = read_json(folder / "manifest.json")
        if manifest["version"] != FORMAT_VERSION:
            return None
        for name in INDEX_FILES:
            if find_damage(folder / name, manifest["files"][name], max_hashed_bytes=MAX_HASHED_BYTES) is not None:
                return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return manifest


def _check_shards(paths: Sequence[Path], stats: Sequence[tuple[int, int]], folder: Path) -> None:
    """Raise DataError if shards are not those that were indexed."""
    changed = []
    for path, expected in zip(paths, stats, strict=True):
        change = describe_change(path, expected)
        if change is not None:
            changed.append(f"{path} {change}")
    if changed:
        were = verb_form(len(changed), "it was", "they were")
        raise DataError(
            f"{format_count(len(changed), 'shard')} changed since {were} indexed:\n  "
            + "\n  ".join(first_lines(changed))
            + f"\nIf this is as it should be, delete {folder}; the index is then built again"
        )


def describe_change(path: Path, expected: tuple[int, int]) -> str | None:
    """Return how a shard differs from what was indexed; None if size and time of modification are the same."""
    try:
        stat = path.stat()
    except OSError as cause:
        return f"cannot be read ({cause.strerror})"
    return describe_difference(stat, expected)


def describe_difference(stat: os.stat_result, expected: tuple[int, int]) -> str | None:
    """Return how the state of a shard differs from what was indexed; None if size and time of modification are the same."""
    if stat.st_size != expected[0]:
        return f"has {stat.st_size:,} bytes, and had {expected[0]:,}"
    if stat.st_mtime_ns != expected[1]:
        return "was written again, with the same number of bytes"
    return None
