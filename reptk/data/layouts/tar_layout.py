"""The images in tar shards, by split, as those of a folder: train-000000.tar, val-000000.tar, ..."""

from collections.abc import Mapping
from pathlib import Path

from reptk.core.counts import format_bytes, format_count
from reptk.core.errors import DataError
from reptk.data.layouts.column_layout import parts_by_range
from reptk.data.layouts.image_layout import NO_SPLIT, ImageLayout, Labels, concatenate, with_labels_as_set
from reptk.data.records.shard_names import missing_shards, split_name
from reptk.data.records.shard_patterns import common_folder, find_files
from reptk.data.records.tar_index import open_index
from reptk.data.records.tar_shards import TarShards
from reptk.data.split_names import is_training_or_evaluation

TAR_ENDINGS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".tar.lz4")
"""Compressed ones are recognized, to say what to do with them."""

COMPRESSION_ENDINGS = (".gz", ".tgz", ".bz2", ".xz", ".zst", ".lz4")


def is_tar(path: Path) -> bool:
    """Return whether a file is named as a tar shard."""
    return path.name.lower().endswith(TAR_ENDINGS)


def count_tars(other_files: Mapping[str, int]) -> int:
    """Return how many of the files of a folder, which are counted by their last ending, may be tar shards."""
    return sum(other_files.get(ending, 0) for ending in (".tar", *COMPRESSION_ENDINGS))


def read_tar_layout(base: Path, labels: Labels) -> ImageLayout:
    """Read which images there are in tar shards; the first time, their headers are indexed.

    Args:
        base: a folder of shards, a single one, or a pattern of their names.
        labels: "folders": files of the samples, or folders in the shards, name the class; "none": there are no labels; "auto":
            "folders" if one split has at least two classes, else "none".

    Raises:
        DataError: shards are missing, cannot be indexed or have changed since, or `labels` is "folders", and there are none
            or files of labels that cannot be read as such.
        EnvironmentProblem: the index cannot be written.
    """
    paths = find_files(base, is_tar)
    if not paths:
        raise DataError(f"no images in {base} (data.root), and no tar shards")
    root = common_folder(base)
    split_of = [(path, split_name(path, root)) for path in paths]
    index = open_index(paths)
    if labels == "folders" and not index.classes:
        raise DataError(
            f"data.labels is 'folders', but {base} has no labels; add files such as 000017.cls or 000017.json to the samples"
        )
    if labels == "folders" and index.unread_labels:
        raise DataError(
            f"data.labels is 'folders', but {index.unread_labels}. Write these files again; with data.labels=auto "
            "their images have no label by them"
        )
    shards = TarShards(index, root)
    has_splits = any(is_training_or_evaluation(name) for _, name in split_of)
    names = [name for _, name in split_of]
    parts = parts_by_range(shards, index.records["label"], index.classes, names, index.shard_starts)
    if not has_splits:
        parts = {NO_SPLIT: concatenate(list(parts.values()))}
    num_bytes = sum(size for size, _ in index.stats)
    details = [f"  {format_count(len(paths), 'tar shard')}, {format_bytes(num_bytes)}, index in {index.folder}"]
    details += index.notes
    details += [f"  note: {note}" for note in missing_shards(split_of)]
    return ImageLayout(
        base,
        "shards",
        with_labels_as_set(parts, labels),
        has_splits,
        class_order=index.classes,
        details=tuple(details),
        skipped=tuple(note.removeprefix("  skipped: ") for note in index.notes if note.startswith("  skipped: ")),
        split_advice=" in shards such as train-000000.tar; to train on one of these, name its shards (data.root)",
    )
