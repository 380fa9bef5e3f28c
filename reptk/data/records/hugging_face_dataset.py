"""Images in a data set of Hugging Face's `datasets` that was saved to disk: `Dataset.save_to_disk`, or all splits together.

Needs datasets (extra `datasets`). Its Arrow files are mapped into memory.
"""

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

SPLITS_FILE = "dataset_dict.json"
DATA_SET_FILES = ("dataset_info.json", "state.json")

CHUNK_ROWS = 1 << 16
"""Rows of a column that are read at once."""


def is_hugging_face_dataset(base: Path) -> bool:
    """Return whether a folder was written by `save_to_disk`."""
    return (base / SPLITS_FILE).is_file() or all((base / name).is_file() for name in DATA_SET_FILES)


class HuggingFaceDataset:
    """The images in a data set on disk, numbered through all of its splits; a `ColumnSource`.

    Args:
        base: its folder.

    Raises:
        DataError: it cannot be opened, or has no column of images.
        EnvironmentProblem: datasets is not installed.
    """

    def __init__(self, base: Path) -> None:
        if find_spec("datasets") is None or find_spec("pyarrow") is None:
            raise EnvironmentProblem(
                f"{base} was saved by Hugging Face's datasets, which is not installed: pip install 'reptk[datasets]'"
            )
        import datasets

        self.base = base
        try:
            loaded = datasets.load_from_disk(str(base))
        except Exception as cause:
            raise DataError(f"cannot open {base} as a data set of Hugging Face: {cause}. Save it again") from cause
        if isinstance(loaded, datasets.DatasetDict):
            parts = dict(loaded)
        else:
            parts = {"": loaded}
        if not parts:
            raise DataError(f"no images in {base} (data.root): it has no splits")
        self.split_names = list(parts)
        # In the format of Arrow nothing is decoded.
        self._parts = [part.with_format("arrow") for part in parts.values()]
        self._schema = self._parts[0].features.arrow_schema
        self.image_column = image_column(base, self._schema)
        for name, part in zip(self.split_names, self._parts, strict=True):
            if image_column(base, part.features.arrow_schema) != self.image_column:
                raise DataError(
                    f"{base}: the split {name} has no images in the column {self.image_column}, as others have"
                )
        # Once, since this takes longer than reading a few images.
        self._image_parts = [part.select_columns([self.image_column.name]) for part in self._parts]
        # A data set without splits has one part without a name.
        ids = [name or base.name for name in self.split_names]
        self._numbered_parts = NumberedParts(map(len, self._parts), ids)
        self.paths = [Path(file["filename"]) for part in self._parts for file in part.cache_files]

    def __len__(self) -> int:
        return self._numbered_parts.num_images

    def part_sizes(self) -> list[tuple[str, int]]:
        """Return the name and the number of images of each split."""
        return list(zip(self.split_names, map(len, self._parts), strict=True))

    def contents(self, numbers: Sequence[int]) -> list[bytes | DataError]:
        """Return the encoded images with these numbers, in this order; an error in place of one that cannot be read.

        Raises:
            DataError: the files of the data set cannot be read.
        """
        rows_by_part: dict[int, list[int]] = {}
        positions_by_part: dict[int, list[int]] = {}
        for position, number in enumerate(numbers):
            part, row = self._numbered_parts.find_row(number)
            rows_by_part.setdefault(part, []).append(row)
            positions_by_part.setdefault(part, []).append(position)
        contents: list[bytes | DataError] = [b""] * len(numbers)
        for part in sorted(rows_by_part):
            with _explained(self.base):
                values = self._image_parts[part][rows_by_part[part]].column(0).to_pylist()
            for position, value in zip(positions_by_part[part], values, strict=True):
                contents[position] = image_bytes(value, self.name(numbers[position]))
        return contents

    def name(self, number: int) -> str:
        """Return how messages call an image."""
        return f"{self.base}, {self.image_id(number)}"

    def location(self, number: int) -> tuple[Path, str]:
        """Return a file that is written again with the images, and the row of the image."""
        part, row = self._numbered_parts.find_row(number)
        # A data set without splits has no folders, and one part without a name.
        return self.base / self.split_names[part] / "state.json", f"row {row}"

    def image_id(self, number: int) -> str:
        """Return the id of an image: its split, or the name of the data set, and the number of its row, as in train/17."""
        return self._numbered_parts.image_id(number)

    def find(self, image_id: str) -> int | None:
        """Return the number of the image with this id; None if there is none."""
        return self._numbered_parts.find(image_id)

    def block_starts(self) -> NDArray[np.int64]:
        """Return the number of the first image of each split."""
        return self._numbered_parts.starts[:-1]

    def labels(self) -> ColumnEntries | None:
        """Return the labels of all images; None if there is no column of labels."""
        return label_entries(self._schema, self._chunks, len(self))

    def splits(self) -> ColumnEntries | None:
        """Return the entries of the column of splits; None if there is none."""
        return split_entries(self._schema, self._chunks, len(self))

    def _chunks(self, heading: str) -> Iterator[tuple[Path, Any]]:
        for name, part in zip(self.split_names, self._parts, strict=True):
            if heading not in part.column_names:
                raise DataError(f"{self.base}: the split {name} has no column {heading}, as {self.split_names[0]} has")
            with _explained(self.base):
                column = part.select_columns([heading])
            for start in range(0, len(part), CHUNK_ROWS):
                with _explained(self.base):
                    chunks = column[start : start + CHUNK_ROWS].column(0).chunks
                for chunk in chunks:
                    yield self.base, chunk


@contextmanager
def _explained(base: Path) -> Iterator[None]:
    """Turn an exception of datasets or of Arrow into a DataError that names the data set."""
    try:
        yield
    except Exception as cause:
        raise DataError(f"cannot read {base} as a data set of Hugging Face: {cause}. Save it again") from cause
