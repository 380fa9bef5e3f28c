"""What the folders below a folder of images mean, for training and for embedding: splits, classes, or neither.

The folders directly below the root are splits only if all that hold images have the names of splits; otherwise they are
classes, whatever they are called.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Literal, NamedTuple

from rich.console import Console

from reptk.core.console import Logger
from reptk.core.counts import format_count
from reptk.core.errors import DataError
from reptk.core.files import real_path
from reptk.data.folder_scan import FolderScan, scan_folder
from reptk.data.split_names import UNLABELED, split_role

Labels = Literal["auto", "folders", "none"]

LOOSE = ""
"""Name of the part of files that lie directly in the root."""

MAX_LISTED_LETTERS = 60


class LabeledFile(NamedTuple):
    """An image file and the name of its class; None if it has no label."""

    path: Path
    class_name: str | None


@dataclass(frozen=True)
class FolderLayout:
    """The images of a folder, and what its subfolders mean.

    Args:
        scan: everything below the folder.
        parts: the files of each split folder, by its name, and of the root itself (`LOOSE`), sorted by path. If the
            folders are no splits, all files are in the one part `LOOSE`.
        has_splits: whether the folders directly below the root are splits.
        folders: names of the folders directly below the root that hold images.
        num_deep: how many images lie deeper than in the folder of their class.
    """

    scan: FolderScan
    parts: dict[str, list[LabeledFile]]
    has_splits: bool
    folders: tuple[str, ...]
    num_deep: int

    @property
    def base(self) -> Path:
        return self.scan.base

    @property
    def files(self) -> list[LabeledFile]:
        """All images, of all parts."""
        return [file for part in self.parts.values() for file in part]

    def folders_of(self, *roles: str) -> list[str]:
        """Return the names of the folders that are splits of these roles, in the order of the roles."""
        if not self.has_splits:
            return []
        return [name for role in roles for name in self.parts if name != LOOSE and split_role(name) == role]

    def describe(self) -> list[str]:
        """Return a table, in a few lines, of what is read and what is skipped."""
        files = self.files
        classes = class_names(files)
        line = f"{self.base}: {format_count(len(files), 'image')}"
        if classes:
            line += f", {format_count(len(classes), 'class', 'classes')}{describe_class_sizes(files)}"
        else:
            line += ", no labels"
        lines = [line]
        if self.has_splits:
            counts = [f"{name or 'next to them'} {len(part):,}" for name, part in self.parts.items() if part]
            lines.append(f"  splits: {', '.join(counts)}")
        for phrase in self.scan.describe_skipped():
            lines.append(f"  skipped: {phrase}")
        lines += [f"  note: {note}" for note in self._notes()]
        return lines

    def _notes(self) -> list[str]:
        """Return what may not be as the user expects."""
        notes = []
        has_classes = any(file.class_name is not None for part in self.parts.values() for file in part)
        if self.num_deep and has_classes:
            notes.append(
                f"in folders within those of the classes: {format_count(self.num_deep, 'image')}, which belong to these classes"
            )
        if self.has_splits:
            return notes
        # One folder in the name of a split among others is more likely a class.
        named_as_splits = [name for name in self.folders if split_role(name) not in (None, UNLABELED)]
        if len(named_as_splits) > 1 and len(self.folders) > 2:
            others = ", ".join(name for name in self.folders if split_role(name) is None)
            if len(others) > MAX_LISTED_LETTERS:
                others = f"{others[:MAX_LISTED_LETTERS]}..."
            notes.append(
                f"{', '.join(named_as_splits)} count as classes, because of the folders next to them: {others}"
            )
        if len(self.folders) == 1 and not has_classes:
            inner_folder = self.base / self.folders[0]
            inner = {_first_folder(file.path, inner_folder) for part in self.parts.values() for file in part}
            if len(inner - {LOOSE}) > 1:
                notes.append(
                    f"everything is in {self.folders[0]}; its folders are splits or classes for {inner_folder}"
                )
        return notes


def read_layout(base: Path, labels: Labels) -> FolderLayout:
    """Read the images below a folder and decide what its folders mean.

    Args:
        base: the folder, which has to exist.
        labels: "folders": the first folder (below the split's) names the class; "none": there are no labels; "auto":
            "folders" if at least two folders of one split hold images, else "none".

    Raises:
        DataError: no images, or `labels` is "folders" and there is no class folder.
    """
    with Logger(console=Console(stderr=True)).status(f"listing the images in {base}"):
        scan = scan_folder(base)
    if not scan.images:
        raise DataError(f"no images in {real_path(base)} (data.root); {scan.describe_content()}")
    by_folder: dict[str, list[Path]] = {}
    for path in scan.images:
        by_folder.setdefault(_first_folder(path, base), []).append(path)
    folders = tuple(sorted(name for name in by_folder if name != LOOSE))
    has_splits = _are_splits(folders)
    parts: dict[str, list[LabeledFile]] = {}
    if has_splits:
        for name, paths in by_folder.items():
            parts[name] = [LabeledFile(path, _class_name(path, base / name)) for path in paths]
            if name == LOOSE or split_role(name) == UNLABELED:
                parts[name] = without_labels(parts[name])
    else:
        parts[LOOSE] = [LabeledFile(path, _class_name(path, base)) for path in scan.images]
    # The root, the split if there are any, the class, and the file.
    max_parts = len(base.parts) + has_splits + 2
    num_deep = sum(len(path.parts) > max_parts for path in scan.images)
    num_classes = max(len(class_names(part)) for part in parts.values())
    if labels == "none" or (labels == "auto" and num_classes < 2):
        parts = {name: without_labels(part) for name, part in parts.items()}
    elif num_classes == 0:
        raise DataError(f"data.labels is 'folders', but all images lie in {base} itself, in no class folder")
    return FolderLayout(scan, parts, has_splits, folders, num_deep)


def class_names(files: Sequence[LabeledFile]) -> tuple[str, ...]:
    """Return the names of the classes of these files, sorted."""
    return tuple(sorted({file.class_name for file in files if file.class_name is not None}))


def without_labels(files: Sequence[LabeledFile]) -> list[LabeledFile]:
    """Return the files without the names of their classes."""
    return [LabeledFile(file.path, None) for file in files]


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
        text = f" of {sizes[smallest]:,} ({smallest}) to {most:,} ({largest}) images, median {median(sizes.values()):g}"
    num_unlabeled = len(files) - sizes.total()
    if num_unlabeled:
        text += f"; {format_count(num_unlabeled, 'image')} without a class"
    return text


def _are_splits(names: Sequence[str]) -> bool:
    """Return whether folders of these names, which are all folders with images of one level, are splits."""
    roles = {split_role(name) for name in names}
    return None not in roles and bool(roles - {UNLABELED})


def _first_folder(path: Path, base: Path) -> str:
    """Return the name of the folder below `base` that a file lies in; `LOOSE` directly in `base`."""
    # Several times as fast as relative_to(), which matters for a million files.
    level = len(base.parts)
    if len(path.parts) > level + 1:
        return path.parts[level]
    return LOOSE


def _class_name(path: Path, part_folder: Path) -> str | None:
    """Return the name of the class folder of a file; None directly in the part, and in a folder of unlabeled images."""
    name = _first_folder(path, part_folder)
    if name == LOOSE or split_role(name) == UNLABELED:
        return None
    return name
