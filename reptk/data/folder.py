"""A user's own images, any folder; and ImageNet-100 picked from an ImageNet folder."""

import difflib
import hashlib
import os
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from annotated_types import Ge
from numpy.typing import NDArray
from torch import Tensor

from reptk.config.registry import DATASETS
from reptk.core.errors import DataError
from reptk.data.cache import Cache, Part, default_place, key_of
from reptk.data.decode import DECODE_VERSION, EXTENSIONS, Jpeg, decode_into, decoder, versions_of
from reptk.data.protocol import Data, Images, Split, fetch_batch, with_shape

JUNK = frozenset({"__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found"})
UNLABELED = frozenset({"unlabeled", "unlabelled"})
EVAL_NAMES = ("val", "valid", "validation", "test", "query")

UNREAD = frozenset({".heic", ".heif", ".cr2", ".nef", ".arw", ".dng", ".svg", ".jxl"})

Pixels = Annotated[int, Ge(8)]
Found = list[tuple[Path, str | None]]
"""Image files in order, each with the name of its class."""


class Files:
    """Image files, decoded when fetched; paths are kept in one buffer.

    Pillow's own remarks on odd files are silenced, for good: such filters belong to the whole process, and the threads
    that decode cannot set their own.
    """

    def __init__(self, paths: Sequence[Path], size: int, jpeg: Jpeg = "auto") -> None:
        self.size, self.jpeg = size, decoder(jpeg)
        self.decoded_by = versions_of(self.jpeg)
        encoded = [os.fsencode(path) for path in paths]
        self._bytes = torch.frombuffer(bytearray(b"".join(encoded) or b"\0"), dtype=torch.uint8)
        self._ends = torch.tensor([0, *(len(text) for text in encoded)]).cumsum(0)
        warnings.filterwarnings("ignore", module=r"PIL\.")

    def __len__(self) -> int:
        return len(self._ends) - 1

    def path(self, number: int) -> Path:
        """Where image `number` lies."""
        return Path(os.fsdecode(self._bytes[self._ends[number] : self._ends[number + 1]].numpy().tobytes()))

    def fetch_into(self, numbers: Tensor, rows: NDArray[np.uint8]) -> None:
        for number, row in zip(numbers.tolist(), rows, strict=True):
            decode_into(self.path(number), row, self.jpeg)

    def fetch(self, numbers: Tensor) -> Tensor:
        return fetch_batch(self, numbers)


@dataclass(frozen=True)
class _Reading:
    """How files become images: at which size, by whom, and the folder that keeps them decoded, if one does."""

    size: int
    jpeg: Jpeg
    place: Path | None

    def __call__(self, *parts: Sequence[Path]) -> list[Images]:
        if self.place is None:
            return [Files(paths, self.size, self.jpeg) for paths in parts]
        every = sorted({path for paths in parts for path in paths})
        files = Files(every, self.size, self.jpeg)
        keys = [key_of(path, f"{files.decoded_by}, {self.size} px, decode {DECODE_VERSION}") for path in every]
        cache = Cache(files, keys, self.place, maker=files.decoded_by)
        numbers = {path: number for number, path in enumerate(every)}
        return [Part(cache, torch.tensor([numbers[path] for path in paths], dtype=torch.long)) for paths in parts]


def _kept_in(cache: bool | str, name: str, base: Path, size: int) -> Path | None:
    if cache is False:
        return None
    digest = hashlib.blake2b(os.fsencode(base.resolve()), digest_size=4).hexdigest()
    home = default_place() if cache is True else Path(cache).expanduser()
    return home.absolute() / f"{name}-{base.resolve().name}-{size}px-{digest}"


@DATASETS.register("folder")
@with_shape()
def folder(
    root: str,
    size: Pixels = 256,
    labels: Literal["auto", "folders", "none"] = "auto",
    holdout: Annotated[int, Ge(2)] = 5,
    cache: bool | str = False,
    jpeg: Jpeg = "auto",
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
        cache: keep the decoded images (size * size * 3 bytes each) and map them into memory: true for `~/.cache/reptk`
            (or `$XDG_CACHE_HOME/reptk`), or a folder. Built when first asked for, again for files that have changed.
        jpeg: who decodes JPEG; "auto" is simplejpeg where it is installed, about twice as fast. The two differ
            by a level or two, so name one where runs of several machines have to agree.

    Raises:
        DataError: no such folder, no images in it, or a class of the evaluation folder that training does not know.
        EnvironmentProblem: no room for the cache, or simplejpeg asked for and not installed.
    """
    base = _existing(root)
    read = _Reading(size, jpeg, _kept_in(cache, "folder", base, size))
    evaluation = next((base / name for name in EVAL_NAMES if (base / name).is_dir()), None)
    if (base / "train").is_dir():
        if evaluation is not None:
            return _two_folders(base / "train", evaluation, labels, read)
        base = base / "train"
    found = _scan(base, labels)
    classes = _classes(found)
    train, query = (found, []) if not classes else _hold_out(found, holdout)
    kept = [item for item in train if item[1] is not None]
    if classes and not query:
        warnings.warn(f"no class of {base} has {holdout} images, so none is held out as a query", stacklevel=2)
    protocol = f"{base}: bank the training images, queries every {holdout}th image of each class, in path order"
    return _data(train, kept, query, classes, read, protocol if query else f"{base}: nothing held out")


@DATASETS.register("imagenet100")
@with_shape(classes=100)
def imagenet100(
    root: str = "data/imagenet100", size: Pixels = 256, cache: bool | str = False, jpeg: Jpeg = "auto"
) -> Data:
    """ImageNet-100 (the 100 classes of the CMC list): `train` trains and is searched, `val` are the queries.

    Args:
        root: an ImageNet-1k folder (`train` and `val` with synset folders), of which the 100 classes are picked, or a
            ready ImageNet-100 folder of the same shape.
        size: side in pixels of the centre square that every image is decoded to.
        cache, jpeg: as of `folder`.

    Raises:
        DataError: no such folder, or classes missing in it.
        EnvironmentProblem: no room for the cache, or simplejpeg asked for and not installed.
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
    read = _Reading(size, jpeg, _kept_in(cache, "imagenet100", base, size))
    return _data(parts[0], parts[0], parts[1], tuple(synsets), read, protocol)


def _data(train: Found, bank: Found, query: Found, classes: tuple[str, ...], read: _Reading, protocol: str) -> Data:
    numbers = {name: number for number, name in enumerate(classes)}
    parts = [train, query] if not query or len(bank) == len(train) else [train, query, bank]
    images = read(*([path for path, _ in found] for found in parts))
    labels = [torch.tensor([numbers.get(name, -1) for _, name in found], dtype=torch.long) for found in parts]
    made = [Split(*pair) for pair in zip(images, labels, strict=True)]
    if not query:
        return Data(made[0], None, None, classes, protocol, crop=0.875)
    searched = made[0] if len(made) == 2 else made[2]
    return Data(made[0], searched, made[1], classes, protocol, crop=0.875)


def _two_folders(train: Path, evaluation: Path, labels: str, read: _Reading) -> Data:
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
    return _data(found, kept, query, classes, read, f"bank {train}, queries {evaluation}")


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
