"""The images in Parquet shards, by split, as those of a folder: data/train-00000-of-00014.parquet, data/test-..."""

import re
from pathlib import Path

from reptk.core.counts import format_bytes, format_count, verb_form
from reptk.core.errors import DataError
from reptk.data.image_layout import LOOSE, ImageLayout, LabeledFile, Labels, with_labels_as_set, without_labels
from reptk.data.image_table import sorted_class_names
from reptk.data.parquet_shards import MAX_CACHED_BYTES, ParquetShards, ShardRow
from reptk.data.split_names import UNLABELED, split_role

PARQUET = ".parquet"

SHARD_NUMBER = re.compile(r"(?:^|[-_.])(?P<number>\d+)(?:-of-(?P<count>\d+))?(?:-[0-9a-f]{6,})?$")
"""What follows the split in the name of a shard: -00000-of-00014, with or without a hash, or _0001."""


def find_shards(base: Path) -> list[Path]:
    """Return the Parquet files below a folder, sorted by path; a file is its own only shard."""
    if base.is_file():
        return [base]
    paths = (path for path in base.rglob(f"*{PARQUET}") if path.is_file())
    return sorted(path for path in paths if not any(part.startswith(".") for part in path.relative_to(base).parts))


def row_id(row: ShardRow, base: Path) -> str:
    """Return a name of a row that is the same wherever the shards are: train-00000-of-00014/17."""
    path, number = row.shards.place(row.number)
    return f"{_shard_id(path, base)}/{number}"


def find_row(base: Path, text: str) -> ShardRow | None:
    """Return the row of this `row_id`; None if there is none.

    Raises:
        DataError: the shards cannot be read.
        EnvironmentProblem: pyarrow is not installed.
    """
    shard_id, _, number = text.rpartition("/")
    for path in find_shards(base):
        if _shard_id(path, base) == shard_id and number.isdecimal():
            shards = ParquetShards([path])
            if int(number) < len(shards):
                return ShardRow(int(number), shards)
    return None


def _shard_id(path: Path, base: Path) -> str:
    if path == base:
        return path.stem
    return str(path.relative_to(base).with_suffix(""))


def read_shard_layout(base: Path, labels: Labels) -> ImageLayout:
    """Read which images there are in Parquet shards, without the images themselves.

    Args:
        base: a folder of shards, or a single one.
        labels: "folders": the column of labels names the class; "none": there are no labels; "auto": "folders" if one split
            has at least two classes, else "none".

    Raises:
        DataError: a file cannot be read or has no images, folders hold shards of one split each of their own, or `labels` is
            "folders" and there is no column of labels.
        EnvironmentProblem: pyarrow is not installed.
    """
    paths = find_shards(base)
    split_of = {path: _split_name(path, base) for path in paths}
    _check_folders(base, split_of)
    shards = ParquetShards(paths)
    if not len(shards):
        raise DataError(f"no images in {base} (data.root): its Parquet files have no rows")
    column = shards.labels()
    if labels == "folders" and column is None:
        raise DataError(f"data.labels is 'folders', but {base} has no labels; add a column such as label")
    has_splits = any(split_role(name) not in (None, UNLABELED) for name in split_of.values())
    parts: dict[str, list[LabeledFile]] = {}
    for file, path in enumerate(paths):
        files = []
        for number in range(int(shards.file_starts[file]), int(shards.file_starts[file + 1])):
            class_name = None
            if column is not None:
                class_name = column.names[number] or None
            files.append(LabeledFile(ShardRow(number, shards), class_name))
        if split_role(split_of[path]) == UNLABELED:
            files = without_labels(files)
        name = split_of[path] if has_splits else LOOSE
        parts.setdefault(name, []).extend(files)
    class_order: tuple[str, ...] = ()
    files_text = format_count(len(paths), "Parquet file")
    groups_text = format_count(shards.num_groups, "row group")
    details = [f"  {files_text}, {groups_text}, images in {shards.image_column}"]
    details += [f"  note: {note}" for note in _missing_shards(split_of)]
    if column is not None:
        class_order = column.class_order or sorted_class_names(column.names)
        details[0] += f", labels in {column.heading}"
        if column.unread:
            details[0] += f"; not read: {', '.join(column.unread)}"
    if shards.num_bytes > MAX_CACHED_BYTES:
        details.append(
            f"  note: {format_bytes(shards.num_bytes)} are read by row group; in the random order of training, a group is read "
            "for each few of its images, unless data.cache=true decodes all of them once"
        )
    return ImageLayout(
        base,
        "shards",
        with_labels_as_set(parts, labels),
        has_splits,
        places={name: f"split {name} of {base}" for name in parts},
        class_order=class_order,
        details=tuple(details),
    )


def _split_name(path: Path, base: Path) -> str:
    """Return the split that a shard belongs to, as it is written in its name or in that of its folder; empty for none."""
    stem = SHARD_NUMBER.sub("", path.stem)
    if split_role(stem) is not None:
        return stem
    if path != base and path.parent != base and split_role(path.parent.name) is not None:
        return path.parent.name
    return LOOSE


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


def _missing_shards(split_of: dict[Path, str]) -> list[str]:
    """Return a note for each split of whose shards, which are numbered `-00000-of-00014`, some are missing."""
    present: dict[tuple[str, int], set[int]] = {}
    for path, split in split_of.items():
        match = SHARD_NUMBER.search(path.stem)
        if match and match["count"]:
            present.setdefault((split, int(match["count"])), set()).add(int(match["number"]))
    notes = []
    for (split, count), numbers in present.items():
        if len(numbers) < count:
            are = verb_form(len(numbers), "is", "are")
            notes.append(f"{len(numbers):,} of {count:,} files of {split or 'the data set'} {are} here")
    return notes
