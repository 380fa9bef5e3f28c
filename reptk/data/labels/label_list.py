"""A file that lists the training images with a label: one path or number a line, or a table with classes."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from reptk.config.signature import suggestion
from reptk.core.counts import format_count
from reptk.core.errors import DataError
from reptk.core.name_lists import first_names
from reptk.data.class_names import sorted_class_names
from reptk.data.layouts.image_table import is_header
from reptk.data.layouts.table_files import read_cells
from reptk.data.protocol import Data, Images
from reptk.data.table_headings import HEADINGS, heading_key

NUMBER_HEADINGS = ("number", "index", "id")
"""Headings of a column of numbers of images, if there is no column of paths."""

MAX_LISTED = 3

MAX_LISTED_CLASSES = 10

MAX_MISTAKES = 5
"""Mistakes of a list that a message shows."""

MAX_NAME_LENGTH = 80
"""Characters of a name in a message."""


class ListedImage(NamedTuple):
    """A row of a list: its line in the file, the name or number of an image, and its class, empty for that of the data."""

    line: int
    name: str
    label: str


class Mistake(NamedTuple):
    """What is wrong in a line of a list, and a sentence that says what to write, which several mistakes may share."""

    line: int
    what: str
    advice: str


def listed_labels(data: Data, file: Path) -> tuple[Tensor, tuple[str, ...]]:
    """Return the labels (n,) of the images that a file lists, -1 elsewhere, and the classes.

    Args:
        data: the data set.
        file: one name or number (from 0) a line, or a table with a column of paths or numbers and, if the labels are not
            those of the data set, one of classes.

    Raises:
        DataError: there is no such file, a class has no label, or lines name images or classes that do not exist, with the
            first of these lines.
    """
    rows = _read_list(file)
    mistakes: list[Mistake] = []
    numbers = _numbers_of(rows, data.train.images, file, mistakes)
    classes = data.classes or sorted_class_names(row.label for row in rows)
    labels = torch.full_like(data.train.labels, -1)
    for row, number in zip(rows, numbers, strict=True):
        label = None
        if row.label:
            label = _label_of(row, classes, mistakes)
        elif number is not None:
            label = _label_in_data(row, int(data.train.labels[number]), mistakes)
        if number is None or label is None:
            continue  # recorded as a mistake
        if labels[number] not in (-1, label):
            mistakes.append(
                Mistake(row.line, f"{_shortened(row.name)} is listed with two classes", "Remove one of the lines")
            )
            continue
        labels[number] = label
    if mistakes:
        raise DataError(_describe_mistakes(mistakes, file))
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
        rows.append(ListedImage(line.number, _cell(line.cells, name_column), _cell(line.cells, label_column)))
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


def _numbers_of(rows: Sequence[ListedImage], images: Images, file: Path, mistakes: list[Mistake]) -> list[int | None]:
    """Return the number of the image of each row; None for a row that names none, which is appended to `mistakes`.

    A row names an image by its path from the list's folder, by the end of its path, or by its number.
    """
    absolute = {}
    endings: dict[str, list[int]] = {}
    names = {os.path.normpath(row.name) for row in rows}
    folder = file.absolute().parent
    full_names = {os.path.normpath(folder / row.name) for row in rows}
    known = f"Training images are numbered from 0 to {len(images) - 1:,}"
    for number in range(len(images)):
        path = images.path(number)
        if path is None:
            continue
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
    if images.path(0) is not None:
        known += f", or named such as {images.path(0)}"
    numbers: list[int | None] = []
    for row in rows:
        number = None
        matches = endings.get(os.path.normpath(row.name), [])
        full = os.path.normpath(folder / row.name)
        if not row.name:
            mistakes.append(Mistake(row.line, "there is no path", "Fill it in, or remove the line"))
        elif full in absolute:
            number = absolute[full]
        elif len(matches) == 1:
            number = matches[0]
        elif len(matches) > 1:
            first, second = (images.path(match) for match in matches[:2])
            what = f"{_shortened(row.name)} may be {len(matches)} training images, such as {first} and {second}"
            mistakes.append(Mistake(row.line, what, "Write more of the path"))
        elif _is_number_below(row.name, len(images)):
            number = int(row.name.lstrip("0") or "0")
        else:
            mistakes.append(Mistake(row.line, f"{_shortened(row.name)} is not a training image", known))
        numbers.append(number)
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


def _label_of(row: ListedImage, classes: Sequence[str], mistakes: list[Mistake]) -> int | None:
    """Return the number of the class of a row; None if there is no such class, which is appended to `mistakes`."""
    if row.label in classes:
        return classes.index(row.label)
    # Data sets as published number their classes.
    if _is_number_below(row.label, len(classes)):
        return int(row.label.lstrip("0") or "0")
    what = f"there is no class {_shortened(row.label)!r}{suggestion(row.label, classes)}"
    mistakes.append(Mistake(row.line, what, f"The classes are {first_names(classes, MAX_LISTED_CLASSES)}"))
    return None


def _label_in_data(row: ListedImage, label: int, mistakes: list[Mistake]) -> int | None:
    """Return the label of an image that is listed without a class; None if it has none, which is appended to `mistakes`."""
    if label >= 0:
        return label
    what = f"{_shortened(row.name)} has no label in the data set"
    mistakes.append(Mistake(row.line, what, "Write its class into a second column"))
    return None


def _describe_mistakes(mistakes: Sequence[Mistake], file: Path) -> str:
    """Return a message with the first mistakes, in the order of their lines, and what to write instead."""
    mistakes = sorted(mistakes, key=lambda mistake: mistake.line)
    if len(mistakes) == 1:
        [mistake] = mistakes
        end = "."
        if mistake.what.endswith("?"):
            end = ""
        return f"data.labelled={file}, line {mistake.line}: {mistake.what}{end} {mistake.advice}"
    lines = [f"data.labelled={file} has {len(mistakes):,} mistakes:"]
    shown = mistakes[:MAX_MISTAKES]
    for mistake in shown:
        lines.append(f"  line {mistake.line}: {mistake.what}")
    if len(mistakes) > len(shown):
        lines.append(f"  and {len(mistakes) - len(shown):,} more")
    advices = dict.fromkeys(mistake.advice for mistake in shown)
    return "\n".join([*lines, ". ".join(advices)])


def _check_every_class(before: Tensor, labels: Tensor, classes: Sequence[str], file: Path) -> None:
    present = before[before >= 0].unique().tolist()
    with_labels = set(labels[labels >= 0].unique().tolist())
    missing = [classes[label] for label in present if label not in with_labels]
    if not missing:
        return
    listed = first_names(missing, MAX_LISTED)
    raise DataError(
        f"data.labelled={file} lists no image of {len(missing)} of {format_count(len(present), 'class', 'classes')}: {listed}; "
        "list at least one image of each"
    )
