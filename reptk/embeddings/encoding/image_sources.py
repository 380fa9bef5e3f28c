"""Where images to embed come from: memory, a table of paths, a folder, or a data set; every image once."""

import hashlib
import os
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reptk import config
from reptk.config.registry import DATASETS, unknown
from reptk.core.counts import format_count
from reptk.core.errors import DataError, UsageError
from reptk.core.files import expand_home
from reptk.data import Data, Images, InMemory, Split
from reptk.data.class_names import sorted_class_names
from reptk.data.decoding.decode import Jpeg
from reptk.data.decoding.pixel_options import DEFAULT_OPTIONS, PixelOptions
from reptk.data.decoding.resize import DEFAULT_PREPROCESSING, WHOLE_SQUARES, Preprocessing, SquareOptions
from reptk.data.images.image_files import ImageFiles
from reptk.data.layouts.folder_scan import SkippedFiles
from reptk.data.layouts.image_layout import NO_SPLIT, ImageLayout, LabeledImages
from reptk.data.layouts.image_table import ImageTable, read_image_table
from reptk.data.layouts.open_layout import existing_source, open_layout
from reptk.data.layouts.tar_layout import is_tar
from reptk.data.records.lance_table import is_lance
from reptk.data.records.parquet_shards import holds_images
from reptk.data.records.record_source import Records
from reptk.data.records.shard_patterns import is_pattern
from reptk.data.split_names import split_role
from reptk.embeddings.encoding.image_shards import ImageShard, find_shards
from reptk.embeddings.encoding.row_ids import RowIds
from reptk.embeddings.files.string_array import StringArray

SPLITS = ("train", "bank", "query")


@dataclass(frozen=True)
class ImageGroup:
    """Images of one collection: one split of a data set in memory, or files.

    Args:
        images: n images.
        labels: (n,) int64, -1 for an image without one.
        ids: one name per image.
        paths: one path per image, relative to the source's root; None if the images are not files.
        shards: the files that hold the images, in order; empty if the images are files themselves, or in memory.
    """

    images: Images
    labels: Tensor
    ids: Sequence[str]
    paths: Sequence[str] | None = None
    shards: Sequence[ImageShard] = ()

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def file_stats(self) -> Tensor | None:
        """(n, 2) int64: size in bytes and time of modification in nanoseconds of each file, -1 if it is gone.

        None if the images are not files.
        """
        if self.paths is None:
            return None
        stats = np.full((len(self), 2), -1, np.int64)
        for number in range(len(self)):
            path = self.images.path(number)
            if path is not None:
                with suppress(OSError):
                    stat = path.stat()
                    stats[number] = stat.st_size, stat.st_mtime_ns
        return torch.from_numpy(stats)


@dataclass(frozen=True)
class ImageSource:
    """All images that are to be embedded.

    Args:
        groups: the images.
        classes: class names, by label.
        preprocessing: what happens to the images before they are encoded.
        jpeg: which library decodes JPEG.
        about: a record of where they come from; `root` is the folder that paths are relative to.
        summary: lines that say what was read and what was skipped, for the user to see before work starts.
        options: how pixels were decoded, as queries have to be.
    """

    groups: list[ImageGroup]
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    jpeg: Jpeg
    about: dict[str, Any]
    summary: Sequence[str] = ()
    options: PixelOptions = DEFAULT_OPTIONS

    def __len__(self) -> int:
        return sum(map(len, self.groups))


def from_images(images: Tensor, *, jpeg: Jpeg) -> ImageSource:
    """Return images (n, 3, H, W) uint8 that are in memory; their ids are their indices.

    Args:
        images: the images.
        jpeg: which library decodes JPEG queries later.

    Raises:
        DataError: another type or shape, or no images.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3) or not len(images):
        raise DataError(f"images must be uint8 (n, 3, H, W), got {images.dtype} {tuple(images.shape)}")
    ids = StringArray.from_strings(map(str, range(len(images))))
    unlabeled = torch.full((len(images),), -1)
    group = ImageGroup(InMemory(images), unlabeled, ids)
    return ImageSource([group], classes=(), preprocessing=WHOLE_SQUARES, jpeg=jpeg, about={"name": "tensor"})


def from_table(
    table: Path,
    *,
    size_px: int,
    jpeg: Jpeg,
    preprocessing: Preprocessing,
    split: str | None = None,
    options: PixelOptions = DEFAULT_OPTIONS,
) -> ImageSource:
    """Return the images that a CSV, JSON lines or Parquet file lists; see `reptk.data.layouts.image_table`.

    Paths are relative to the table's folder. Labels are class names, or empty; without ids, paths are the ids.

    Args:
        table: the file.
        size_px: side to which images are decoded.
        jpeg: which library decodes JPEG.
        preprocessing: what happens to the images before they are encoded.
        split: an entry of the column of splits, in any spelling; by default all images.
        options: what the pixels of unusual files become.

    Raises:
        DataError: the table cannot be read, is empty, has an id twice, or has no such split.
        EnvironmentProblem: a Parquet file, and pyarrow is not installed.
    """
    listed = read_image_table(table)
    rows = listed.rows
    if split is not None:
        split_names = _matching_splits(split, Counter(row.split for row in rows), table)
        rows = [row for row in rows if row.split in split_names]
    root = table.absolute().parent
    paths = StringArray.from_strings(row.path for row in rows)
    files = _skipping_files([root / path for path in paths], size_px, jpeg, preprocessing, options)
    # Of all splits and in a fixed order, so that the same table always gives the same labels.
    classes = sorted_class_names(row.label for row in listed.rows)
    label_of = {name: label for label, name in enumerate(classes)}
    labels = torch.tensor([label_of.get(row.label, -1) for row in rows], dtype=torch.long)
    ids = paths
    if any(row.id for row in rows):
        ids = StringArray.from_strings(row.id or row.path for row in rows)
        _check_unique(ids, table)
    about = {"name": "table", "table": str(table), "root": str(root)}
    summary = listed.describe()
    if split is not None:
        about["split"] = split
        summary.append(_describe_split(split, len(rows)))
    group = ImageGroup(files, labels, ids, paths)
    return ImageSource([group], classes, preprocessing, jpeg, about, summary, options)


def from_data_set(
    table: config.Table,
    *,
    split: str | None = None,
    jpeg: Jpeg = "auto",
    preprocessing: Preprocessing = DEFAULT_PREPROCESSING,
) -> ImageSource:
    """Return the images of a data set.

    Args:
        table: `{"name": ..., arguments}`, as in a recipe.
        split: train, bank or query, or a split of a folder or a table such as test; by default every distinct image.
        jpeg: which library decodes JPEG, for data sets of files.
        preprocessing: what happens to the images of files before they are encoded.

    Raises:
        UsageError: unknown data set or argument.
        DataError: the data set is missing or empty, or has no such split.
    """
    table = config.complete("data", table)
    is_of_files = "interpolation" in table
    if is_of_files:
        table = {**table, **preprocessing._asdict()}
    if "cache" in table:
        # Cached pictures are resized a second time to be padded or squashed; queries are not.
        table["cache"] = False
    if table["name"] == "folder":
        source = _from_folder_or_table(table, jpeg, split, preprocessing)
        if source is not None:
            return source
    with warnings.catch_warnings():
        # Nothing is evaluated, so it does not matter that no image is held out.
        warnings.filterwarnings("ignore", message=".*none is held out as a query")
        warnings.simplefilter("ignore", SkippedFiles)  # part of the summary
        data = config.build(DATASETS, table)
    if not is_of_files:
        preprocessing = Preprocessing(data.crop, data.resize, data.interpolation)
    if split is None:
        splits = distinct_splits(data)
    else:
        splits = {split: _single_split(data, split, table["name"])}
    about = {**table, "split": split or "all"}
    # The same file may be in several splits, under different indices; paths tell which are the same.
    if all(_are_files(part.images) for part in splits.values()):
        source = _from_files(list(splits.values()), data, about, jpeg, preprocessing)
        return replace(source, summary=data.summary, options=pixel_options(table))
    groups = []
    for name, part in splits.items():
        ids = StringArray.from_strings(f"{name}/{index}" for index in range(len(part)))
        groups.append(ImageGroup(part.images, part.labels, ids))
    return ImageSource(groups, data.classes, preprocessing, jpeg, about, data.summary, pixel_options(table))


def data_table(text: str) -> config.Table:
    """Return the recipe's table of what `--data` names: a folder, a table of images, or a registered data set.

    Raises:
        DataError: there is neither.
    """
    base = expand_home(text)
    if is_pattern(base) or base.exists() or is_lance(base):
        return {"name": "folder", "root": text}
    if text in DATASETS.names():
        return {"name": text}
    raise DataError(f"there is no folder or file {text}, and {unknown('data set', text, DATASETS.names())}")


def distinct_splits(data: Data) -> dict[str, Split]:
    """Return the splits by name, without those whose images are all part of an earlier one."""
    distinct: dict[str, Split] = {}
    # The bank last: most often it is the training images, or some of them.
    for name in ("train", "query", "bank"):
        split = data.splits[name]
        if split is None:
            continue
        if not any(_is_subset(split, other) for other in distinct.values()):
            distinct[name] = split
    return distinct


def _single_split(data: Data, name: str, data_set: str) -> Split:
    if name not in SPLITS:
        raise UsageError(f"--split must be {', '.join(SPLITS[:-1])} or {SPLITS[-1]}, got {name!r}")
    split = data.splits[name]
    if split is None:
        present = [other for other in SPLITS if data.splits[other] is not None]
        raise DataError(f"{data_set} has no {name} split, only {', '.join(present)}")
    return split


def _from_folder_or_table(
    table: config.Table, jpeg: Jpeg, split: str | None, preprocessing: Preprocessing
) -> ImageSource | None:
    """Return the images of a folder or a table, whether training would use them or not.

    Returns None if `split` is one of the data set's, which training decides on.
    """
    base = existing_source(table["root"])
    options = pixel_options(table)
    if base.is_file() and not is_tar(base) and not holds_images(base):
        if split in SPLITS and not _has_split(read_image_table(base), split):
            return None
        source = from_table(
            base,
            size_px=table["size"],
            jpeg=table["jpeg"],
            preprocessing=preprocessing,
            split=split,
            options=options,
        )
        if table["labels"] == "none":
            return _without_labels(source)
        return source
    if split in SPLITS:
        return None
    layout = open_layout(base, table["labels"])
    summary = layout.describe()
    files = layout.files
    if split is not None:
        files = layout.images_of(_parts_of_split(layout, split))
        summary.append(_describe_split(split, len(files)))
    classes = layout.files.class_names()
    if layout.kind == "folder":
        files = _in_path_order(files)
    labels = torch.from_numpy(files.labels_among(classes))
    root = base.absolute()
    about = {**table, "split": split or "all", "root": str(root)}
    images = _skipping_files(files.sources, table["size"], table["jpeg"], preprocessing, options)
    if isinstance(files.sources, Records):
        shards = find_shards(files.sources, base)
        group = ImageGroup(images, labels, RowIds(files.sources), shards=shards)
        return ImageSource([group], classes, preprocessing, jpeg, about, summary, options)
    paths = StringArray.from_strings(str(path.relative_to(base)) for path in files.sources)
    group = ImageGroup(images, labels, ids=paths, paths=paths)
    return ImageSource([group], classes, preprocessing, jpeg, about, summary, options)


def _describe_split(split: str, num_images: int) -> str:
    return f"  embedded: {format_count(num_images, 'image')} of the split {split}"


def _parts_of_split(layout: ImageLayout, split: str) -> list[str]:
    """Return the names of the parts of a layout that mean this split, in their order."""
    sizes: Counter[str] = Counter()
    if layout.has_splits:
        sizes.update({name: len(part) for name, part in layout.parts.items()})
    matching = _matching_splits(split, sizes, layout.base)
    return [name for name in layout.parts if name in matching]


def _in_path_order(files: LabeledImages) -> LabeledImages:
    order = sorted(range(len(files)), key=files.sources.__getitem__)
    return LabeledImages([files.sources[number] for number in order], files.labels[order], files.class_order)


def pixel_options(table: config.Table) -> PixelOptions:
    """Return the arguments of a data set that say how its pixels are decoded; the defaults for one without these.

    Raises:
        UsageError: a value is none of those that are possible.
    """
    names = [field.name for field in fields(PixelOptions) if field.name in table]
    values = {name: table[name] for name in names}
    if "range" in values:
        values["range"] = tuple(values["range"])
    try:
        return PixelOptions(**values)
    except ValueError as cause:
        raise UsageError(f"data.{cause}") from cause


def _has_split(listed: ImageTable, split: str) -> bool:
    """Return whether the column of splits has this one, in any spelling."""
    return any(row.split and split_role(row.split) == split for row in listed.rows)


def _matching_splits(split: str, sizes: Mapping[str, int], place: Path) -> set[str]:
    """Return which of the names of splits mean `split`: the same name, else any spelling of it.

    Args:
        split: as the user names it.
        sizes: how many images each split has; of those without one by an empty name.
        place: the folder or the table.

    Raises:
        DataError: there is no such split.
    """
    counts = {name: size for name, size in sizes.items() if name != NO_SPLIT and size}
    if split in counts:
        return {split}
    role = split_role(split)
    same_role = {name for name in counts if role is not None and split_role(name) == role}
    if same_role:
        return same_role
    if counts:
        listed = ", ".join(f"{name} ({format_count(count, 'image')})" for name, count in sorted(counts.items()))
        raise DataError(f"{place} has no split {split!r}; its splits are {listed}")
    raise DataError(
        f"{place} has no splits, so there is no {split!r}; leave --split out, or choose {', '.join(SPLITS)}"
    )


def _without_labels(source: ImageSource) -> ImageSource:
    groups = [replace(group, labels=torch.full((len(group),), -1)) for group in source.groups]
    return replace(source, groups=groups, classes=())


def _are_files(images: Images) -> bool:
    """Return whether images are in files of their own, which are decoded when they are fetched."""
    return isinstance(images, ImageFiles) and len(images) > 0 and images.path(0) is not None


def _from_files(
    splits: list[Split], data: Data, about: config.Table, jpeg: Jpeg, preprocessing: Preprocessing
) -> ImageSource:
    """Return all files of the splits, once each, in the order of their paths."""
    label_of: dict[Path, int] = {}
    for split in splits:
        for index, label in enumerate(split.labels.tolist()):
            label_of[split.images.path(index)] = label
    files = sorted(label_of)
    labels = torch.tensor([label_of[file] for file in files], dtype=torch.long)
    root = expand_home(about.get("root", ".")).absolute()
    if root.is_file():  # a table, whose paths are relative to its folder
        root = root.parent
    paths = StringArray.from_strings(os.path.relpath(file.absolute(), root) for file in files)
    first = splits[0].images
    images = _skipping_files(files, first.size, jpeg, preprocessing, first.options)
    group = ImageGroup(images, labels, ids=paths, paths=paths)
    return ImageSource([group], data.classes, preprocessing, jpeg, about={**about, "root": str(root)})


def _skipping_files(
    paths: Sequence[Path] | Records,
    size_px: int,
    jpeg: Jpeg,
    preprocessing: Preprocessing,
    options: PixelOptions = DEFAULT_OPTIONS,
) -> ImageFiles:
    """Image files of which any number may be unreadable: `embed` counts them."""
    return ImageFiles(
        paths,
        size_px,
        jpeg,
        options=options,
        square=SquareOptions(preprocessing.resize, preprocessing.interpolation, preprocessing.reduce_jpeg),
        resize_on_decode=True,
        on_error="skip",
        max_unreadable=len(paths),
    )


def _is_subset(split: Split, other: Split) -> bool:
    """Return whether all images of a split are known to be in the other: pixels are compared if both are in memory."""
    if split is other or split.images is other.images:
        return True
    both_in_memory = isinstance(split.images, InMemory) and isinstance(other.images, InMemory)
    if not both_in_memory or len(split) > len(other):
        return False
    other_digests = {_digest(image) for image in other.images.pixels}
    return all(_digest(image) in other_digests for image in split.images.pixels)


def _digest(image: Tensor) -> bytes:
    return hashlib.blake2b(image.contiguous().numpy(), digest_size=16).digest()


def _check_unique(ids: Sequence[str], table: Path) -> None:
    seen: set[str] = set()
    for image_id in ids:
        if image_id in seen:
            raise DataError(f"{table} has the id {image_id!r} twice; ids tell images apart")
        seen.add(image_id)
