"""The images of a folder, a table or Parquet shards, by split, and their classes: what data sets are built from."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Literal, NamedTuple

from reptk.core.counts import format_count
from reptk.core.printable_names import in_one_line
from reptk.data.parquet_shards import ShardRow
from reptk.data.split_names import split_role

Labels = Literal["auto", "folders", "none"]

LOOSE = ""
"""Name of the part of images that are in no split."""


class LabeledFile(NamedTuple):
    """An image file, or a row of Parquet shards, and the name of its class; None if it has no label."""

    path: Path | ShardRow
    class_name: str | None


@dataclass(frozen=True)
class ImageLayout:
    """The images of a folder, a table or Parquet shards, by split.

    Args:
        base: the folder or the file.
        kind: which of them it is.
        parts: the images of each split, by its name as the user spells it, and of no split (`LOOSE`), in a fixed order. If
            there are no splits, all images are in the one part `LOOSE`.
        has_splits: whether there are splits.
        places: what messages call each split.
        class_order: names of all classes, in the order of their labels.
        details: lines that say what else was noticed and what is skipped.
        skipped: phrases that count what is skipped and say the way out; they are part of the details.
        empty_splits: names of splits without images.
    """

    base: Path
    kind: Literal["folder", "table", "shards"]
    parts: dict[str, list[LabeledFile]]
    has_splits: bool
    places: dict[str, str]
    class_order: tuple[str, ...]
    details: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    empty_splits: tuple[str, ...] = field(default=())

    @property
    def files(self) -> list[LabeledFile]:
        """All images, of all parts."""
        return [file for part in self.parts.values() for file in part]

    @property
    def lacks_labels(self) -> str:
        """What messages say of images without labels."""
        if self.kind == "folder":
            return "has no class folders"
        return "has no labels"

    def splits_of(self, *roles: str) -> list[str]:
        """Return the names of the splits with these roles, in the order of the roles."""
        if not self.has_splits:
            return []
        return [name for role in roles for name in self.parts if name != LOOSE and split_role(name) == role]

    def class_names(self, files: Iterable[LabeledFile]) -> tuple[str, ...]:
        """Return the names of the classes of these images, in the order of their labels."""
        present = {file.class_name for file in files}
        return tuple(name for name in self.class_order if name in present)

    def describe(self) -> list[str]:
        """Return a table, in a few lines, of what is read and what is skipped."""
        files = self.files
        classes = self.class_names(files)
        line = f"{self.base}: {format_count(len(files), 'image')}"
        if classes:
            line += f", {format_count(len(classes), 'class', 'classes')}{describe_class_sizes(files)}"
        else:
            line += ", no labels"
        lines = [line]
        if self.has_splits:
            loose = "next to them" if self.kind == "folder" else "in none"
            counts = [f"{name or loose} {len(part):,}" for name, part in self.parts.items() if part]
            lines.append(f"  splits: {', '.join(counts)}")
        return [*lines, *self.details]


def class_names(files: Iterable[LabeledFile]) -> tuple[str, ...]:
    """Return the names of the classes of these files, sorted."""
    return tuple(sorted({file.class_name for file in files if file.class_name is not None}))


def without_labels(files: Sequence[LabeledFile]) -> list[LabeledFile]:
    """Return the files without the names of their classes."""
    return [LabeledFile(file.path, None) for file in files]


def with_labels_as_set(parts: dict[str, list[LabeledFile]], labels: Labels) -> dict[str, list[LabeledFile]]:
    """Return the parts without labels, if `labels` is "none", or "auto" and no part has two classes."""
    num_classes = max(len(class_names(part)) for part in parts.values())
    if labels == "none" or (labels == "auto" and num_classes < 2):
        return {name: without_labels(part) for name, part in parts.items()}
    return parts


def describe_class_sizes(files: Sequence[LabeledFile]) -> str:
    """Return ` of 3 (eel) to 90 (cat) images, median 12`; nothing if there are no labels."""
    sizes = Counter(file.class_name for file in files if file.class_name is not None)
    if not sizes:
        return ""
    [(largest, most), *_] = sizes.most_common()
    smallest = min(sizes, key=lambda name: (sizes[name], name))
    if sizes[smallest] == most:
        text = f" of {format_count(most, 'image')} each"
    else:
        least = f"{sizes[smallest]:,} ({in_one_line(smallest)})"
        text = f" of {least} to {most:,} ({in_one_line(largest)}) images, median {median(sizes.values()):g}"
    num_unlabeled = len(files) - sizes.total()
    if num_unlabeled:
        text += f"; {format_count(num_unlabeled, 'image')} without a class"
    return text
