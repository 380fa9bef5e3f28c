"""ImageNet as it lies on disks: which folders and files hold the images of each synset, for training and validation.

| distribution | training images | validation images and their labels |
|---|---|---|
| torchvision's | `train/nXXXXXXXX` | `val/nXXXXXXXX` |
| Kaggle's | `ILSVRC/Data/CLS-LOC/train/nXXXXXXXX` | `ILSVRC/Data/CLS-LOC/val`, `LOC_val_solution.csv` |
| the original | `train/nXXXXXXXX` | `val`, `ILSVRC2012_validation_ground_truth.txt` and `meta.mat` of the devkit |
| ImageNet-100 of Kaggle | `train.X1/nXXXXXXXX` to `train.X4` | `val.X/nXXXXXXXX` |
| Tiny ImageNet | `train/nXXXXXXXX/images` | `val/images`, `val/val_annotations.txt` |
"""

import csv
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from reptk.core.counts import format_count
from reptk.core.errors import DataError
from reptk.core.foreign_files import read_text, require_regular_file
from reptk.data.layouts.folder_scan import scan_folder
from reptk.data.layouts.image_layout import LabeledFile

SYNSET = re.compile(r"n\d{8}")
"""What the class folders of ImageNet are called."""

TRAIN_FOLDER = re.compile(r"(ilsvrc2012_img_)?train(\.x\d*)?", re.IGNORECASE)
VAL_FOLDER = re.compile(r"(ilsvrc2012_img_)?val(idation)?(\.x\d*)?", re.IGNORECASE)

INNER_FOLDERS = (".", "ILSVRC/Data/CLS-LOC", "Data/CLS-LOC", "CLS-LOC", "tiny-imagenet-200", "imagenet", "imagenet100")
"""Where the folders of training and validation images may be, below the folder that the user names."""

MAX_LEVELS_UP = 3
"""How far above those folders Kaggle's and the devkit's files of labels are looked for."""

KAGGLE_LABELS = "LOC_val_solution.csv"
DEVKIT_LABELS = "ILSVRC2012_validation_ground_truth.txt"
DEVKIT_SYNSETS = "meta.mat"
MAX_DEVKIT_BYTES = 1 << 20
TINY_LABELS = "val_annotations.txt"
DEVKIT_FOLDERS = (".", "data", "ILSVRC2012_devkit_t12/data", "ILSVRC2012_devkit_t12", "devkit/data", "devkit")


@dataclass(frozen=True)
class ImageNetFolders:
    """The folders of an ImageNet distribution.

    Args:
        base: the folder that holds them; the user's, if there are none.
        train: folders of each synset, by its name.
        val: folders of each synset, by its name; empty if the validation images are not sorted into folders.
        unsorted_val: folders of validation images that are not sorted into folders.
    """

    base: Path
    train: dict[str, list[Path]]
    val: dict[str, list[Path]]
    unsorted_val: list[Path]


def find_imagenet(root: Path) -> ImageNetFolders:
    """Return the folders of the ImageNet distribution in `root` or, as archives are unpacked, a little below."""
    for inner in INNER_FOLDERS:
        base = root / inner
        if not base.is_dir():
            continue
        folders = _subfolders(base)
        train_folders = [path for path in folders if TRAIN_FOLDER.fullmatch(path.name)]
        if train_folders:
            val_folders = [path for path in folders if VAL_FOLDER.fullmatch(path.name)]
            val = _synset_folders(val_folders)
            unsorted_val = val_folders
            if val:
                unsorted_val = []
            return ImageNetFolders(base, _synset_folders(train_folders), val, unsorted_val)
    return ImageNetFolders(root, {}, {}, [])


def list_train(folders: ImageNetFolders, synsets: Iterable[str]) -> list[LabeledFile]:
    """Return the training images of these synsets, in their order."""
    return list(_files_of_synsets(folders.train, synsets))


def list_val(folders: ImageNetFolders, synsets: Iterable[str]) -> list[LabeledFile]:
    """Return the validation images of these synsets, in their order.

    Raises:
        DataError: the images are not sorted into folders, and there is no file of their labels, or it lacks some.
    """
    synsets = list(synsets)
    if not folders.unsorted_val:
        return list(_files_of_synsets(folders.val, synsets))
    paths = [path for folder in folders.unsorted_val for path in scan_folder(folder).images]
    if not paths:
        return []
    labels, labels_file = _read_val_labels(folders)
    unlabeled = [path for path in paths if path.stem not in labels]
    if unlabeled:
        raise DataError(
            f"{labels_file} has no label for {len(unlabeled):,} of {format_count(len(paths), 'image')}, e.g. {unlabeled[0]}"
        )
    files = [LabeledFile(path, labels[path.stem]) for path in paths]
    order = {name: number for number, name in enumerate(synsets)}
    files = [file for file in files if file.class_name in order]
    return sorted(files, key=lambda file: (order[file.class_name], file.path))


def _subfolders(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir())
    except OSError as cause:
        raise DataError(f"cannot open {folder}: {cause}") from cause


def _synset_folders(parts: Iterable[Path]) -> dict[str, list[Path]]:
    folders: dict[str, list[Path]] = {}
    for part in parts:
        for path in _subfolders(part):
            if SYNSET.fullmatch(path.name):
                folders.setdefault(path.name, []).append(path)
    return folders


def _files_of_synsets(folders: dict[str, list[Path]], synsets: Iterable[str]) -> Iterator[LabeledFile]:
    for name in synsets:
        for folder in folders.get(name, []):
            for path in scan_folder(folder).images:
                yield LabeledFile(path, name)


def _read_val_labels(folders: ImageNetFolders) -> tuple[dict[str, str], Path]:
    """Return the synset of each validation image, by its name without the ending, and the file that says so."""
    for folder in folders.unsorted_val:
        tiny = folder / TINY_LABELS
        if tiny.is_file():
            return _read_tiny_labels(tiny), tiny
    parents = [*folders.unsorted_val, folders.base, *folders.base.absolute().parents[:MAX_LEVELS_UP]]
    for parent in parents:
        if (parent / KAGGLE_LABELS).is_file():
            return _read_kaggle_labels(parent / KAGGLE_LABELS), parent / KAGGLE_LABELS
    for parent in parents:
        for inner in DEVKIT_FOLDERS:
            devkit = parent / inner
            if (devkit / DEVKIT_LABELS).is_file():
                return _read_devkit_labels(devkit), devkit / DEVKIT_LABELS
    raise DataError(
        f"the validation images in {folders.unsorted_val[0]} are not sorted into folders, and their labels are missing: put "
        f"{KAGGLE_LABELS} (Kaggle), the devkit's {DEVKIT_LABELS} and {DEVKIT_SYNSETS}, or {TINY_LABELS} (Tiny ImageNet) into "
        f"{folders.base}"
    )


def _read_tiny_labels(path: Path) -> dict[str, str]:
    """Read lines such as `val_0.JPEG <tab> n03444034 <tab> 0 <tab> 32 <tab> 44 <tab> 62`."""
    labels = {}
    for number, line in enumerate(_lines(path), 1):
        cells = line.split("\t")
        if len(cells) < 2 or not SYNSET.fullmatch(cells[1].strip()):
            raise DataError(f"{path}, line {number}: expected a file, a tab and a synset such as n01440764")
        labels[Path(cells[0]).stem] = cells[1].strip()
    return labels


def _read_kaggle_labels(path: Path) -> dict[str, str]:
    """Read lines such as `ILSVRC2012_val_00048981,n03995372 85 1 499 272`, below a line of headings."""
    labels = {}
    try:
        lines = list(csv.reader(_lines(path)))
    except csv.Error as cause:
        raise DataError(f"cannot read {path} as CSV: {cause}; download it again") from cause
    for number, cells in enumerate(lines, 1):
        if number == 1 or not cells:
            continue
        synset = ""
        if len(cells) > 1:
            synset = cells[1].split(" ")[0]
        if not SYNSET.fullmatch(synset):
            raise DataError(f"{path}, line {number}: expected an image, a comma and a synset such as n01440764")
        labels[cells[0]] = synset
    return labels


def _read_devkit_labels(devkit: Path) -> dict[str, str]:
    """Read a number for each validation image, which meta.mat assigns to a synset."""
    synset_of = _read_devkit_synsets(devkit / DEVKIT_SYNSETS)
    labels = {}
    for number, line in enumerate(_lines(devkit / DEVKIT_LABELS), 1):
        if not line.strip():
            continue
        if not line.strip().isdecimal() or int(line) not in synset_of:
            raise DataError(
                f"{devkit / DEVKIT_LABELS}, line {number}: {line[:20]!r} is no number of a synset in meta.mat"
            )
        labels[f"ILSVRC2012_val_{number:08}"] = synset_of[int(line)]
    return labels


def _read_devkit_synsets(path: Path) -> dict[int, str]:
    """Return the WordNet id of each ILSVRC2012_ID."""
    import scipy.io

    if not path.is_file():
        raise DataError(
            f"{path} is missing: it says which synset each number of {DEVKIT_LABELS} is; copy it from the devkit"
        )
    try:
        require_regular_file(path, MAX_DEVKIT_BYTES)
        synsets = scipy.io.loadmat(path, squeeze_me=True)["synsets"]
        return {int(entry["ILSVRC2012_ID"]): str(entry["WNID"]) for entry in synsets}
    except Exception as cause:  # whatever scipy raises about a damaged file
        raise DataError(
            f"cannot read {path} as the devkit's table of synsets: {cause}; copy it from the devkit"
        ) from cause


def _lines(path: Path) -> list[str]:
    try:
        return read_text(path, encoding="utf-8-sig", errors="surrogateescape").splitlines()
    except OSError as cause:
        raise DataError(f"cannot read {path}: {cause}") from cause
