"""What the folders below a folder of images mean, for training and for embedding: splits, classes, or neither.

The folders directly below the root are splits only if all that hold images have the names of splits; otherwise they are
classes, whatever they are called. If all classes hold the same splits and nothing else, as in `cat/train`, `cat/test`,
`dog/train`, ..., these are the splits.
"""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from reptk.core.console import Logger
from reptk.core.counts import format_count
from reptk.core.errors import DataError
from reptk.core.files import real_path
from reptk.data.decoding.raw_photograph import RAW_EXTENSIONS
from reptk.data.layouts.folder_scan import FolderScan, scan_folder
from reptk.data.layouts.image_layout import (
    NO_SPLIT,
    ImageLayout,
    LabeledFile,
    LabeledImages,
    Labels,
    class_names,
    columns_of,
    with_labels_as_set,
    without_labels,
)
from reptk.data.split_names import TRAIN, UNLABELED, is_split_name, is_training_or_evaluation, split_role

MAX_LISTED_LETTERS = 60

NO_FOLDER = NO_SPLIT
"""In place of the name of the folder of images that are directly in the root; as a split, they are in none."""


def read_folder_layout(base: Path, labels: Labels, scan: FolderScan | None = None) -> ImageLayout:
    """Read the images below a folder and decide what its folders mean.

    Args:
        base: the folder, which has to exist.
        labels: "folders": the first folder (below the split's) names the class; "none": there are no labels; "auto":
            "folders" if at least two folders of one split hold images, else "none".
        scan: everything below the folder, if it has been listed already.

    Raises:
        DataError: no images, or `labels` is "folders" and there is no class folder.
    """
    if scan is None:
        scan = list_images(base)
    if not scan.images:
        raise DataError(f"no images in {real_path(base)} (data.root); {scan.describe_content()}")
    by_folder: dict[str, list[Path]] = {}
    for path in scan.images:
        by_folder.setdefault(_first_folder(path, base), []).append(path)
    folders = tuple(sorted(name for name in by_folder if name != NO_FOLDER))
    inner_splits: tuple[str, ...] = ()
    if _are_splits(folders):
        lists = _parts_by_split(base, by_folder)
        split_paths = {name: base / name for name in lists}
    else:
        inner_splits = _splits_within_classes(base, by_folder)
        lists = _parts_by_class(base, by_folder, inner_splits)
        split_paths = {name: base / "*" / name for name in lists}
    has_splits = bool(inner_splits) or _are_splits(folders)
    class_order = class_names(file for part in lists.values() for file in part)
    if labels == "folders" and not class_order:
        raise DataError(f"data.labels is 'folders', but all images lie in {base} itself, in no class folder")
    parts = with_labels_as_set(columns_of(lists, class_order), labels)
    skipped = tuple(scan.describe_skipped())
    details = [f"  skipped: {phrase}" for phrase in skipped]
    if inner_splits:
        listed = ", ".join(inner_splits)
        details.append(
            f"  note: every folder is a class that holds the same splits ({listed}), so these are the splits"
        )
    details += [f"  note: {note}" for note in _notes(scan, parts, folders, has_splits)]
    return ImageLayout(
        base,
        "folder",
        parts,
        has_splits,
        split_paths=split_paths,
        class_order=class_order,
        details=tuple(details),
        skipped=skipped,
        empty_splits=tuple(name for name in scan.subfolders if name not in parts),
    )


def list_images(base: Path) -> FolderScan:
    """Return what is below a folder; on a terminal, say that it takes a while."""
    with Logger(console=Console(stderr=True)).status(f"listing the images in {base}"):
        return scan_folder(base)


def _parts_by_split(base: Path, by_folder: dict[str, list[Path]]) -> dict[str, list[LabeledFile]]:
    """Return the images of each split, if the folders below the root are splits."""
    parts = {}
    for name, paths in by_folder.items():
        parts[name] = [LabeledFile(path, _class_name(path, base / name)) for path in paths]
        if name == NO_FOLDER or split_role(name) == UNLABELED:
            parts[name] = without_labels(parts[name])
    return parts


def _parts_by_class(
    base: Path, by_folder: dict[str, list[Path]], inner_splits: Sequence[str]
) -> dict[str, list[LabeledFile]]:
    """Return the images of each split within the classes, if the folders below the root are classes.

    Args:
        base: the root.
        by_folder: the images, by the folder below the root.
        inner_splits: names of the splits that all classes hold; if there are none, all images are in one part.
    """
    parts: dict[str, list[LabeledFile]] = {name: [] for name in inner_splits}
    for name, paths in by_folder.items():
        for path in paths:
            part = NO_SPLIT
            if inner_splits:
                part = _first_folder(path, base / name)
                # Images next to the classes are in no split, and those of the folder of unlabeled ones in its.
                if name == NO_FOLDER or split_role(name) == UNLABELED:
                    part = name
            parts.setdefault(part, []).append(LabeledFile(path, _class_name(path, base)))
    return parts


def _splits_within_classes(base: Path, by_folder: dict[str, list[Path]]) -> tuple[str, ...]:
    """Return the names of the splits that every class folder holds, as in cat/train, cat/test, dog/train, dog/test.

    Returns nothing unless the whole level looks so: there are at least two classes, and all hold images in folders of the
    same splits alone, one of which is for training.
    """
    names_of = {}
    for folder, paths in by_folder.items():
        if folder != NO_FOLDER and split_role(folder) != UNLABELED:
            names_of[folder] = {_first_folder(path, base / folder) for path in paths}
    if len(names_of) < 2:
        return ()
    splits = set().union(*names_of.values())
    roles = {split_role(name) for name in splits}
    if None in roles or TRAIN not in roles or not roles - {TRAIN, UNLABELED}:
        return ()
    for folder, names in names_of.items():
        # A class may have no images of a split, but it has the folder.
        if any(not (base / folder / name).is_dir() for name in splits - names):
            return ()
    return tuple(sorted(splits, key=lambda name: (split_role(name) != TRAIN, name)))


def _notes(scan: FolderScan, parts: dict[str, LabeledImages], folders: Sequence[str], has_splits: bool) -> list[str]:
    """Return what may not be as the user expects.

    Args:
        scan: everything below the folder.
        parts: the images by split.
        folders: names of the folders directly below the root that hold images.
        has_splits: whether these are splits.
    """
    notes = []
    has_classes = any(part.class_names() for part in parts.values())
    # The root, the split if there are any, the class, and the file.
    max_parts = len(scan.base.parts) + has_splits + 2
    num_deep = sum(len(path.parts) > max_parts for path in scan.images)
    if num_deep and has_classes:
        notes.append(
            f"in folders within those of the classes: {format_count(num_deep, 'image')}, which belong to these classes"
        )
    num_pairs = _count_raw_pairs(scan.images)
    if num_pairs:
        notes.append(f"next to an image of the same name: {format_count(num_pairs, 'raw photograph')}; both are read")
    if scan.num_outside_links:
        links = format_count(scan.num_outside_links, "link")
        notes.append(f"followed out of {scan.base}: {links}")
    num_parquet = scan.other_files[".parquet"]
    if num_parquet:
        notes.append(f"not read, because there are image files: {format_count(num_parquet, '.parquet file')}")
    if has_splits:
        return notes
    # One folder in the name of a split among others is more likely a class.
    named_as_splits = [name for name in folders if is_training_or_evaluation(name)]
    if len(named_as_splits) > 1 and len(folders) > 2:
        others = ", ".join(name for name in folders if split_role(name) is None)
        if len(others) > MAX_LISTED_LETTERS:
            others = f"{others[:MAX_LISTED_LETTERS]}..."
        notes.append(f"{', '.join(named_as_splits)} count as classes, because of the folders next to them: {others}")
    if len(folders) == 1 and not has_classes:
        inner_folder = scan.base / folders[0]
        inner = {_first_folder(path, inner_folder) for path in scan.images}
        if len(inner - {NO_FOLDER}) > 1:
            notes.append(f"everything is in {folders[0]}; its folders are splits or classes for {inner_folder}")
    return notes


def _count_raw_pairs(paths: Sequence[Path]) -> int:
    """Return how many raw photographs have another image of the same name, as cameras store both."""
    raw = {path.with_suffix("") for path in paths if path.suffix.lower() in RAW_EXTENSIONS}
    if not raw:
        return 0
    others = {path.with_suffix("") for path in paths if path.suffix.lower() not in RAW_EXTENSIONS}
    return len(raw & others)


def _are_splits(names: Sequence[str]) -> bool:
    """Return whether folders of these names, which are all folders with images of one level, are splits."""
    return all(map(is_split_name, names)) and any(map(is_training_or_evaluation, names))


def _first_folder(path: Path, base: Path) -> str:
    """Return the name of the folder below `base` that a file lies in; `NO_FOLDER` directly in `base`."""
    # Several times as fast as relative_to(), which matters for a million files.
    level = len(base.parts)
    if len(path.parts) > level + 1:
        return path.parts[level]
    return NO_FOLDER


def _class_name(path: Path, part_folder: Path) -> str | None:
    """Return the name of the class folder of a file; None directly in the part, and in a folder of unlabeled images."""
    name = _first_folder(path, part_folder)
    if name == NO_FOLDER or split_role(name) == UNLABELED:
        return None
    return name
