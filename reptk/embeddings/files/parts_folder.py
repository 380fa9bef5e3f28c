"""A folder of embeddings in parts, read as if it were one file: the vectors of all parts are mapped, and none is copied."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reptk.core.errors import DataError, UsageError
from reptk.core.file_records import find_damage, read_replaceable
from reptk.core.name_lists import first_names_and_count
from reptk.embeddings.files import parts_manifest
from reptk.embeddings.files.content_hash import MAX_HASHED_BYTES
from reptk.embeddings.files.part_vectors import PartVectors
from reptk.embeddings.files.parts_manifest import MANIFEST_NAME
from reptk.embeddings.files.row_blocks import Header, StoredColumns, dtype_name, relabeled
from reptk.embeddings.files.safetensors_file import SafetensorsFile
from reptk.embeddings.files.string_array import JoinedStrings, StringArray

MAX_LISTED = 3

Strings = StringArray | JoinedStrings


class PartsFolder:
    """A folder that `reptk embed` has written, one file a part; see `EmbeddingsFile`.

    Each part is a safetensors file of embeddings that can be read without the others.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def check_installed(self) -> None:
        """Do nothing: safetensors is always installed."""

    def writer(self, header: Header) -> AbstractContextManager[Any]:
        """Raise UsageError: parts are written by `reptk.embed` alone."""
        raise UsageError(f"{self.path} is a folder; name a file, .safetensors or .parquet")

    def read(self, *, verify: bool | None = None) -> StoredColumns:
        """Return all columns; the vectors are memory-mapped, and the labels count in the classes of the manifest.

        Args:
            verify: whether every part is compared with its hash; by default, unless all together are larger than
                `MAX_HASHED_BYTES`.

        Raises:
            DataError: a part is missing or damaged, or there is no manifest.
        """
        return read_replaceable(self.path / MANIFEST_NAME, lambda: self._read(verify))

    def _read(self, verify: bool | None) -> StoredColumns:
        manifest = parts_manifest.read_manifest(self.path)
        self._check_files(manifest, verify)
        classes = tuple(map(str, manifest["classes"]))
        parts = []
        for record in manifest["parts"]:
            part = SafetensorsFile(self.path / record["name"]).read(verify=False)  # checked above
            self._check_part(manifest, record, part)
            if record["rows"]:
                parts.append(part)
        if not parts:
            raise DataError(f"{self.path} holds no embeddings: its parts have no rows")
        paths = _joined([part.paths for part in parts])
        ids = paths
        if any(part.ids is not part.paths for part in parts):
            ids = _joined([part.ids for part in parts])
        file_stats = None
        if all(part.file_stats is not None for part in parts):
            file_stats = torch.cat([part.file_stats for part in parts])
        labels = torch.cat([relabeled(part.labels, part.classes, classes) for part in parts])
        metadata = manifest["about"]
        return StoredColumns(_vectors(parts), ids, paths, labels, file_stats, classes, metadata)

    def _check_files(self, manifest: dict[str, Any], verify: bool | None) -> None:
        max_hashed_bytes: int | None = 0
        total = sum(record["bytes"] for record in manifest["parts"])
        if verify or (verify is None and total <= MAX_HASHED_BYTES):
            max_hashed_bytes = None
        damages = []
        for record in manifest["parts"]:
            damage = find_damage(self.path / record["name"], record, max_hashed_bytes=max_hashed_bytes)
            if damage is not None:
                damages.append(f"{record['name']} {damage}")
        if damages:
            raise DataError(parts_manifest.broken(self.path, first_names_and_count(damages, MAX_LISTED)))

    def _check_part(self, manifest: dict[str, Any], record: dict[str, Any], part: StoredColumns) -> None:
        """Raise DataError unless a part, which is what was hashed, fits the manifest."""
        shape = (record["rows"], manifest["width"])
        is_typed = dtype_name(part.vectors.dtype) == manifest["values"]
        has_columns = part.labels is not None and part.ids is not None
        if tuple(part.vectors.shape) != shape or not is_typed or not has_columns:
            reason = f"{record['name']} holds other rows than {MANIFEST_NAME} says"
            raise DataError(parts_manifest.broken(self.path, reason))


def _vectors(parts: Sequence[StoredColumns]) -> Tensor:
    if len(parts) == 1:
        return parts[0].vectors
    return PartVectors([part.vectors for part in parts])


def _joined(columns: Sequence[Sequence[str] | None]) -> Strings | None:
    """Return a column of all parts; None if a part lacks it."""
    arrays = []
    for column in columns:
        if column is None:
            return None
        arrays.append(StringArray.from_strings(column))
    if len(arrays) == 1:
        return arrays[0]
    return JoinedStrings(arrays)
