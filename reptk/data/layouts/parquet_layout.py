"""The images in Parquet shards, by split, as those of a folder: data/train-00000-of-00014.parquet, data/test-..."""

from pathlib import Path

from reptk.core.counts import format_bytes, format_count
from reptk.core.errors import DataError
from reptk.data.layouts.column_layout import read_column_layout
from reptk.data.layouts.image_layout import ImageLayout, Labels
from reptk.data.records.parquet_shards import MAX_CACHED_BYTES, ParquetShards
from reptk.data.records.shard_names import missing_shards, split_name
from reptk.data.records.shard_patterns import find_files

PARQUET = ".parquet"


def read_parquet_layout(base: Path, labels: Labels) -> ImageLayout:
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
    paths = find_files(base, _is_parquet)
    split_of = {path: split_name(path, base) for path in paths}
    _check_folders(base, split_of)
    shards = ParquetShards(paths, base)
    files_text = format_count(len(paths), "Parquet file")
    groups_text = format_count(shards.num_groups, "row group")
    details = [f"  {files_text}, {groups_text}, images in {shards.image_column}"]
    details += [f"  note: {note}" for note in missing_shards(split_of.items())]
    if shards.num_bytes > MAX_CACHED_BYTES:
        details.append(
            f"  note: {format_bytes(shards.num_bytes)} are read by row group; in the random order of training, a group is read "
            "for each few of its images, unless data.cache=true decodes all of them once, or data.shuffle=window:16 mixes 16 "
            "groups at a time"
        )
    return read_column_layout(
        base,
        shards,
        labels,
        list(zip(split_of.values(), shards.file_sizes, strict=True)),
        details=details,
        split_advice=" in files such as train-00000-of-00001.parquet; to train on one of these, name its file (data.root)",
    )


def _is_parquet(path: Path) -> bool:
    return path.suffix == PARQUET


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
