"""Tables of images, as people write them: CSV with any usual separator and encoding, JSON lines, or Parquet.

A table has a column of paths, which are relative to its folder, and may have columns of labels (names of classes), ids and
splits. Headings are recognized by their usual names; a CSV file without headings has the columns path, label and id.
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from reptk.core.counts import format_count
from reptk.core.errors import DataError
from reptk.core.name_lists import first_names
from reptk.data.class_names import sorted_class_names
from reptk.data.decoding.decode import EXTENSIONS, HEIF_EXTENSIONS
from reptk.data.decoding.raw_photograph import RAW_EXTENSIONS
from reptk.data.layouts.image_layout import ImageLayout, LabeledFile, columns_of
from reptk.data.layouts.table_files import TableRow, read_cells
from reptk.data.table_headings import HEADINGS, heading_key

COLUMNS = ("path", "label", "id")
"""Columns of a table without headings, in this order."""

MAX_LISTED = 6

EXPECTED = "A table has a line of headings such as path,label,id, or lines of path[,label[,id]]"


class ImageRow(NamedTuple):
    """One image of a table; what the table does not say is empty."""

    path: str
    label: str = ""
    id: str = ""
    split: str = ""


@dataclass(frozen=True)
class ImageTable:
    """The images of a table.

    Args:
        file: the table.
        rows: the images, in order.
        line_numbers: of the rows in the file, from 1.
        unread_columns: headings of columns that are not used.
    """

    file: Path
    rows: list[ImageRow]
    line_numbers: list[int]
    unread_columns: tuple[str, ...] = ()

    def describe(self) -> list[str]:
        """Return a few lines that say what is read and what is not."""
        parts: dict[str, list[LabeledFile]] = {}
        for row in self.rows:
            parts.setdefault(row.split, []).append(LabeledFile(Path(row.path), row.label or None))
        class_order = sorted_class_names(row.label for row in self.rows)
        has_splits = any(parts)
        columns = columns_of(parts, class_order)
        layout = ImageLayout(self.file, "table", columns, has_splits, class_order, tuple(self.details()))
        return layout.describe()

    def details(self) -> list[str]:
        """Return lines that name the columns that are not read, and files that do not exist."""
        lines = []
        if self.unread_columns:
            lines.append(f"  columns not read: {first_names(self.unread_columns, MAX_LISTED)}")
        root = self.file.absolute().parent
        num_outside = sum(_leads_outside(root, row.path) for row in self.rows)
        if num_outside:
            lines.append(f"  outside of {root}: {format_count(num_outside, 'file')}, as the table names them")
        missing = [row.path for row in self.rows if not _exists(root, row.path)]
        if missing:
            lines.append(f"  missing: {format_count(len(missing), 'file')}, the first: {root / missing[0]}")
        return lines


def read_image_table(table: Path) -> ImageTable:
    """Return the images that a file of type CSV (`,`, `;`, tab or `|`), JSON lines or Parquet lists.

    Raises:
        DataError: the file cannot be read or understood, with the number of the line and the way out.
        EnvironmentProblem: a Parquet file, and pyarrow is not installed.
    """
    if table.suffix.lower() in EXTENSIONS | HEIF_EXTENSIONS | RAW_EXTENSIONS:
        raise DataError(f"{table} is an image, not a table of images; name the folder that it is in")
    cells = read_cells(table, _known_headings())
    lines = cells.rows
    if not lines:
        raise DataError(f"{table} lists no images. {EXPECTED}")
    if cells.has_headings or is_header(lines[0].cells):
        headings = [cell.strip() for cell in lines[0].cells]
        columns = _columns(table, lines[0].number, headings)
        lines = lines[1:]
        _check_widths(table, lines, headings)
    else:
        headings = list(COLUMNS)
        columns = {name: index for index, name in enumerate(COLUMNS)}
        _check_first_line(table, lines)
    if not lines:
        raise DataError(f"{table} lists no images, only headings. {EXPECTED}")
    rows = [_image_row(line, columns) for line in lines]
    _check_paths(table, rows, lines)
    root = table.absolute().parent
    rows = [row._replace(path=_existing_spelling(root, row.path), label=_readable(row.label)) for row in rows]
    used = set(columns.values())
    unread = tuple(name or f"column {index + 1}" for index, name in enumerate(headings) if index not in used)
    return ImageTable(table, rows, [line.number for line in lines], unread)


def is_header(cells: Sequence[str]) -> bool:
    """Return whether the cells of a line are headings: one is that of a column of paths, and none is an image file."""
    if any(_looks_like_image(cell) for cell in cells):
        return False
    names = {heading_key(cell) for cell in cells}
    return bool(names & {*HEADINGS["path"], "imageid", "imgid"})


def _known_headings() -> frozenset[str]:
    return frozenset(name for names in HEADINGS.values() for name in names)


def _columns(table: Path, line_number: int, headings: Sequence[str]) -> dict[str, int]:
    """Return the index of each column by its meaning. Of several columns with one meaning, the preferred one counts."""
    index_of: dict[str, int] = {}
    for index, heading in enumerate(headings):
        index_of.setdefault(heading_key(heading), index)
    columns = {}
    for meaning, names in HEADINGS.items():
        for name in names:
            if name in index_of:
                columns[meaning] = index_of[name]
                break
    if "path" not in columns:
        # An image's id is often the name of its file.
        for name in ("imageid", "imgid"):
            if name in index_of:
                columns["path"] = index_of[name]
                columns.pop("id", None)
                break
    if "path" not in columns:
        listed = first_names(headings, MAX_LISTED) or "none"
        raise DataError(f"{table}, line {line_number}: no column of paths among {listed}; name it path")
    return columns


def _check_first_line(table: Path, lines: Sequence[TableRow]) -> None:
    """Raise DataError if a table without known headings does not begin with an image."""
    first = lines[0]
    if any(len(_without_empty_end(line.cells)) > len(COLUMNS) for line in lines):
        wide = next(line for line in lines if len(_without_empty_end(line.cells)) > len(COLUMNS))
        raise DataError(
            f"{table}, line {wide.number}: more than 3 columns and no line of headings (path,label,id). {EXPECTED}"
        )
    path = first.cells[0].strip()
    if not path or _looks_like_image(path) or _exists(table.absolute().parent, path):
        return
    shown = ascii(",".join(first.cells)[:80])
    hint = ""
    if any(_looks_like_image(word) for word in path.split()):
        hint = "Its columns must be separated by a comma, semicolon, tab or |. "
    raise DataError(
        f"{table}, line {first.number}: {shown} is neither an image file nor a line of headings with a name such as path, "
        f"file or image. {hint}{EXPECTED}"
    )


def _check_widths(table: Path, lines: Sequence[TableRow], headings: Sequence[str]) -> None:
    """Raise DataError if a line has more cells than there are headings, since it is unknown which belong where."""
    for line in lines:
        num_cells = len(_without_empty_end(line.cells))
        if num_cells > len(headings):
            raise DataError(
                f"{table}, line {line.number}: {num_cells} cells for {len(headings)} headings; a cell that holds the separator "
                "has to be in double quotes"
            )


def _check_paths(table: Path, rows: Sequence[ImageRow], lines: Sequence[TableRow]) -> None:
    without_path = []
    for row, line in zip(rows, lines, strict=True):
        if not row.path or "\0" in row.path:  # no file name holds a zero byte
            without_path.append(line.number)
    if without_path:
        count = f"{format_count(len(without_path), 'row')} without a path"
        raise DataError(
            f"{table} has {count}, the first on line {without_path[0]}; fill them in, or take the lines out"
        )


def _image_row(line: TableRow, columns: dict[str, int]) -> ImageRow:
    values = {}
    for name, index in columns.items():
        if index < len(line.cells):
            values[name] = line.cells[index].strip()
    return ImageRow(values.get("path", ""), values.get("label", ""), values.get("id", ""), values.get("split", ""))


def _existing_spelling(root: Path, path: str) -> str:
    """Return the path as the file system spells it, if the table spells it otherwise, else as it is in the table."""
    candidates = [path]
    if _has_undecoded_bytes(path):
        # Either a file whose name is not UTF-8, or a table in the encoding of Windows.
        candidates.append(_readable(path))
    if path.startswith("'"):
        candidates.append(path[1:])  # as written in front of what a spreadsheet would take for a formula
    candidates += [candidate.replace("\\", "/") for candidate in candidates if "\\" in candidate]
    if len(candidates) == 1:
        return path
    for candidate in candidates:
        if _exists(root, candidate):
            return candidate
    return _readable(path)


def _readable(text: str) -> str:
    """Return text with bytes that are not UTF-8 read as Windows-1252, or if that has no such letter, as Latin-1."""
    if not _has_undecoded_bytes(text):
        return text
    content = text.encode("utf-8", "surrogateescape")
    try:
        return content.decode("cp1252")
    except UnicodeDecodeError:
        return content.decode("latin-1")


def _has_undecoded_bytes(text: str) -> bool:
    return any("\udc80" <= letter <= "\udcff" for letter in text)


def _exists(root: Path, path: str) -> bool:
    # Several times as fast as by Path, which matters for a million rows.
    return os.path.exists(os.path.join(root, path))  # noqa: PTH110, PTH118


def _leads_outside(root: Path, path: str) -> bool:
    """Whether a path leads out of the table's folder by its name; links are not resolved."""
    # Most paths have neither, and the check of a million of them should cost little.
    if not os.path.isabs(path) and ".." not in path:  # noqa: PTH117
        return False
    return not Path(os.path.normpath(root / path)).is_relative_to(root)


def _looks_like_image(cell: str) -> bool:
    return Path(cell.strip()).suffix.lower() in EXTENSIONS


def _without_empty_end(cells: Iterable[str]) -> list[str]:
    """Return the cells without the empty ones at the end, which spreadsheets write."""
    trimmed = list(cells)
    while trimmed and not trimmed[-1].strip():
        trimmed.pop()
    return trimmed
