"""Where images to embed come from: a folder, a table of paths (CSV), or a data set; every image once."""

import csv
import hashlib
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reptk import config
from reptk.config.registry import DATASETS, unknown
from reptk.core.errors import DataError, UsageError
from reptk.data import Data, Images, InMemory, Split
from reptk.data.decode import Jpeg
from reptk.data.image_files import ImageFiles
from reptk.embeddings.texts import Texts

SPLITS = ("train", "bank", "query")


@dataclass(frozen=True)
class Part:
    """Images of one kind: a split in memory, or all the files. Labels (n,), an id each, paths if they are files."""

    images: Images
    labels: Tensor
    ids: Sequence[str]
    paths: Sequence[str] | None = None


@dataclass(frozen=True)
class Source:
    """Everything that is to be embedded.

    Args:
        parts: its images.
        classes: class names, by label.
        crop: share of the shorter side that evaluation keeps.
        about: which data that is; `root` is what paths start from.
    """

    parts: list[Part]
    classes: tuple[str, ...]
    crop: float
    about: dict[str, Any]

    def __len__(self) -> int:
        return sum(len(part.labels) for part in self.parts)


def from_images(images: Tensor) -> Source:
    """Images (n, 3, H, W) uint8 that are in memory already; their ids are their numbers."""
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3) or not len(images):
        raise DataError(f"images must be uint8 (n, 3, H, W), got {images.dtype} {tuple(images.shape)}")
    ids = Texts.of(map(str, range(len(images))))
    return Source([Part(InMemory(images), torch.full((len(images),), -1), ids)], (), 1.0, {"name": "tensor"})


def from_csv(table: Path, *, side_px: int, jpeg: Jpeg, crop: float) -> Source:
    """The images that a CSV file lists: path[,label[,id]], with or without a line of headings.

    Paths count from the table's folder; headings may stand in any order. Labels are class names, or empty.

    Raises:
        DataError: unreadable, no rows, or an id that stands there twice.
    """
    rows = _table(table)
    root = table.absolute().parent
    paths = Texts.of(row[0] for row in rows)
    files = ImageFiles([root / path for path in paths], side_px, jpeg)
    classes = tuple(sorted({row[1] for row in rows if row[1]}, key=_by_number))
    numbers = {name: number for number, name in enumerate(classes)}
    labels = torch.tensor([numbers.get(row[1], -1) for row in rows], dtype=torch.long)
    ids = Texts.of(row[2] or row[0] for row in rows) if any(row[2] for row in rows) else paths
    if ids is not paths:
        _refuse_repeated(ids, table)
    return Source(
        [Part(files, labels, ids, paths)], classes, crop, {"name": "csv", "table": str(table), "root": str(root)}
    )


def from_data_set(part: config.Table, *, split: str | None = None, jpeg: Jpeg = "auto") -> Source:
    """A data set by its name and arguments, as a recipe gives them.

    Args:
        part: `{"name": ..., arguments}`.
        split: train, bank or query; every distinct image by default.
        jpeg: who decodes, for data sets of files.

    Raises:
        UsageError: unknown data set or argument.
        DataError: it is missing or empty, or has no such split.
    """
    part = config.complete("data", part)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*none is held out as a query")
        data = config.build(DATASETS, part)
    splits = _distinct(data) if split is None else {split: _split(data, split, part["name"])}
    about = {**part, "split": split or "all"}
    if all(isinstance(one.images, ImageFiles) for one in splits.values()):
        return _of_files(list(splits.values()), data, about, jpeg)
    parts = [
        Part(one.images, one.labels, Texts.of(f"{name}/{number}" for number in range(len(one))))
        for name, one in splits.items()
    ]
    return Source(parts, data.classes, data.crop, about)


def named(text: str) -> config.Table:
    """What `--data` names: a folder, or a registered data set.

    Raises:
        DataError: neither.
    """
    if Path(text).expanduser().is_dir():
        return {"name": "folder", "root": text}
    if text in DATASETS.names():
        return {"name": text}
    raise DataError(f"there is no folder or file {text}, and {unknown('data set', text, DATASETS.names())}")


def _of_files(splits: list[Split], data: Data, about: config.Table, jpeg: Jpeg) -> Source:
    """All files of the splits, once each, in the order of their paths."""
    found = {split.images.path(number): label for split in splits for number, label in enumerate(split.labels.tolist())}
    places = sorted(found)
    files = ImageFiles(places, splits[0].images.size, jpeg)
    root = Path(about.get("root", ".")).expanduser().absolute()
    paths = Texts.of(os.path.relpath(place.absolute(), root) for place in places)
    labels = torch.tensor([found[place] for place in places], dtype=torch.long)
    return Source([Part(files, labels, paths, paths)], data.classes, data.crop, about | {"root": str(root)})


def _distinct(data: Data) -> dict[str, Split]:
    """The splits, without those whose images are all in an earlier one."""
    kept: dict[str, Split] = {}
    for name in ("train", "query", "bank"):
        split = getattr(data, name)
        if split is not None and not any(_is_within(split, other) for other in kept.values()):
            kept[name] = split
    return kept


def _is_within(split: Split, other: Split) -> bool:
    if split is other or split.images is other.images:
        return True
    if not (isinstance(split.images, InMemory) and isinstance(other.images, InMemory)) or len(split) > len(other):
        return False
    known = {_digest(image) for image in other.images.pixels}
    return all(_digest(image) in known for image in split.images.pixels)


def _digest(image: Tensor) -> bytes:
    return hashlib.blake2b(image.contiguous().numpy(), digest_size=16).digest()


def _split(data: Data, name: str, of: str) -> Split:
    if name not in SPLITS:
        raise UsageError(f"--split must be {', '.join(SPLITS[:-1])} or {SPLITS[-1]}, got {name!r}")
    found = getattr(data, name)
    if found is None:
        there = [one for one in SPLITS if getattr(data, one) is not None]
        raise DataError(f"{of} has no {name} split, only {', '.join(there)}")
    return found


def _table(table: Path) -> list[tuple[str, str, str]]:
    """(path, label, id) of every row, empty where there is none."""
    try:
        with table.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
            rows = [row for row in csv.reader(file, strict=True) if any(row)]
    except (OSError, csv.Error) as cause:
        raise DataError(f"cannot read {table} as CSV: {cause}. It wants lines of path[,label[,id]]") from cause
    names = [cell.strip().casefold() for cell in rows[0]] if rows else []
    headed = "path" in names
    order = [names.index(name) if name in names else None for name in ("path", "label", "id")] if headed else [0, 1, 2]
    if headed:
        rows = rows[1:]
    elif any(len(row) > 3 for row in rows):
        raise DataError(f"{table} has more than 3 columns and no line of headings (path,label,id)")
    cells = [tuple(row[at] if at is not None and at < len(row) else "" for at in order) for row in rows]
    if not cells:
        raise DataError(f"{table} lists no images; it wants lines of path[,label[,id]]")
    empty = [number for number, row in enumerate(cells, 1 + headed) if not row[0] or "\0" in row[0]]
    if empty:
        raise DataError(f"{table} has {len(empty)} rows without a path, first row {empty[0]}")
    return cells


def _refuse_repeated(ids: Sequence[str], table: Path) -> None:
    seen: set[str] = set()
    for name in ids:
        if name in seen:
            raise DataError(f"{table} has the id {name!r} twice; ids tell images apart")
        seen.add(name)


def _by_number(name: str) -> tuple[int, int, str]:
    """Class names that are numbers in their order, the others behind them."""
    whole = name.isascii() and name.isdigit()
    return (0, int(name), name) if whole else (1, 0, name)
