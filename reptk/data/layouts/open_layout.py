"""Open what `data.root` names: a folder, a table, Parquet files, tar shards, a table of Lance, or a data set on disk."""

import difflib
from pathlib import Path

from reptk.core.counts import format_count
from reptk.core.errors import DataError
from reptk.core.files import expand_home, real_path
from reptk.core.name_lists import first_names
from reptk.data.decoding.decode import EXTENSIONS
from reptk.data.layouts.column_layout import read_column_layout
from reptk.data.layouts.folder_layout import list_images, read_folder_layout
from reptk.data.layouts.image_layout import ImageLayout, Labels
from reptk.data.layouts.parquet_layout import PARQUET, read_parquet_layout
from reptk.data.layouts.table_files import TABLE_EXTENSIONS
from reptk.data.layouts.table_layout import read_table_layout
from reptk.data.layouts.tar_layout import count_tars, is_tar, read_tar_layout
from reptk.data.records.hugging_face_dataset import HuggingFaceDataset, is_hugging_face_dataset
from reptk.data.records.lance_table import LanceTable, is_lance
from reptk.data.records.parquet_shards import holds_images
from reptk.data.records.shard_patterns import expand_pattern, is_pattern


def open_layout(base: Path, labels: Labels) -> ImageLayout:
    """Return the images of a folder, those that a table lists, or those in shards, by split.

    Raises:
        DataError: there are no images, they have no labels although `labels` is "folders", or the table cannot be understood.
        EnvironmentProblem: a Parquet file, and pyarrow is not installed.
    """
    if is_lance(base):
        return _read_lance(base, labels)
    if is_pattern(base):
        return _read_pattern(base, labels)
    if is_hugging_face_dataset(base):
        return _read_hugging_face_dataset(base, labels)
    if base.is_file():
        if is_tar(base):
            return read_tar_layout(base, labels)
        if holds_images(base):
            return read_parquet_layout(base, labels)
        return read_table_layout(base, labels)
    scan = list_images(base)
    num_tars = count_tars(scan.other_files)
    if not scan.images and scan.other_files[PARQUET] and num_tars:
        counts = f"{format_count(scan.other_files[PARQUET], 'Parquet file')} and {format_count(num_tars, 'tar shard')}"
        raise DataError(f"{base} has {counts}; name those to read by a pattern: data.root='{base}/*.tar'")
    if not scan.images and scan.other_files[PARQUET]:
        return read_parquet_layout(base, labels)
    if not scan.images and num_tars:
        return read_tar_layout(base, labels)
    return read_folder_layout(base, labels, scan)


def _read_lance(base: Path, labels: Labels) -> ImageLayout:
    table = LanceTable(base)
    fragments = format_count(table.num_fragments, "fragment")
    version = f"version {table.version} ({table.folder.name}@{table.version})"
    text = f"  Lance, {version}, {fragments}, images in {table.image_column}"
    advice = "; write train into the column split for these"
    return read_column_layout(base, table, labels, [("", len(table))], details=[text], split_advice=advice)


def _read_hugging_face_dataset(base: Path, labels: Labels) -> ImageLayout:
    data_set = HuggingFaceDataset(base)
    files = format_count(len(data_set.paths), "Arrow file")
    text = f"  Hugging Face data set, {files}, images in {data_set.image_column}"
    advice = f"; to train on one of these, name its folder (data.root={base}/...)"
    return read_column_layout(base, data_set, labels, data_set.part_sizes(), details=[text], split_advice=advice)


def _read_pattern(pattern: Path, labels: Labels) -> ImageLayout:
    """Return the images of the shards that a pattern names.

    Raises:
        DataError: as `open_layout`, or the pattern names other files.
    """
    paths = expand_pattern(pattern)
    if all(path.suffix.lower() == PARQUET for path in paths):
        return read_parquet_layout(pattern, labels)
    others = [str(path) for path in paths if not is_tar(path)]
    if others:
        count = f"{format_count(len(others), 'file')} of {len(paths):,}"
        raise DataError(
            f"{pattern} (data.root) names {count} that are no shards (.tar or .parquet): {first_names(others, 3)}"
        )
    return read_tar_layout(pattern, labels)


def existing_source(root: str) -> Path:
    """Return the path of a folder, a table of images or a shard, or a pattern of shards.

    Raises:
        DataError: there is neither, with the nearest that exists.
    """
    base = expand_home(root)
    if is_pattern(base) or is_lance(base) or (base.is_file() and base.suffix.lower() not in EXTENSIONS):
        return base
    return existing_folder(root)


def existing_folder(root: str) -> Path:
    """Return the path of a folder of images.

    Raises:
        DataError: there is no such folder, with the nearest that exists.
    """
    base = expand_home(root)
    if base.is_dir():
        return base
    if base.exists():
        raise DataError(f"{root} (data.root) is a file; name the folder that holds the images")
    parent = next(folder for folder in real_path(base).parents if folder.is_dir())
    # `parent` is the nearest folder that exists; most often the last part of the path is misspelled.
    siblings = [path.name for path in parent.iterdir() if path.is_dir() or path.suffix.lower() in TABLE_EXTENSIONS]
    nearest = difflib.get_close_matches(base.name, siblings, n=1)
    if nearest:
        hint = f"did you mean {parent / nearest[0]}?"
    else:
        hint = f"the nearest folder that exists is {parent}"
    raise DataError(f"no folder {root} (data.root, {real_path(base)}); {hint}")
