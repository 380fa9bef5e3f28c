"""Embeddings: vectors of images with what is needed to use them: ids, paths, labels, and how they were computed."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reptk.core.counts import format_count
from reptk.core.errors import DataError, UsageError
from reptk.embeddings.files.embeddings_file import check_output, embeddings_file, existing_file
from reptk.embeddings.files.row_blocks import Header, RowBlock, StoredColumns, rows_per_block
from reptk.embeddings.files.string_array import StringArray, are_utf8, find_string


@dataclass(frozen=True, eq=False)
class Embeddings:
    """Vectors and the images that they represent, row by row.

    Args:
        vectors: (n, F) float32 or float16; memory-mapped if they come from a safetensors file.
        ids: one name per image.
        paths: one file per image, relative to `metadata["root"]`; None if the images are not files.
        labels: (n,) int64, -1 for an image without one.
        classes: class names, by label; may be empty.
        metadata: encoder, preprocessing, data, whether the vectors are normalized, versions, commit.
        file_stats: (n, 2) int64, the size in bytes and the time of modification in nanoseconds of each file when it was
            embedded; None if the images are not files, or if that is not known.

    Raises:
        ValueError: vectors of another shape or type, or columns of different lengths.
    """

    vectors: Tensor
    ids: Sequence[str]
    paths: Sequence[str] | None = None
    labels: Tensor | None = None
    classes: tuple[str, ...] = ()
    metadata: dict[str, Any] = field(default_factory=dict)
    file_stats: Tensor | None = None

    def __post_init__(self) -> None:
        if self.vectors.ndim != 2 or self.vectors.dtype not in (torch.float32, torch.float16):
            raise ValueError(
                f"vectors must be (n, F) float32 or float16, not {tuple(self.vectors.shape)} of {self.vectors.dtype}"
            )
        if self.labels is None:
            unlabeled = torch.full((len(self.vectors),), -1)
            object.__setattr__(self, "labels", unlabeled)  # the dataclass is frozen
        lengths = {"ids": len(self.ids), "labels": len(self.labels)}
        if self.paths is not None:
            lengths["paths"] = len(self.paths)
        if self.file_stats is not None:
            lengths["file_stats"] = len(self.file_stats)
        wrong = []
        for name, count in lengths.items():
            if count != len(self.vectors):
                wrong.append(f"{count:,} {name}")
        if wrong:
            raise ValueError(f"{format_count(len(self.vectors), 'vector')} but {', '.join(wrong)}")

    def __len__(self) -> int:
        return len(self.vectors)

    @property
    def about(self) -> dict[str, Any]:
        """The earlier name of `metadata`."""
        return self.metadata

    @property
    def width(self) -> int:
        """F, values per vector."""
        return self.vectors.shape[1]

    def file(self, row: int) -> Path | None:
        """Return the path of an image, None if it is not a file."""
        if self.paths is None:
            return None
        # Files of other programs have no root: their paths are relative to the current folder.
        root = self.metadata.get("root") or "."
        return Path(root) / self.paths[row]

    def class_of(self, row: int) -> str:
        """Return the class name of an image, empty if it has no label."""
        return self.class_name(int(self.labels[row]))

    def class_name(self, label: int) -> str:
        """Return the class name of a label, empty for -1."""
        if label < 0:
            return ""
        if label < len(self.classes):
            return self.classes[label]
        return f"class {label}"

    def row_of(self, image_id: str) -> int:
        """Return the row of the first image with this id; if there is none, a number is taken as the row itself.

        Raises:
            UsageError: there is no such image.
        """
        # An id that is a number comes before the row of that number.
        row = find_string(self.ids, image_id)
        if row >= 0:
            return row
        if image_id.isascii() and image_id.isdigit() and int(image_id) < len(self):
            return int(image_id)
        raise UsageError(
            f"no image with the id {image_id!r}; there are {len(self):,}, and the first is {self.ids[0]!r}"
        )

    def check_comparable(self, other: "Embeddings") -> None:
        """Raise DataError if the two sets are known to come from different encoders."""
        if self.width != other.width:
            raise DataError(
                f"one set has embeddings of {self.width} values, the other of {other.width}; embed both with one encoder"
            )
        # Files of other programs do not say; then only the width can be compared.
        weights = self.metadata.get("encoder", {}).get("sha256")
        other_weights = other.metadata.get("encoder", {}).get("sha256")
        if weights and other_weights and weights != other_weights:
            raise DataError(
                "the two sets were embedded by different encoders, so they cannot be compared; embed both with one"
            )

    def blocks(self) -> Iterator[RowBlock]:
        """Yield all rows, block by block."""
        step = rows_per_block(self.width)
        for start in range(0, len(self), step):
            rows = slice(start, start + step)
            paths = None
            if self.paths is not None:
                paths = self.paths[rows]
            file_stats = None
            if self.file_stats is not None:
                file_stats = self.file_stats[rows]
            yield RowBlock(self.vectors[rows], self.labels[rows], self.ids[rows], paths, file_stats)

    def header(self) -> Header:
        """Return what holds for all rows, as a file begins with it."""
        ids_are_paths = self.ids is self.paths
        all_utf8 = are_utf8(self.ids)
        if self.paths is not None and not ids_are_paths:
            all_utf8 = all_utf8 and are_utf8(self.paths)
        return Header(
            max_rows=len(self),
            width=self.width,
            dtype=self.vectors.dtype,
            ids_are_paths=ids_are_paths,
            has_paths=self.paths is not None,
            has_file_stats=self.file_stats is not None,
            has_non_utf8_names=not all_utf8,
            classes=self.classes,
            metadata=dict(self.metadata),
        )

    def save(self, path: str | Path, *, force: bool = False) -> Path:
        """Write a file in the format that the suffix of `path` names: .safetensors or .parquet. Returns the path.

        Args:
            path: the file.
            force: replace a file that exists.

        Raises:
            UsageError: another suffix, or the file exists.
            EnvironmentProblem: no free space, no right to write, or pyarrow is missing.
        """
        path = check_output(path, force=force)
        with embeddings_file(path).writer(self.header()) as writer:
            for block in self.blocks():
                writer.add(block)
        return path

    @classmethod
    def load(cls, path: str | Path, *, verify: bool | None = None) -> "Embeddings":
        """Read a file or a folder of parts: safetensors by mapping it into memory, Parquet as a whole.

        Args:
            path: the file, or the folder.
            verify: whether it is compared with the hash that files of reptk carry; by default, unless it is larger than 1 GiB
                (`MAX_HASHED_BYTES`). `verify=True` checks a file of any size.

        Raises:
            DataError: the file is missing, damaged, of a newer reptk, or holds no embeddings.
            UsageError: another suffix.
        """
        file = existing_file(path)
        return cls.from_columns(file.read(verify=verify), file.path)

    @classmethod
    def from_columns(cls, columns: StoredColumns, path: Path) -> "Embeddings":
        """Build embeddings of columns read from a file, which may be of another program.

        Floating-point vectors of other types become float32; missing ids are the row numbers.

        Raises:
            DataError: the columns do not match, or hold no vectors.
        """
        vectors, ids, labels = columns.vectors, columns.ids, columns.labels
        try:
            # Integers are left for `Embeddings` to refuse.
            if vectors.is_floating_point() and vectors.dtype not in (torch.float16, torch.float32):
                vectors = vectors.float()
            if ids is None:
                ids = StringArray.from_strings(map(str, range(len(vectors))))
            if labels is not None:
                labels = labels.to(torch.int64)
            classes = tuple(map(str, columns.classes))
            metadata = dict(columns.metadata or {})
            embeddings = cls(vectors, ids, columns.paths, labels, classes, metadata, columns.file_stats)
        except (ValueError, TypeError, RuntimeError) as cause:
            raise DataError(f"the columns of {path} do not match: {cause}") from cause
        if not len(embeddings) or not embeddings.width:
            raise DataError(f"{path} holds no embeddings: its vectors are {tuple(vectors.shape)}")
        return embeddings
