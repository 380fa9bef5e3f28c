"""The images of a source whose labels are in a column, by split: Parquet files, tables of Lance, data sets on disk."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from reptk.core import mapped_arrays
from reptk.core.errors import DataError
from reptk.core.name_lists import first_names
from reptk.data.class_names import sorted_class_names
from reptk.data.layouts.image_layout import (
    NO_SPLIT,
    ImageLayout,
    LabeledImages,
    Labels,
    concatenate,
    with_labels_as_set,
)
from reptk.data.records.arrow_columns import ColumnEntries
from reptk.data.records.record_source import Records, RecordSource
from reptk.data.split_names import UNLABELED, is_training_or_evaluation, split_role

MAX_LISTED = 3


class ColumnSource(RecordSource, Protocol):
    """Encoded images with columns of labels and splits."""

    def labels(self) -> ColumnEntries | None:
        """Return the labels of all images; None if there is no column of labels."""
        ...

    def splits(self) -> ColumnEntries | None:
        """Return the entries of the column of splits; None if there is none."""
        ...


def read_column_layout(
    base: Path,
    source: ColumnSource,
    labels: Labels,
    splits: Sequence[tuple[str, int]],
    *,
    details: Sequence[str],
    split_advice: str,
) -> ImageLayout:
    """Read which images there are in a source, without the images themselves.

    Args:
        base: what the user names.
        source: of the images.
        labels: "folders": the column of labels names the class; "none": there are no labels; "auto": "folders" if one split
            has at least two classes, else "none".
        splits: name and number of images of each file, in their order. If none is the name of a split, a column may say it.
        details: lines that say what the source consists of; the first is followed by the columns that are read.
        split_advice: see `ImageLayout`.

    Raises:
        DataError: there are no images, or `labels` is "folders" and there is no column of labels.
    """
    if not len(source):
        raise DataError(f"no images in {base} (data.root): it has no rows")
    column = source.labels()
    if labels == "folders" and column is None:
        raise DataError(f"data.labels is 'folders', but {base} has no labels; add a column such as label")
    lines = list(details)
    class_order: tuple[str, ...] = ()
    if column is None:
        codes = mapped_arrays.full(len(source), -1, np.int64)
    else:
        class_order = column.names
        if not column.is_ordered:
            class_order = sorted_class_names(column.names)
        codes = LabeledImages([], column.codes, column.names).labels_among(class_order)
        lines[0] += f", labels in {column.heading}"
        if column.unread:
            lines[0] += f"; not read: {', '.join(column.unread)}"
    has_splits = any(is_training_or_evaluation(name) for name, _ in splits)
    if has_splits:
        starts = np.array([0, *(count for _, count in splits)], np.int64).cumsum()
        parts = parts_by_range(source, codes, class_order, [name for name, _ in splits], starts)
    else:
        parts, notes = _parts_by_column(source, codes, class_order)
        has_splits = any(map(is_training_or_evaluation, parts))
        lines += notes
    return ImageLayout(
        base,
        "shards",
        with_labels_as_set(parts, labels),
        has_splits,
        class_order=class_order,
        details=tuple(lines),
        split_advice=split_advice,
    )


def parts_by_range(
    source: RecordSource,
    labels: NDArray[np.integer],
    class_order: tuple[str, ...],
    splits: Sequence[str],
    starts: NDArray[np.int64],
) -> dict[str, LabeledImages]:
    """Return the images of each split, of files that hold one split each.

    Args:
        source: of the images.
        labels: (n,) of all images.
        class_order: names of the classes, by label.
        splits: of each file.
        starts: (files + 1,) number of the first image of each file, and of all images.
    """
    pieces: dict[str, list[LabeledImages]] = {}
    for split, start, stop in _ranges(splits, starts):
        split_labels = mapped_arrays.from_chunks([labels[start:stop]], stop - start, np.int64)
        images = LabeledImages(Records(source, mapped_arrays.arange(start, stop)), split_labels, class_order)
        if split_role(split) == UNLABELED:
            images = images.without_labels()
        pieces.setdefault(split, []).append(images)
    return {name: concatenate(images) for name, images in pieces.items()}


def _ranges(splits: Sequence[str], starts: NDArray[np.int64]) -> list[tuple[str, int, int]]:
    """Return (split, first image, image after the last) of consecutive files of one split."""
    ranges: list[tuple[str, int, int]] = []
    for number, split in enumerate(splits):
        start, stop = int(starts[number]), int(starts[number + 1])
        if ranges and ranges[-1][0] == split:
            start = ranges.pop()[1]
        ranges.append((split, start, stop))
    return ranges


def _parts_by_column(
    source: ColumnSource, codes: NDArray[np.int64], class_order: tuple[str, ...]
) -> tuple[dict[str, LabeledImages], list[str]]:
    """Return the images of each split that a column names, and a note if it names something else."""
    images = LabeledImages(Records(source, mapped_arrays.arange(0, len(source))), codes, class_order)
    column = source.splits()
    if column is None or not column.names:
        return {NO_SPLIT: images}, []
    others = [name for name in column.names if split_role(name) is None]
    if others:
        listed = first_names(others, MAX_LISTED)
        return {NO_SPLIT: images}, [f"  note: {column.heading} is not read as splits, since it holds {listed}"]
    parts = {}
    for code, name in [*enumerate(column.names), (-1, NO_SPLIT)]:
        part_images = images.where(mapped_arrays.apply(partial(np.equal, code), column.codes, np.bool_))
        if split_role(name) == UNLABELED:
            part_images = part_images.without_labels()
        if len(part_images):
            parts[name] = part_images
    if not any(map(is_training_or_evaluation, parts)):
        return {NO_SPLIT: concatenate(list(parts.values()))}, []
    return parts, []
