"""CSV tables of images: lines of path[,label[,id]], with or without a header line."""

import csv
from pathlib import Path
from typing import NamedTuple

from reptk.core.errors import DataError

COLUMNS = ("path", "label", "id")


class ImageRow(NamedTuple):
    """One image of a table; the label and the id are empty if the table has none."""

    path: str
    label: str = ""
    id: str = ""


def read_image_table(table: Path) -> list[ImageRow]:
    """Return the rows of a CSV file.

    With a header line, that is one with a cell `path`, columns may be in any order, and others are ignored. Without one
    they are path, label and id. Empty lines are ignored.

    Raises:
        DataError: the file cannot be read as CSV, lists no images, or has a row without a path.
    """
    lines = _read_csv(table)
    has_header = bool(lines) and "path" in _column_names(lines[0])
    if has_header:
        names = _column_names(lines[0])
        lines = lines[1:]
    else:
        names = list(COLUMNS)
        if any(len(cells) > len(COLUMNS) for cells in lines):
            raise DataError(f"{table} has more than 3 columns and no line of headings (path,label,id)")
    if not lines:
        raise DataError(f"{table} lists no images; it must have lines of path[,label[,id]]")

    rows = [_image_row(cells, names) for cells in lines]
    # Numbers as a spreadsheet shows them, from 1.
    first_number = 2 if has_header else 1
    without_path = []
    for number, row in enumerate(rows, first_number):
        if not row.path or "\0" in row.path:  # no file name holds a zero byte
            without_path.append(number)
    if without_path:
        raise DataError(f"{table} has {len(without_path)} rows without a path, first row {without_path[0]}")
    return rows


def _read_csv(table: Path) -> list[list[str]]:
    """Return the cells of every line that is not empty."""
    try:
        # utf-8-sig skips the byte order mark that spreadsheets write.
        with table.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
            return [cells for cells in csv.reader(file, strict=True) if any(cells)]
    except (OSError, csv.Error) as cause:
        raise DataError(f"cannot read {table} as CSV: {cause}. It must have lines of path[,label[,id]]") from cause


def _column_names(cells: list[str]) -> list[str]:
    return [cell.strip().casefold() for cell in cells]


def _image_row(cells: list[str], names: list[str]) -> ImageRow:
    """Return one row; `names` are the columns' names, and a row may have fewer or more cells than there are names."""
    values: dict[str, str] = {}
    for name, cell in zip(names, cells, strict=False):
        if name in COLUMNS:
            values.setdefault(name, cell)  # of two columns of one name, the first
    return ImageRow(values.get("path", ""), values.get("label", ""), values.get("id", ""))
