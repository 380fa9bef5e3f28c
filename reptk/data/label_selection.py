"""Training with the labels of some images alone: a share of each class, or those that a list or a table names.

It works for every data set, since it changes the labels of the training split after the data set is loaded.
"""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from reptk.config.signature import suggestion
from reptk.core import rng
from reptk.core.counts import format_count, verb_form
from reptk.core.errors import DataError
from reptk.data.image_table import is_header, sorted_class_names
from reptk.data.protocol import Data, Images, Split, subset
from reptk.data.table_files import read_cells
from reptk.data.table_headings import HEADINGS, heading_key

NUMBER_HEADINGS = ("number", "index", "id")
"""Headings of a column of numbers of images, if there is no column of paths."""

MAX_LISTED = 3

MAX_NAME_LENGTH = 80
"""Characters of a name in a message."""


class ListedImage(NamedTuple):
    """A row of a list: its line in the file, the name or number of an image, and its class, empty for that of the data."""

    line: int
    name: str
    label: str


def select_labels(data: Data, labelled: float | str | None, *, only_labelled: bool = False, seed: int = 0) -> Data:
    """Return the data set with the labels of some training images alone; the others get the label -1.

    The bank and the queries keep their labels, also if the bank holds the training images: evaluation measures the encoder
    with all labels, whichever of them it was trained with.

    Args:
        data: the data set.
        labelled: a share in (0, 1], drawn from each class and at least one image of each, of which a smaller share is a
            part; or a file that lists the images: one name or number (from 0) a line, or a table with a column of paths or
            numbers and, if the labels are not those of the data set, one of classes. None for all labels that there are.
        only_labelled: leave the other images out of training.
        seed: of the share.

    Raises:
        DataError: there are no labels, the list names an image or a class that does not exist, or a class has no label.
    """
    train = data.train
    classes = data.classes
    if isinstance(labelled, str):
        labels, classes = _listed_labels(data, Path(labelled))
        how = f"those in {labelled}"
    elif labelled is not None:
        labels = _share_of_labels(train.labels, labelled, seed)
        how = f"{100 * labelled:g} % of each class, seed {seed}"
    else:
        labels = train.labels
        how = "all labels"
    num_labeled = int((labels >= 0).sum())
    if not num_labeled and not only_labelled:
        return data
    if not num_labeled:
        raise DataError("data.only_labelled=true leaves no image, since no training image has a label")
    has = verb_form(num_labeled, "has", "have")
    text = f"{num_labeled:,} of {format_count(len(train), 'training image')} {has} a label ({how})"
    selected = Split(train.images, labels)
    if only_labelled:
        selected = subset(selected, (labels >= 0).nonzero()[:, 0])
        text += ", and the others are left out"
    line = f"labels: {text}; bank and queries keep theirs"
    return replace(
        data,
        train=selected,
        classes=classes,
        protocol=f"{data.protocol}; {text}",
        summary=(*data.summary, line),
    )


def _share_of_labels(labels: Tensor, share: float, seed: int) -> Tensor:
    """Return the labels (n,) of a share of each class, and -1 elsewhere."""
    if not bool((labels >= 0).any()):
        raise DataError(f"data.labelled={share:g} is a share of the labels, and no training image has one")
    selected = torch.full_like(labels, -1)
    for label in labels[labels >= 0].unique().tolist():
        members = (labels == label).nonzero()[:, 0]
        count = max(1, round(share * len(members)))
        # The first of one order, whatever the share: those of a smaller share are among them.
        order = torch.randperm(len(members), generator=rng.generator(seed, "labelled", label))
        selected[members[order[:count]]] = label
    return selected


def _listed_labels(data: Data, file: Path) -> tuple[Tensor, tuple[str, ...]]:
    """Return the labels (n,) of the images that a file lists, -1 elsewhere, and the classes."""
    rows = _read_list(file)
    numbers = _numbers_of(rows, data.train.images, file)
    classes = data.classes or sorted_class_names(row.label for row in rows)
    labels = torch.full_like(data.train.labels, -1)
    for row, number in zip(rows, numbers, strict=True):
        label = int(data.train.labels[number])
        if row.label:
            label = _label_of(row, classes, file)
        if label < 0:
            raise DataError(
                f"{file}, line {row.line}: {row.name} has no label in the data set; write its class into a second column"
            )
        if labels[number] not in (-1, label):
            raise DataError(f"{file}, line {row.line}: {row.name} is listed with two classes; remove one of the lines")
        labels[number] = label
    _check_every_class(data.train.labels, labels, classes, file)
    return labels, classes


def _read_list(file: Path) -> list[ListedImage]:
    known = [heading for headings in HEADINGS.values() for heading in headings]
    if not file.is_file():
        raise DataError(f"data.labelled: there is no file {file}; it takes a share such as 0.01, or a list of images")
    cells = read_cells(file, frozenset([*known, *NUMBER_HEADINGS]))
    lines = cells.rows
    name_column, label_column = 0, 1
    if lines and (cells.has_headings or _has_headings(lines[0].cells)):
        headings = [heading_key(cell) for cell in lines[0].cells]
        name_column = _column(headings, [*HEADINGS["path"], *NUMBER_HEADINGS])
        label_column = _column(headings, HEADINGS["label"])
        if name_column < 0:
            raise DataError(
                f"{file}, line {lines[0].number}: no column of paths among {', '.join(headings)}; name it path"
            )
        lines = lines[1:]
    rows = []
    for line in lines:
        name = _cell(line.cells, name_column)
        if not name:
            raise DataError(f"{file}, line {line.number}: no path; fill it in, or remove the line")
        rows.append(ListedImage(line.number, name, _cell(line.cells, label_column)))
    if not rows:
        raise DataError(f"{file} lists no images; write a path or a number a line")
    return rows


def _has_headings(cells: Sequence[str]) -> bool:
    return is_header(cells) or heading_key(cells[0]) in NUMBER_HEADINGS


def _column(headings: Sequence[str], names: Sequence[str]) -> int:
    """Return the number of the first of these columns that there is, -1 if there is none."""
    for name in names:
        if name in headings:
            return headings.index(name)
    return -1


def _cell(cells: Sequence[str], column: int) -> str:
    if 0 <= column < len(cells):
        return cells[column].strip()
    return ""


def _numbers_of(rows: Sequence[ListedImage], images: Images, file: Path) -> list[int]:
    """Return the number of the image of each row.

    A row names an image by its path from the list's folder, by the end of its path, or by its number.
    """
    absolute = {}
    endings: dict[str, list[int]] = {}
    names = {os.path.normpath(row.name) for row in rows}
    folder = file.absolute().parent
    full_names = {os.path.normpath(folder / row.name) for row in rows}
    has_files = False
    for number in range(len(images)):
        path = images.path(number)
        if path is None:
            continue
        has_files = True
        full = os.path.normpath(path.absolute())
        if full in full_names:
            absolute[full] = number
        # From the name of the file to the whole path.
        separator = full.rfind(os.sep)
        while separator >= 0:
            ending = full[separator + 1 :]
            if ending in names:
                endings.setdefault(ending, []).append(number)
            separator = full.rfind(os.sep, 0, separator)
    numbers = []
    unknown = []
    for row in rows:
        matches = endings.get(os.path.normpath(row.name), [])
        full = os.path.normpath(folder / row.name)
        if full in absolute:
            numbers.append(absolute[full])
        elif len(matches) == 1:
            numbers.append(matches[0])
        elif len(matches) > 1:
            first, second = (images.path(number) for number in matches[:2])
            raise DataError(
                f"{file}, line {row.line}: {row.name} may be {len(matches)} training images, such as {first} and {second}; "
                "write more of the path"
            )
        elif _is_number_below(row.name, len(images)):
            numbers.append(int(row.name.lstrip("0") or "0"))
        else:
            unknown.append(row)
    if unknown:
        raise DataError(_unknown_message(unknown, images, file, has_files=has_files))
    return numbers


def _shortened(text: str) -> str:
    if len(text) <= MAX_NAME_LENGTH:
        return text
    return f"{text[:MAX_NAME_LENGTH]}..."


def _is_number_below(text: str, count: int) -> bool:
    if not (text.isascii() and text.isdigit()):
        return False
    # int() raises on thousands of digits.
    digits = text.lstrip("0") or "0"
    return len(digits) <= len(str(count)) and int(digits) < count


def _unknown_message(unknown: Sequence[ListedImage], images: Images, file: Path, *, has_files: bool) -> str:
    listed = [f"{_shortened(row.name)} (line {row.line})" for row in unknown[:MAX_LISTED]]
    if len(unknown) > MAX_LISTED:
        listed.append("...")
    known = f"these are numbered from 0 to {len(images) - 1:,}"
    if has_files:
        known += f", or named such as {images.path(0)}"
    count = format_count(len(unknown), "image")
    return f"data.labelled={file} lists {count} that are not training images: {', '.join(listed)}; {known}"


def _label_of(row: ListedImage, classes: Sequence[str], file: Path) -> int:
    if row.label in classes:
        return classes.index(row.label)
    # Data sets as published number their classes.
    if _is_number_below(row.label, len(classes)):
        return int(row.label.lstrip("0") or "0")
    raise DataError(
        f"{file}, line {row.line}: there is no class {_shortened(row.label)!r}{suggestion(row.label, classes)} "
        f"(there are: {', '.join(classes[:10])}{', ...' if len(classes) > 10 else ''})"
    )


def _check_every_class(before: Tensor, labels: Tensor, classes: Sequence[str], file: Path) -> None:
    present = before[before >= 0].unique().tolist()
    with_labels = set(labels[labels >= 0].unique().tolist())
    missing = [classes[label] for label in present if label not in with_labels]
    if not missing:
        return
    listed = ", ".join(missing[:MAX_LISTED])
    if len(missing) > MAX_LISTED:
        listed += ", ..."
    raise DataError(
        f"data.labelled={file} lists no image of {len(missing)} of {format_count(len(present), 'class', 'classes')}: {listed}; "
        "list at least one image of each"
    )
