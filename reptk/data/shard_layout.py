"""The images in Parquet shards, by split, as those of a folder: data/train-00000-of-00014.parquet, data/test-..."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from reptk.core.counts import format_bytes, format_count
from reptk.core.errors import DataError
from reptk.core.name_lists import first_names
from reptk.data.image_layout import LOOSE, ImageLayout, LabeledImages, Labels, concatenate, with_labels_as_set
from reptk.data.image_table import sorted_class_names
from reptk.data.large_arrays import chunks, consecutive, stored
from reptk.data.parquet_shards import MAX_CACHED_BYTES, ParquetShards
from reptk.data.record_source import Rows
from reptk.data.shard_names import missing_shards, split_name
from reptk.data.shard_patterns import expand_pattern, is_pattern
from reptk.data.split_names import UNLABELED, split_role

PARQUET = ".parquet"

MAX_LISTED = 3


def find_shards(base: Path) -> list[Path]:
    """Return the Parquet files below a folder, sorted by path; a file is its own only shard, a pattern names some.

    Raises:
        DataError: files that a pattern names are missing.
    """
    if base.is_file():
        return [base]
    if is_pattern(base):
        return expand_pattern(base)
    paths = (path for path in base.rglob(f"*{PARQUET}") if path.is_file())
    return sorted(path for path in paths if not any(part.startswith(".") for part in path.relative_to(base).parts))


def read_shard_layout(base: Path, labels: Labels) -> ImageLayout:
    """Read which images there are in Parquet shards, without the images themselves.

    Args:
        base: a folder of shards, a single one, or a pattern of their names.
        labels: "folders": the column of labels names the class; "none": there are no labels; "auto": "folders" if one split
            has at least two classes, else "none".

    Raises:
        DataError: a file cannot be read or has no images, folders hold shards of one split each of their own, or `labels` is
            "folders" and there is no column of labels.
        EnvironmentProblem: pyarrow is not installed.
    """
    paths = find_shards(base)
    split_of = {path: split_name(path, base) for path in paths}
    _check_folders(base, split_of)
    shards = ParquetShards(paths, base)
    if not len(shards):
        raise DataError(f"no images in {base} (data.root): its Parquet files have no rows")
    column = shards.labels()
    if labels == "folders" and column is None:
        raise DataError(f"data.labels is 'folders', but {base} has no labels; add a column such as label")
    files_text = format_count(len(paths), "Parquet file")
    groups_text = format_count(shards.num_groups, "row group")
    details = [f"  {files_text}, {groups_text}, images in {shards.image_column}"]
    details += [f"  note: {note}" for note in missing_shards(split_of.items())]
    codes = stored((np.full(part.stop - part.start, -1) for part in chunks(len(shards))), len(shards), np.int64)
    class_order: tuple[str, ...] = ()
    if column is not None:
        codes = column.codes
        class_order = column.names
        if not column.is_ordered:
            class_order = sorted_class_names(column.names)
        codes = LabeledImages([], codes, column.names).labels_among(class_order)
        details[0] += f", labels in {column.heading}"
        if column.unread:
            details[0] += f"; not read: {', '.join(column.unread)}"
    has_splits = any(split_role(name) not in (None, UNLABELED) for name in split_of.values())
    parts: dict[str, LabeledImages] = {}
    if has_splits:
        parts = _parts_by_file(shards, split_of, codes, class_order)
    else:
        parts, note = _parts_by_column(shards, codes, class_order)
        has_splits = any(split_role(name) not in (None, UNLABELED) for name in parts)
        details += note
    if shards.num_bytes > MAX_CACHED_BYTES:
        details.append(
            f"  note: {format_bytes(shards.num_bytes)} are read by row group; in the random order of training, a group is read "
            "for each few of its images, unless data.cache=true decodes all of them once, or data.shuffle=window:16 mixes 16 "
            "groups at a time"
        )
    return ImageLayout(
        base,
        "shards",
        with_labels_as_set(parts, labels),
        has_splits,
        places={name: f"split {name} of {base}" for name in parts},
        class_order=class_order,
        details=tuple(details),
        split_advice=" in files such as train-00000-of-00001.parquet; to train on one of these, name its file (data.root)",
    )


def _parts_by_file(
    shards: ParquetShards, split_of: dict[Path, str], codes: NDArray[np.int64], class_order: tuple[str, ...]
) -> dict[str, LabeledImages]:
    """Return the images of each split that the names of the files say."""
    pieces: dict[str, list[LabeledImages]] = {}
    for file, path in enumerate(shards.paths):
        start, stop = int(shards.file_starts[file]), int(shards.file_starts[file + 1])
        images = LabeledImages(Rows(shards, consecutive(start, stop)), codes[start:stop], class_order)
        if split_role(split_of[path]) == UNLABELED:
            images = images.without_labels()
        pieces.setdefault(split_of[path], []).append(images)
    return {name: concatenate(images) for name, images in pieces.items()}


def _parts_by_column(
    shards: ParquetShards, codes: NDArray[np.int64], class_order: tuple[str, ...]
) -> tuple[dict[str, LabeledImages], list[str]]:
    """Return the images of each split that a column names, and a note if it names something else."""
    images = LabeledImages(Rows(shards, consecutive(0, len(shards))), codes, class_order)
    column = shards.splits()
    if column is None or not column.names:
        return {LOOSE: images}, []
    others = [name for name in column.names if split_role(name) is None]
    if others:
        listed = first_names(others, MAX_LISTED)
        return {LOOSE: images}, [f"  note: {column.heading} is not read as splits, since it holds {listed}"]
    parts = {}
    for code, name in [*enumerate(column.names), (-1, LOOSE)]:
        is_part = stored((column.codes[part] == code for part in chunks(len(shards))), len(shards), np.bool_)
        part_images = images.where(is_part)
        if split_role(name) == UNLABELED:
            part_images = part_images.without_labels()
        if len(part_images):
            parts[name] = part_images
    if all(split_role(name) in (None, UNLABELED) for name in parts):
        return {LOOSE: concatenate(list(parts.values()))}, []
    return parts, []


def _check_folders(base: Path, split_of: dict[Path, str]) -> None:
    """Raise DataError if shards of one split lie in several folders, which are most often several data sets."""
    folders_of: dict[str, set[Path]] = {}
    for path, split in split_of.items():
        folder = path.parent
        if split and folder.name == split:
            folder = folder.parent
        folders_of.setdefault(split, set()).add(folder)
    for split, folders in folders_of.items():
        if len(folders) > 1:
            listed = ", ".join(sorted(str(folder) for folder in folders)[:4])
            raise DataError(
                f"{base} has Parquet files of {split or 'one data set'} in several folders ({listed}); name one of them "
                "(data.root)"
            )
