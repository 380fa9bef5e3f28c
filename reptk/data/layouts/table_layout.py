"""The images that a table lists, by split, as those of a folder."""

import os
from collections.abc import Sequence
from pathlib import Path

from reptk.core.counts import format_count
from reptk.core.errors import DataError
from reptk.data.class_names import sorted_class_names
from reptk.data.layouts.image_layout import (
    NO_SPLIT,
    ImageLayout,
    LabeledFile,
    Labels,
    columns_of,
    with_labels_as_set,
    without_labels,
)
from reptk.data.layouts.image_table import ImageTable, read_image_table
from reptk.data.split_names import UNLABELED, is_training_or_evaluation, split_role


def read_table_layout(table: Path, labels: Labels) -> ImageLayout:
    """Read a table of images for training.

    The images are in the order in which a folder with the same files has them, so the same ones are held out.

    Args:
        table: the file; see `read_image_table`. Paths are relative to its folder.
        labels: "folders": the column of labels names the class; "none": there are no labels; "auto": "folders" if one split
            has at least two classes, else "none".

    Raises:
        DataError: the table cannot be read or understood, an entry of the column of splits is no name of a split, a file is
            listed with several labels or splits, or `labels` is "folders" and there are none.
        EnvironmentProblem: a Parquet file, and pyarrow is not installed.
    """
    listed = read_image_table(table)
    numbers = _distinct_rows(listed)
    details = list(listed.details())
    if len(numbers) < len(listed.rows):
        details.append(f"  repeated: {format_count(len(listed.rows) - len(numbers), 'row')}; each image is read once")
    _check_splits(listed)
    has_splits = any(is_training_or_evaluation(row.split) for row in listed.rows)
    root = table.parent
    lists: dict[str, list[LabeledFile]] = {}
    for number in sorted(numbers, key=lambda number: _folder_order(listed.rows[number].path)):
        row = listed.rows[number]
        file = LabeledFile(root / row.path, row.label or None)
        if row.split and split_role(row.split) == UNLABELED:
            [file] = without_labels([file])
        split = NO_SPLIT
        if has_splits:
            split = row.split
        lists.setdefault(split, []).append(file)
    if labels == "folders" and not any(row.label for row in listed.rows):
        raise DataError(f"data.labels is 'folders', but {table} has no labels; add a column such as label")
    class_order = sorted_class_names(row.label for row in listed.rows)
    parts = with_labels_as_set(columns_of(lists, class_order), labels)
    return ImageLayout(
        table,
        "table",
        parts,
        has_splits,
        class_order=class_order,
        details=tuple(details),
        split_advice="; write train into the column of splits for these",
    )


def _distinct_rows(listed: ImageTable) -> list[int]:
    """Return the numbers of the rows without those that repeat an image; refuse one with several labels or splits."""
    first_of: dict[str, int] = {}
    numbers = []
    for number, row in enumerate(listed.rows):
        first = first_of.setdefault(os.path.normpath(row.path), number)
        if first == number:
            numbers.append(number)
            continue
        earlier = listed.rows[first]
        for column, value, earlier_value in (
            ("label", row.label, earlier.label),
            ("split", row.split, earlier.split),
        ):
            if value != earlier_value:
                raise DataError(
                    f"{listed.file}, line {listed.line_numbers[number]}: {row.path} has the {column} {value!r} here and "
                    f"{earlier_value!r} on line {listed.line_numbers[first]}; an image has one {column}, so take a line out"
                )
    return numbers


def _check_splits(listed: ImageTable) -> None:
    """Raise DataError if an entry of the column of splits is no name of a split."""
    for number, row in enumerate(listed.rows):
        if row.split and split_role(row.split) is None:
            raise DataError(
                f"{listed.file}, line {listed.line_numbers[number]}: {row.split!r} is no split; write train, val, test, query, "
                "gallery or unlabeled, or nothing for an image that is not used. If the column is something else, rename it"
            )


def _folder_order(path: str) -> Sequence[tuple[bool, str]]:
    """Return a sort key: the files of a folder by name, then those of its subfolders, as `scan_folder` lists them."""
    *folders, name = os.path.normpath(path).split(os.sep)  # noqa: PTH206
    return [*((True, folder) for folder in folders), (False, name)]
