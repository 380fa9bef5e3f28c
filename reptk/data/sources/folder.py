"""A folder of the user's own images: which files are images, what their classes are, and how they are split."""

import difflib
import os
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import torch
from annotated_types import Ge

from reptk.config.registry import DATASETS
from reptk.core.errors import DataError
from reptk.data.decode import EXTENSIONS, MAX_PIXELS, Jpeg, PixelOptions
from reptk.data.image_files import FileReader, ImageSize, OnError, cache_folder
from reptk.data.protocol import Data, Split, with_shape

JUNK_FOLDERS = frozenset({"__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found"})
UNLABELED_FOLDERS = frozenset({"unlabeled", "unlabelled"})
EVALUATION_FOLDERS = ("val", "valid", "validation", "test", "query")
UNSUPPORTED_EXTENSIONS = frozenset({".heic", ".heif", ".cr2", ".nef", ".arw", ".dng", ".svg", ".jxl"})
"""Images that Pillow does not read: the user is told that they are skipped."""

EVALUATION_CROP = 0.875
"""Share of the shorter side that the evaluation view of a photograph retains, as is usual for ImageNet."""

Labels = Literal["auto", "folders", "none"]


class LabeledFile(NamedTuple):
    """An image file and the name of its class; None if it has no label."""

    path: Path
    class_name: str | None


@DATASETS.register("folder")
@with_shape()
def folder(
    root: str,
    size: ImageSize = 256,
    labels: Labels = "auto",
    holdout: Annotated[int, Ge(2)] = 5,
    cache: bool | str = False,
    jpeg: Jpeg = "auto",
    on_error: OnError = "skip",
    max_pixels: Annotated[int, Ge(1)] = MAX_PIXELS,
    range: tuple[int, int] = (0, 65535),
    background: str = "white",
) -> Data:
    """Your own images: any depth, with or without class folders; hidden and junk folders are skipped.

    If there are `train` and `val` (or `valid`, `validation`, `test`, `query`) folders below `root`, these are the splits.
    Otherwise every `holdout`-th image of each class, in the order of their paths, is a query and not a training image;
    a `train` folder without an evaluation folder is used in place of the root.

    Args:
        root: the folder.
        size: side in pixels of the center square that every image is decoded to.
        labels: "folders": the first folder below the root names the class; images next to the class folders and those
            below `unlabeled` have no label; "none": no labels at all; "auto": "folders" if there are at least two class
            folders with images, else "none".
        holdout: every how many-th image of a class is a query.
        cache: store the decoded images (size * size * 3 bytes each) and map them into memory: true for `~/.cache/reptk`
            (or `$XDG_CACHE_HOME/reptk`), or a folder. Built on first use, and again for files that have changed.
        jpeg: the JPEG decoder; "auto" is simplejpeg if it is installed, about twice as fast. The two differ by a level or
            two, so name one if runs on several machines have to agree.
        on_error: "skip": images that cannot be read are replaced by others in training, left out in evaluation, and listed in
            `bad_samples.csv`, as long as they are few (1 %, or 10); "stop": the first one ends the run.
        max_pixels: larger images cannot be read.
        range: values of 16-bit images that become black and white, e.g. [0,4095] for cameras with 12 bits.
        background: the color behind transparent pixels, as a name or `#rrggbb`.

    Raises:
        DataError: there is no such folder, it holds no images, or evaluation has a class that training lacks.
        EnvironmentProblem: no space for the cache, or simplejpeg is requested and not installed.
    """
    base = _existing_folder(root)
    options = PixelOptions(max_pixels, range, background)
    reader = FileReader(size, jpeg, cache_folder(cache, "folder", base, size), options, on_error)
    if (base / "train").is_dir():
        for name in EVALUATION_FOLDERS:
            if (base / name).is_dir():
                return _from_two_folders(base / "train", base / name, labels, reader)
        base = base / "train"

    files = _find_labeled_files(base, labels)
    classes = _class_names(files)
    # Without labels nothing can be evaluated, so all images are for training.
    if not classes:
        return build_data(files, None, None, (), reader, f"{base}: nothing held out")
    train, query = _hold_out(files, holdout)
    if not query:
        warnings.warn(f"no class of {base} has {holdout} images, so none is held out as a query", stacklevel=2)
        return build_data(train, None, None, classes, reader, f"{base}: nothing held out")
    bank = _labeled(train)
    protocol = f"{base}: bank the training images, queries every {holdout}th image of each class, in path order"
    return build_data(train, bank, query, classes, reader, protocol)


def find_images(base: Path) -> Iterator[Path]:
    """Yield the image files below `base`, sorted within each folder.

    Hidden and junk folders, hidden and empty files, and broken links are skipped; a folder that is linked into itself is
    read once. A warning counts skipped files that the user may have expected to be read.
    """
    visited: set[tuple[int, int]] = set()
    skipped: Counter[str] = Counter()
    for folder_name, subfolders, names in os.walk(base, followlinks=True):
        parent = Path(folder_name)
        stat = parent.stat()
        # Device and inode identify a folder, whatever link leads to it.
        if (stat.st_dev, stat.st_ino) in visited:
            subfolders.clear()  # os.walk does not descend into what is removed from its list
            continue
        visited.add((stat.st_dev, stat.st_ino))
        subfolders[:] = sorted(name for name in subfolders if not name.startswith(".") and name not in JUNK_FOLDERS)
        for name in sorted(names):
            if name.startswith("."):
                continue
            path = parent / name
            extension = path.suffix.lower()
            if extension in UNSUPPORTED_EXTENSIONS:
                skipped[f"{extension} files, which Pillow does not read"] += 1
            elif extension in EXTENSIONS:
                if path.exists() and path.stat().st_size:
                    yield path
                else:
                    skipped["empty files or broken links"] += 1
    if skipped:
        counts = ", ".join(f"{count} {what}" for what, count in sorted(skipped.items()))
        warnings.warn(f"{base}: skipped {counts}", stacklevel=2)


def build_data(
    train: list[LabeledFile],
    bank: list[LabeledFile] | None,
    query: list[LabeledFile] | None,
    classes: tuple[str, ...],
    reader: FileReader,
    protocol: str,
) -> Data:
    """Return the data set of these files.

    If all training images are in the bank, the two are one split. Without `bank` and `query`, there is no evaluation.
    """
    if bank is None or query is None:
        [train_split] = _splits([train], classes, reader)
        return Data(train_split, None, None, classes, protocol, crop=EVALUATION_CROP)
    if len(bank) == len(train):
        train_split, query_split = _splits([train, query], classes, reader)
        bank_split = train_split
    else:
        train_split, query_split, bank_split = _splits([train, query, bank], classes, reader)
    return Data(train_split, bank_split, query_split, classes, protocol, crop=EVALUATION_CROP)


def _splits(parts: list[list[LabeledFile]], classes: tuple[str, ...], reader: FileReader) -> list[Split]:
    label_of: dict[str | None, int] = {name: label for label, name in enumerate(classes)}
    label_of[None] = -1
    images = reader.read([[file.path for file in files] for files in parts])
    splits = []
    for files, part_images in zip(parts, images, strict=True):
        labels = torch.tensor([label_of[file.class_name] for file in files], dtype=torch.long)
        splits.append(Split(part_images, labels))
    return splits


def _from_two_folders(train_folder: Path, evaluation_folder: Path, labels: Labels, reader: FileReader) -> Data:
    train = _find_labeled_files(train_folder, labels)
    classes = _class_names(train)
    protocol = f"bank {train_folder}, queries {evaluation_folder}"
    # One class folder is enough here if training has some: it has to be one of theirs.
    query = _find_labeled_files(evaluation_folder, labels, min_classes=1 if classes else 2)
    if not classes:
        return build_data(train, None, None, (), reader, protocol)
    unknown = sorted(set(_class_names(query)) - set(classes))
    if unknown:
        raise DataError(f"{evaluation_folder} has classes that {train_folder} lacks: {', '.join(unknown[:5])}")
    if not _class_names(query):
        raise DataError(
            f"{train_folder} has class folders and {evaluation_folder} has none; give both the same, or data.labels=none"
        )
    return build_data(train, _labeled(train), _labeled(query), classes, reader, protocol)


def _hold_out(files: list[LabeledFile], every: int) -> tuple[list[LabeledFile], list[LabeledFile]]:
    """Return the training files, and every so many-th file of each class, which are the queries."""
    train: list[LabeledFile] = []
    query: list[LabeledFile] = []
    num_files: Counter[str] = Counter()
    for file in files:
        if file.class_name is None:
            train.append(file)
            continue
        num_files[file.class_name] += 1
        if num_files[file.class_name] % every == 0:
            query.append(file)
        else:
            train.append(file)
    return train, query


def _find_labeled_files(base: Path, labels: Labels, min_classes: int = 2) -> list[LabeledFile]:
    """Return the image files below `base`, whose class is the first folder of their path.

    Args:
        base: the folder.
        labels: as in `folder`.
        min_classes: how many class folders "auto" needs in order to use them.

    Raises:
        DataError: no images, or `labels` is "folders" and there is no class folder.
    """
    paths = list(find_images(base))
    if not paths:
        raise DataError(f"no images in {base.resolve()} (data.root); {_describe_content(base)}")
    files = [LabeledFile(path, _first_folder(path, base)) for path in paths]
    num_classes = len(_class_names(files))
    if labels == "none" or (labels == "auto" and num_classes < min_classes):
        return [LabeledFile(path, None) for path in paths]
    if num_classes == 0:
        raise DataError(f"data.labels is 'folders', but all images lie in {base} itself, in no class folder")
    return files


def _first_folder(path: Path, base: Path) -> str | None:
    """Return the name of the class folder of a file; None directly below `base` and in a folder of unlabeled images."""
    parts = path.relative_to(base).parts
    if len(parts) == 1 or parts[0] in UNLABELED_FOLDERS:
        return None
    return parts[0]


def _class_names(files: list[LabeledFile]) -> tuple[str, ...]:
    return tuple(sorted({file.class_name for file in files if file.class_name is not None}))


def _labeled(files: list[LabeledFile]) -> list[LabeledFile]:
    return [file for file in files if file.class_name is not None]


def _existing_folder(root: str) -> Path:
    base = Path(root).expanduser()
    if base.is_dir():
        return base
    if base.exists():
        raise DataError(f"{root} (data.root) is a file; name the folder that holds the images")
    parent = next(folder for folder in base.resolve().parents if folder.is_dir())
    # `parent` is the nearest folder that exists; most often the last part of the path is misspelled.
    siblings = [path.name for path in parent.iterdir() if path.is_dir()]
    nearest = difflib.get_close_matches(base.name, siblings, n=1)
    if nearest:
        hint = f"did you mean {parent / nearest[0]}?"
    else:
        hint = f"the nearest folder that exists is {parent}"
    raise DataError(f"no folder {root} (data.root, {base.resolve()}); {hint}")


def _describe_content(base: Path) -> str:
    extensions = sorted({path.suffix.lower() or path.name for path in base.rglob("*") if path.is_file()})
    if extensions:
        content = f"there are files of {', '.join(extensions[:6])}"
    else:
        content = "it is empty"
    return f"{content}; images are {' '.join(sorted(EXTENSIONS))}"
