"""The images of a folder, a table or shards, by split, and their classes: what data sets are built from."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Literal, NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

from reptk.core import mapped_arrays
from reptk.core.counts import format_count
from reptk.core.printable_names import in_one_line
from reptk.data.records.record_source import Record, Records
from reptk.data.split_names import split_role

Labels = Literal["auto", "folders", "none"]

NO_SPLIT = ""
"""In place of the name of a split, of images that are in none."""


class LabeledFile(NamedTuple):
    """An image file, or an image of a `RecordSource`, and the name of its class; None if it has no label."""

    path: Path | Record
    class_name: str | None


class LabeledImages(Sequence[LabeledFile]):
    """Images and their classes, in columns.

    Args:
        sources: where the images are.
        labels: (n,) int64 numbers of their classes in `class_order`, -1 for none.
        class_order: names of classes.
    """

    def __init__(
        self, sources: Sequence[Path] | Records, labels: NDArray[np.int64], class_order: tuple[str, ...]
    ) -> None:
        self.sources = sources
        self.labels = labels
        self.class_order = class_order

    @classmethod
    def from_files(cls, files: Iterable[LabeledFile], class_order: tuple[str, ...]) -> "LabeledImages":
        """Return the columns of a list of files.

        Args:
            files: the files.
            class_order: names of all their classes, and perhaps of others.
        """
        label_of: dict[str | None, int] = {name: label for label, name in enumerate(class_order)}
        label_of[None] = -1
        paths = []
        labels = []
        for path, class_name in files:
            paths.append(path)
            labels.append(label_of[class_name])
        return cls(paths, np.array(labels, np.int64), class_order)

    def __len__(self) -> int:
        return len(self.labels)

    @overload
    def __getitem__(self, index: int) -> LabeledFile: ...
    @overload
    def __getitem__(self, index: slice) -> "LabeledImages": ...
    def __getitem__(self, index: int | slice) -> "LabeledFile | LabeledImages":
        if isinstance(index, slice):
            return LabeledImages(self.sources[index], self.labels[index], self.class_order)
        label = int(self.labels[index])
        class_name = None
        if label >= 0:
            class_name = self.class_order[label]
        return LabeledFile(self.sources[index], class_name)

    def class_sizes(self) -> NDArray[np.int64]:
        """Return how many images each class of `class_order` has, (C,)."""
        sizes = np.zeros(len(self.class_order), np.int64)
        for part in mapped_arrays.chunks(len(self)):
            labels = self.labels[part]
            sizes += np.bincount(labels[labels >= 0], minlength=len(sizes))
        return sizes

    def class_names(self) -> tuple[str, ...]:
        """Return the names of the classes of these images, in the order of their labels."""
        sizes = self.class_sizes()
        return tuple(name for name, size in zip(self.class_order, sizes.tolist(), strict=True) if size)

    def where(self, mask: NDArray[np.bool_]) -> "LabeledImages":
        """Return the images at which a mask (n,) is true."""
        numbers = mapped_arrays.flatnonzero(mask)
        if isinstance(self.sources, Records):
            sources: Sequence[Path] | Records = Records(
                self.sources.source, mapped_arrays.take(self.sources.numbers, numbers)
            )
        else:
            sources = [self.sources[number] for number in numbers.tolist()]
        return LabeledImages(sources, mapped_arrays.take(self.labels, numbers), self.class_order)

    def labeled(self) -> "LabeledImages":
        """Return the images that have a label."""
        has_label = mapped_arrays.apply(lambda labels: labels >= 0, self.labels, np.bool_)
        if has_label.all():
            return self
        return self.where(has_label)

    def without_labels(self) -> "LabeledImages":
        """Return the images without their labels."""
        unlabeled = mapped_arrays.full(len(self), -1, np.int64)
        return LabeledImages(self.sources, unlabeled, self.class_order)

    def labels_among(self, classes: Sequence[str]) -> NDArray[np.int64]:
        """Return the labels (n,) as numbers of these classes, which include those of the images."""
        if tuple(classes) == self.class_order:
            return self.labels
        label_of = {name: label for label, name in enumerate(classes)}
        new_label = [label_of.get(name, -1) for name in self.class_order]
        # The last one is that of images without a label, whose number -1 it is.
        table = np.array([*new_label, -1], np.int64)
        return mapped_arrays.take(table, self.labels)

    def hold_out(self, every: int) -> tuple["LabeledImages", "LabeledImages"]:
        """Return the images without the `every`-th, 2 `every`-th, ... image of each class, and these images."""
        num_before = np.zeros(len(self.class_order) + 1, np.int64)
        chunks = mapped_arrays.chunks(len(self))
        pieces = (_is_held_out(self.labels[part], num_before, every) for part in chunks)
        is_query = mapped_arrays.from_chunks(pieces, len(self), np.bool_)
        is_training = mapped_arrays.apply(np.logical_not, is_query, np.bool_)
        return self.where(is_training), self.where(is_query)


def _is_held_out(labels: NDArray[np.int64], num_before: NDArray[np.int64], every: int) -> NDArray[np.bool_]:
    """Return whether each image is an `every`-th one of its class.

    Args:
        labels: (n,) of consecutive images.
        num_before: (C + 1,) images of each class before these; those of `labels` are added.
        every: which of them.
    """
    # Stable: the order within each class remains.
    order = np.argsort(labels, kind="stable")
    in_order = labels[order]
    starts = np.searchsorted(in_order, in_order, side="left")
    rank_in_class = np.arange(len(labels)) - starts + num_before[in_order]
    is_held_out = np.zeros(len(labels), np.bool_)
    is_held_out[order] = (in_order >= 0) & ((rank_in_class + 1) % every == 0)
    present, counts = np.unique(in_order, return_counts=True)
    num_before[present] += counts
    return is_held_out


def concatenate(parts: Sequence[LabeledImages]) -> LabeledImages:
    """Return the images of parts of one layout, one after the other."""
    parts = [part for part in parts if len(part)] or list(parts[:1])
    if len(parts) == 1:
        return parts[0]
    labels = mapped_arrays.concatenate([part.labels for part in parts])
    first = parts[0].sources
    if isinstance(first, Records):
        numbers = mapped_arrays.concatenate([part.sources.numbers for part in parts])
        return LabeledImages(Records(first.source, numbers), labels, parts[0].class_order)
    paths = [path for part in parts for path in part.sources]
    return LabeledImages(paths, labels, parts[0].class_order)


@dataclass(frozen=True)
class ImageLayout:
    """The images of a folder, a table, Parquet files, tar shards or a data set on disk, by split.

    Args:
        base: the folder or the file.
        kind: which of them it is; "shards" for images that are not in files of their own.
        parts: the images of each split, by its name as the user spells it, and of no split (`NO_SPLIT`), in a fixed order. If
            there are no splits, all images are in the one part `NO_SPLIT`.
        has_splits: whether there are splits.
        class_order: names of all classes, in the order of their labels.
        details: lines that say what else was noticed and what is skipped.
        skipped: phrases that count what is skipped and say the way out; they are part of the details.
        empty_splits: names of splits without images.
        split_advice: what to do if no split is for training, after "no images to train on".
        split_paths: folder of each split, if splits are folders; with a `*` for those within each class.
    """

    base: Path
    kind: Literal["folder", "table", "shards"]
    parts: dict[str, LabeledImages]
    has_splits: bool
    class_order: tuple[str, ...]
    details: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    empty_splits: tuple[str, ...] = ()
    split_advice: str = ""
    split_paths: dict[str, Path] = field(default_factory=dict)

    @property
    def files(self) -> LabeledImages:
        """All images, of all parts."""
        return concatenate(list(self.parts.values()))

    @property
    def lacks_labels(self) -> str:
        """What messages say of images without labels."""
        if self.kind == "folder":
            return "has no class folders"
        return "has no labels"

    def split_name(self, split: str) -> str:
        """Return what messages call a split."""
        if split in self.split_paths:
            return str(self.split_paths[split])
        return f"split {split} of {self.base}"

    def splits_of(self, *roles: str) -> list[str]:
        """Return the names of the splits with these roles, in the order of the roles."""
        if not self.has_splits:
            return []
        return [name for role in roles for name in self.parts if name != NO_SPLIT and split_role(name) == role]

    def images_of(self, names: Sequence[str]) -> LabeledImages:
        """Return the images of these splits, one after the other."""
        if not names:
            return next(iter(self.parts.values()))[:0]
        return concatenate([self.parts[name] for name in names])

    def describe(self) -> list[str]:
        """Return a table, in a few lines, of what is read and what is skipped."""
        files = self.files
        classes = files.class_names()
        line = f"{self.base}: {format_count(len(files), 'image')}"
        if classes:
            line += f", {format_count(len(classes), 'class', 'classes')}{describe_class_sizes(files)}"
        else:
            line += ", no labels"
        lines = [line]
        if self.has_splits:
            no_split = "in none"
            if self.kind == "folder":
                no_split = "next to them"
            counts = [f"{name or no_split} {len(part):,}" for name, part in self.parts.items() if part]
            lines.append(f"  splits: {', '.join(counts)}")
        return [*lines, *self.details]


def columns_of(parts: dict[str, list[LabeledFile]], class_order: tuple[str, ...]) -> dict[str, LabeledImages]:
    """Return the images of each split in columns."""
    return {name: LabeledImages.from_files(files, class_order) for name, files in parts.items()}


def class_names(files: Iterable[LabeledFile]) -> tuple[str, ...]:
    """Return the names of the classes of these files, sorted."""
    return tuple(sorted({file.class_name for file in files if file.class_name is not None}))


def without_labels(files: Sequence[LabeledFile]) -> list[LabeledFile]:
    """Return the files without the names of their classes."""
    return [LabeledFile(file.path, None) for file in files]


def with_labels_as_set(parts: dict[str, LabeledImages], labels: Labels) -> dict[str, LabeledImages]:
    """Return the parts without labels, if `labels` is "none", or "auto" and no part has two classes."""
    num_classes = max(len(part.class_names()) for part in parts.values())
    if labels == "none" or (labels == "auto" and num_classes < 2):
        return {name: part.without_labels() for name, part in parts.items()}
    return parts


def describe_class_sizes(files: LabeledImages) -> str:
    """Return ` of 3 (eel) to 90 (cat) images, median 12`; nothing if there are no labels."""
    all_sizes = files.class_sizes()
    sizes = {name: size for name, size in zip(files.class_order, all_sizes.tolist(), strict=True) if size}
    if not sizes:
        return ""
    most = max(sizes.values())
    least = min(sizes.values())
    smallest = min(name for name, size in sizes.items() if size == least)
    if least == most:
        text = f" of {format_count(most, 'image')} each"
    else:
        largest = _first_of(files, [name for name, size in sizes.items() if size == most])
        least_text = f"{least:,} ({in_one_line(smallest)})"
        text = f" of {least_text} to {most:,} ({in_one_line(largest)}) images, median {median(sizes.values()):g}"
    num_unlabeled = len(files) - sum(sizes.values())
    if num_unlabeled:
        text += f"; {format_count(num_unlabeled, 'image')} without a class"
    return text


def _first_of(files: LabeledImages, names: Sequence[str]) -> str:
    """Return which of these classes has the first image."""
    if len(names) == 1:
        return names[0]
    labels = [files.class_order.index(name) for name in names]
    for part in mapped_arrays.chunks(len(files)):
        positions = np.flatnonzero(np.isin(files.labels[part], labels))
        if len(positions):
            return files.class_order[files.labels[part][positions[0]]]
    return names[0]
