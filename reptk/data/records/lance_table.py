"""Images in a table of Lance: one version of it, read by the numbers of its rows.

Needs pylance (extra `lance`). The version is fixed when the table is opened: rows that are deleted or appended later would
change the numbers of others.
"""

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reptk.core.errors import DataError, EnvironmentProblem
from reptk.data.records.arrow_columns import ColumnEntries, image_bytes, image_column, label_entries, split_entries
from reptk.data.records.numbered_parts import NumberedParts

VERSION = re.compile(r"@(\d{1,18})$")
"""What may follow the path of a table: photos.lance@12."""

VERSIONS_FOLDER = "_versions"


def is_lance(base: Path) -> bool:
    """Return whether a path is a table of Lance, with a version after it or without."""
    return os.path.isdir(_split_version(base)[0] / VERSIONS_FOLDER)  # noqa: PTH112 - of names that are too long, too


def _split_version(base: Path) -> tuple[Path, int | None]:
    match = VERSION.search(base.name)
    if match is None or base.exists():
        return base, None
    return base.with_name(base.name[: match.start()]), int(match[1])


class LanceTable:
    """The images in a version of a table, numbered by its rows; a `ColumnSource`.

    Several threads may read at the same time, but not processes that were forked after it was opened.

    Args:
        base: the table, and perhaps the version: photos.lance@12; by default the latest.

    Raises:
        DataError: it cannot be opened, has no such version, or no column of images.
        EnvironmentProblem: pylance is not installed.
    """

    def __init__(self, base: Path) -> None:
        if find_spec("lance") is None or find_spec("pyarrow") is None:
            raise EnvironmentProblem(
                f"{base} is a table of Lance, and pylance is not installed: pip install 'reptk[lance]'"
            )
        import lance

        self.folder, version = _split_version(base)
        self.base = base
        try:
            self._table = lance.dataset(str(self.folder), version=version)
        except (OSError, ValueError) as cause:
            if version is not None:
                raise DataError(
                    f"cannot open version {version} of {self.folder}{self._versions(lance)}: {cause}"
                ) from cause
            raise DataError(f"cannot open {base} as a table of Lance: {cause}") from cause
        self.version = int(self._table.version)
        self.image_column = image_column(self.folder, self._table.schema)
        fragments = self._table.get_fragments()
        self._fragment_parts = NumberedParts(fragment.count_rows() for fragment in fragments)
        # Ids do not depend on the fragments, whose rows are moved to others when the table is compacted.
        self._table_parts = NumberedParts([len(self)], [self.folder.stem])
        self.paths: list[Path] = []
        self._fragment_names: list[tuple[Path, str]] = []
        self._fragment_files: list[list[str]] = []
        for fragment in fragments:
            files = [self.folder / "data" / file.path for file in fragment.data_files()]
            # The numbers of rows depend on which were deleted.
            deletions = fragment.deletion_file()
            self._fragment_files.append([file.name for file in files])
            self.paths += files
            suffix = ""
            if deletions:
                suffix = f" without {deletions}"
                self.paths.append(self.folder / deletions)
            self._fragment_names.append((files[0], suffix))

    def _versions(self, lance: Any) -> str:
        """Return ` (its versions are 1 to 12)`, if the table can be opened at all."""
        try:
            versions = [entry["version"] for entry in lance.dataset(str(self.folder)).versions()]
        except (OSError, ValueError):
            return ""
        return f" (its versions are {min(versions)} to {max(versions)})"

    def __len__(self) -> int:
        return self._fragment_parts.num_images

    @property
    def num_fragments(self) -> int:
        return len(self._fragment_names)

    def contents(self, numbers: Sequence[int]) -> list[bytes | DataError]:
        """Return the encoded images of rows, in this order; an error in place of one that cannot be read.

        Raises:
            DataError: the table cannot be read, which is no fault of its images.
        """
        # Rows that are requested twice, or in another order, may come once, and in the order of the table.
        rows, positions = np.unique(np.asarray(numbers, np.int64), return_inverse=True)
        with _explained(self.base):
            column = self._table.take(rows.tolist(), columns=[self.image_column.name]).column(0)
        if len(column) != len(rows):
            raise DataError(f"{self.base} has {len(column):,} of {len(rows):,} rows; open it again")
        contents: list[bytes | DataError] = []
        for number, position in zip(numbers, positions.tolist(), strict=True):
            contents.append(image_bytes(column[position].as_py(), self.name(number)))
        return contents

    def name(self, number: int) -> str:
        """Return how messages call a row."""
        return f"{self.folder}@{self.version}, row {number}"

    def location(self, number: int) -> tuple[Path, str]:
        """Return the file that holds a row, and the number of the row in it."""
        fragment, row = self._fragment_parts.find_row(number)
        path, deletions = self._fragment_names[fragment]
        return path, f"row {row}{deletions}"

    def fragment_identity(self, number: int) -> str:
        """Return a hash of all that the rows of a row's fragment, their numbers and their columns depend on.

        A file of a fragment never changes. But rows that are deleted shift the numbers of those behind, and columns that are
        added are files of their own.
        """
        fragment, _ = self._fragment_parts.find_row(number)
        _, deletions = self._fragment_names[fragment]
        bounds = self._fragment_parts.starts[fragment : fragment + 2].tolist()
        facts = [self._fragment_files[fragment], deletions, bounds, str(self._table.schema)]
        return hashlib.sha256(repr(facts).encode()).hexdigest()

    def image_id(self, number: int) -> str:
        """Return the id of a row: the name of the table and the number, as in photos/17."""
        return self._table_parts.image_id(number)

    def find(self, image_id: str) -> int | None:
        """Return the number of the row with this id; None if there is none."""
        return self._table_parts.find(image_id)

    def block_starts(self) -> NDArray[np.int64]:
        """Return the number of the first row of each fragment."""
        return self._fragment_parts.starts[:-1]

    def labels(self) -> ColumnEntries | None:
        """Return the labels of all rows; None if there is no column of labels."""
        return label_entries(self._table.schema, self._chunks, len(self))

    def splits(self) -> ColumnEntries | None:
        """Return the entries of the column of splits; None if there is none."""
        return split_entries(self._table.schema, self._chunks, len(self))

    def _chunks(self, heading: str) -> Iterator[tuple[Path, Any]]:
        with _explained(self.base):
            for batch in self._table.scanner(columns=[heading], scan_in_order=True).to_batches():
                yield self.base, batch.column(0)


@contextmanager
def _explained(base: Path) -> Iterator[None]:
    """Turn an exception of Lance into a DataError that names the table."""
    try:
        yield
    except (OSError, ValueError) as cause:
        raise DataError(f"cannot read {base} as a table of Lance: {cause}") from cause
