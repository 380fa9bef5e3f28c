"""A user's own images, any folder; and ImageNet-100 picked from an ImageNet folder."""

import difflib
import os
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Literal

import torch
from annotated_types import Ge
from torch import Tensor

from reptk.data.decode import EXTENSIONS, decode
from reptk.data.splits import Data, Split, described
from reptk.errors import DataError
from reptk.registry import DATASETS

JUNK = frozenset({"__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found"})
UNLABELED = frozenset({"unlabeled", "unlabelled"})
EVAL_NAMES = ("val", "valid", "validation", "test", "query")

UNREAD = frozenset({".heic", ".heif", ".cr2", ".nef", ".arw", ".dng", ".svg", ".jxl"})

Pixels = Annotated[int, Ge(8)]
Found = list[tuple[Path, str | None]]
"""Image files in order, each with the name of its class."""


class Files:
    """Image files, decoded when fetched; paths are kept in one buffer, which loader processes share."""

    def __init__(self, paths: Sequence[Path], size: int) -> None:
        self.size = size
        encoded = [os.fsencode(path) for path in paths]
        self._bytes = torch.frombuffer(bytearray(b"".join(encoded) or b"\0"), dtype=torch.uint8)
        self._ends = torch.tensor([0, *(len(text) for text in encoded)]).cumsum(0)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def path(self, number: int) -> Path:
        """Where image `number` lies."""
        return Path(os.fsdecode(self._bytes[self._ends[number] : self._ends[number + 1]].numpy().tobytes()))

    def fetch(self, numbers: Tensor) -> Tensor:
        if not len(numbers):
            return torch.empty(0, 3, self.size, self.size, dtype=torch.uint8)
        return torch.stack([decode(self.path(number), self.size) for number in numbers.tolist()])


@DATASETS.register("folder")
@described()
def folder(
    root: str,
    size: Pixels = 256,
    labels: Literal["auto", "folders", "none"] = "auto",
    holdout: Annotated[int, Ge(2)] = 5,
) -> Data:
    """Your own images: any depth, class folders or none; hidden and junk folders are passed over.

    With `train` and `val` (or `valid`, `validation`, `test`, `query`) folders below `root`, these are the splits. Else
    every `holdout`-th image of each class, in the order of their paths, is a query and no part of training; a `train`
    folder alone is taken for the root.

    Args:
        root: the folder.
        size: side in pixels of the centre square that every image is decoded to.
        labels: "folders": the first folder below the root names the class, images beside the folders and those below
            `unlabeled` have none; "none": no labels at all; "auto": folders, if there are at least two with images.
        holdout: every how many-th image of a class is a query.

    Raises:
        DataError: no such folder, no images in it, or a class of the evaluation folder that training does not know.
    """
    base = _existing(root)
    evaluation = next((base / name for name in EVAL_NAMES if (base / name).is_dir()), None)
    if (base / "train").is_dir():
        if evaluation is not None:
            return _two_folders(base / "train", evaluation, labels, size)
        base = base / "train"
    found = _scan(base, labels)
    classes = _classes(found)
    train, query = (found, []) if not classes else _hold_out(found, holdout)
    kept = [item for item in train if item[1] is not None]
    if classes and not query:
        warnings.warn(f"no class of {base} has {holdout} images, so none is held out as a query", stacklevel=2)
    protocol = f"{base}: bank the training images, queries every {holdout}th image of each class, in path order"
    return _data(train, kept, query, classes, size, protocol if query else f"{base}: nothing held out")


@DATASETS.register("imagenet100")
@described(classes=100)
def imagenet100(root: str = "data/imagenet100", size: Pixels = 256) -> Data:
    """ImageNet-100 (the 100 classes of the CMC list): `train` trains and is searched, `val` are the queries.

    Args:
        root: an ImageNet-1k folder (`train` and `val` with synset folders), of which the 100 classes are picked, or a
            ready ImageNet-100 folder of the same shape.
        size: side in pixels of the centre square that every image is decoded to.

    Raises:
        DataError: no such folder, or classes missing in it.
    """
    synsets = (files("reptk.data") / "imagenet100.txt").read_text().split()
    base = Path(root).expanduser()
    missing = {part: [name for name in synsets if not (base / part / name).is_dir()] for part in ("train", "val")}
    if any(missing.values()):
        raise DataError(_imagenet_help(base, missing))
    parts = [[(path, name) for name in synsets for path in _images(base / part / name)] for part in ("train", "val")]
    empty = {part: set(synsets) - {name for _, name in found} for part, found in zip(missing, parts, strict=True)}
    if any(empty.values()):
        raise DataError(_imagenet_help(base, {part: sorted(names) for part, names in empty.items()}))
    protocol = "ImageNet-100: bank the training images, queries the validation images of the 100 classes"
    return _data(parts[0], parts[0], parts[1], tuple(synsets), size, protocol)


def _data(train: Found, bank: Found, query: Found, classes: tuple[str, ...], size: int, protocol: str) -> Data:
    numbers = {name: number for number, name in enumerate(classes)}

    def split(found: Found) -> Split:
        paths, names = [path for path, _ in found], [name for _, name in found]
        return Split(Files(paths, size), torch.tensor([numbers.get(name, -1) for name in names], dtype=torch.long))

    made = split(train)
    if not query:
        return Data(made, None, None, classes, protocol, crop=0.875)
    searched = made if len(bank) == len(train) else split(bank)
    return Data(made, searched, split(query), classes, protocol, crop=0.875)


def _two_folders(train: Path, evaluation: Path, labels: str, size: int) -> Data:
    found = _scan(train, labels)
    classes = _classes(found)
    query = _scan(evaluation, labels, at_least=1 if classes else 2)
    strange = sorted({name for _, name in query if name is not None} - set(classes))
    if strange and classes:
        raise DataError(f"{evaluation} has classes that {train} lacks: {', '.join(strange[:5])}")
    if classes and not _classes(query):
        raise DataError(f"{train} has class folders and {evaluation} has none; give both the same, or data.labels=none")
    kept = [item for item in found if item[1] is not None]
    query = [item for item in query if item[1] is not None] if classes else []
    return _data(found, kept, query, classes, size, f"bank {train}, queries {evaluation}")


def _hold_out(found: Found, every: int) -> tuple[Found, Found]:
    train, query = [], []
    seen: dict[str, int] = {}
    for path, name in found:
        if name is not None:
            seen[name] = seen.get(name, 0) + 1
        held = name is not None and seen[name] % every == 0
        (query if held else train).append((path, name))
    return train, query


def _scan(base: Path, labels: str, at_least: int = 2) -> Found:
    found = [(path, path.relative_to(base).parts) for path in _images(base)]
    if not found:
        raise DataError(f"no images in {base.resolve()} (data.root); {_what_is_there(base)}")
    folders = {parts[0] for _, parts in found if len(parts) > 1} - UNLABELED
    if labels == "none" or (labels == "auto" and len(folders) < at_least):
        return [(path, None) for path, _ in found]
    if not folders:
        raise DataError(f"data.labels is 'folders', but all images lie in {base} itself, in no class folder")
    return [(path, parts[0] if parts[0] in folders and len(parts) > 1 else None) for path, parts in found]


def _images(base: Path) -> Iterator[Path]:
    """Image files below `base`, sorted; no hidden or junk folders, no empty files, no broken or looping links."""
    seen: set[tuple[int, int]] = set()
    passed: Counter[str] = Counter()
    for place, folders, names in os.walk(base, followlinks=True):
        stat = Path(place).stat()
        if (stat.st_dev, stat.st_ino) in seen:
            folders.clear()
            continue
        seen.add((stat.st_dev, stat.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in JUNK)
        for name in sorted(names):
            path = Path(place) / name
            if name.startswith("."):
                continue
            if path.suffix.lower() in UNREAD:
                passed[f"{path.suffix.lower()} files, which Pillow does not read"] += 1
            elif path.suffix.lower() in EXTENSIONS:
                if path.exists() and path.stat().st_size:
                    yield path
                else:
                    passed["empty files or broken links"] += 1
    if passed:
        counts = ", ".join(f"{number} {what}" for what, number in sorted(passed.items()))
        warnings.warn(f"{base}: passed over {counts}", stacklevel=2)


def _classes(found: Found) -> tuple[str, ...]:
    return tuple(sorted({name for _, name in found if name is not None}))


def _existing(root: str) -> Path:
    base = Path(root).expanduser()
    if base.is_dir():
        return base
    if base.exists():
        raise DataError(f"{root} (data.root) is a file; name the folder that holds the images")
    parent = next(place for place in base.resolve().parents if place.is_dir())
    close = difflib.get_close_matches(base.name, [place.name for place in parent.iterdir() if place.is_dir()], n=1)
    hint = f"; did you mean {parent / close[0]}?" if close else f"; the nearest folder that exists is {parent}"
    raise DataError(f"no folder {root} (data.root, {base.resolve()}){hint}")


def _what_is_there(base: Path) -> str:
    endings = sorted({path.suffix.lower() or path.name for path in base.rglob("*") if path.is_file()})
    there = f"there are files of {', '.join(endings[:6])}" if endings else "it is empty"
    return f"{there}; images are {' '.join(sorted(EXTENSIONS))}"


def _imagenet_help(base: Path, missing: dict[str, list[str]]) -> str:
    lacking = [f"{part}/ lacks {len(names)} of the 100 classes" for part, names in missing.items() if names]
    why = f"{base} lacks classes: {', '.join(lacking)}" if base.is_dir() and lacking else f"no images in {base}"
    return (
        f"imagenet100: {why} (data.root)\n"
        "  data.root=/path/to/imagenet      an ImageNet-1k folder (train/ and val/ with synset folders): the 100 "
        "classes are picked from it\n"
        "  data.root=/path/to/imagenet100   or a ready ImageNet-100 folder\n"
        "  without any data: add --smoke"
    )
