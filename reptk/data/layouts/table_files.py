"""Cells of a table in a file, as text: CSV with any usual separator and encoding, JSON lines, or Parquet."""

import codecs
import csv
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from reptk.core.errors import DataError, EnvironmentProblem
from reptk.core.files import parse_json
from reptk.core.foreign_files import read_bytes
from reptk.data.decoding.decode import EXTENSIONS
from reptk.data.table_headings import heading_key

SEPARATORS = (",", ";", "\t", "|")
NUM_EXAMINED_LINES = 50
"""How many lines are looked at to find the separator."""

JSON_LINES_EXTENSIONS = frozenset({".jsonl", ".ndjson", ".json"})
TABLE_EXTENSIONS = JSON_LINES_EXTENSIONS | {".csv", ".tsv", ".txt", ".parquet"}
"""Endings that tables usually have; what they are is recognized by their content."""

BATCH_ROWS = 8192

MAX_TABLE_BYTES = 1 << 30
"""More than ten million rows; they are all in memory, as text."""


class TableRow(NamedTuple):
    """The cells of a row, and the number of its line in the file, from 1."""

    number: int
    cells: Sequence[str]


@dataclass(frozen=True)
class TableCells:
    """All rows of a table; `has_headings` says that the first certainly holds the names of the columns."""

    rows: list[TableRow]
    has_headings: bool


def read_cells(table: Path, known_headings: frozenset[str]) -> TableCells:
    """Return the cells of a table; bytes of a CSV file that are not UTF-8 are escaped as in file names (surrogateescape).

    Args:
        table: the file.
        known_headings: names of columns that tell separators apart, in lower case without spaces, `_` and `-`.

    Raises:
        DataError: the file cannot be read or understood.
        EnvironmentProblem: a Parquet file, and pyarrow is not installed.
    """
    try:
        content = read_bytes(table, MAX_TABLE_BYTES)
    except OSError as cause:
        raise DataError(f"cannot read {table}: {cause}") from cause
    if content.startswith(b"PAR1"):
        return TableCells(_read_parquet(table), has_headings=True)
    if content.startswith(b"PK\x03\x04"):
        raise DataError(f"{table} is a spreadsheet or an archive, not a table in text; save it as CSV")
    text = _decode(table, content)
    if table.suffix.lower() in JSON_LINES_EXTENSIONS or text.lstrip().startswith("{"):
        return TableCells(_read_json_lines(table, text), has_headings=True)
    return TableCells(_read_csv(table, text, known_headings), has_headings=False)


def _decode(table: Path, content: bytes) -> str:
    """Return the text of a file in UTF-8, UTF-16 or UTF-32, with or without a byte order mark."""
    if content.startswith(codecs.BOM_UTF8):
        return content.decode("utf-8-sig", "surrogateescape")
    encoding = _wide_encoding(content)
    if encoding is None:
        return content.decode("utf-8", "surrogateescape")
    try:
        return content.decode(encoding).removeprefix("\ufeff")
    except UnicodeDecodeError as cause:
        raise DataError(f"{table} is not valid {encoding.upper()} ({cause}); save it as CSV in UTF-8") from cause


def _wide_encoding(content: bytes) -> str | None:
    """Return the encoding of text with two or four bytes a letter; None for any other."""
    # Of these marks, the first ends in the second.
    if content.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        return "utf-32"
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    # Without a mark: of the usual letters, every other byte is zero.
    head = content[:1000]
    if len(head) >= 4 and head[1::2].count(0) > 0.4 * len(head) and head[0::2].count(0) == 0:
        return "utf-16-le"
    if len(head) >= 4 and head[0::2].count(0) > 0.4 * len(head) and head[1::2].count(0) == 0:
        return "utf-16-be"
    return None


def _read_csv(table: Path, text: str, known_headings: frozenset[str]) -> list[TableRow]:
    """Return the cells of every line that is not empty."""
    separator = _find_separator(text, known_headings)
    if separator is None:
        lines = enumerate(text.splitlines(), 1)
        return [TableRow(number, [line]) for number, line in lines if line.strip()]
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True, skipinitialspace=True)
    rows = []
    last_line = 0
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                rows.append(TableRow(last_line + 1, cells))
            # A quoted cell may span lines: a row begins where the one before it ended.
            last_line = reader.line_num
    except csv.Error as cause:
        raise DataError(f"cannot read {table} as CSV, line {last_line + 1}: {cause}. Correct that line") from cause
    return rows


def _find_separator(text: str, known_headings: frozenset[str]) -> str | None:
    """Return the separator of a table; None for a list of one path a line, which are taken as they are."""
    lines = [line for _, line in zip(range(NUM_EXAMINED_LINES), _nonempty_lines(text), strict=False)]
    if not lines:
        return ","
    num_headings = {separator: _count_headings(lines[0], separator, known_headings) for separator in SEPARATORS}
    best = max(SEPARATORS, key=num_headings.__getitem__)
    if num_headings[best] > 0:
        return best
    num_rows = {separator: _count_image_rows(lines, separator) for separator in SEPARATORS}
    best = max(SEPARATORS, key=num_rows.__getitem__)
    if num_rows[best] > 0:
        return best
    if all(Path(line.strip()).suffix.lower() in EXTENSIONS and not line.lstrip().startswith('"') for line in lines):
        return None
    return ","


def _nonempty_lines(text: str) -> Iterator[str]:
    for line in io.StringIO(text):
        if line.strip():
            yield line.rstrip("\r\n")


def _split_line(line: str, separator: str) -> list[str]:
    try:
        return next(csv.reader([line], delimiter=separator, skipinitialspace=True), [])
    except csv.Error:
        return []


def _count_headings(line: str, separator: str, known_headings: frozenset[str]) -> int:
    """Return how many cells of a line are known headings."""
    count = 0
    for cell in _split_line(line, separator):
        count += heading_key(cell) in known_headings
    return count


def _count_image_rows(lines: Sequence[str], separator: str) -> int:
    """Return how many lines have several cells, of which the first is an image file."""
    count = 0
    for line in lines:
        cells = _split_line(line, separator)
        count += len(cells) > 1 and Path(cells[0].strip()).suffix.lower() in EXTENSIONS
    return count


def _read_json_lines(table: Path, text: str) -> list[TableRow]:
    """Return the keys of all objects, which are the headings, and a row for each object."""
    objects: list[tuple[int, dict[str, Any]]] = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            value = parse_json(line)
        except ValueError as cause:
            raise DataError(f"{table}, line {number} is not JSON: {cause}. Write one object a line") from cause
        if not isinstance(value, dict):
            raise DataError(
                f'{table}, line {number} is not a JSON object; write one a line, such as {{"path": "a.jpg", "label": "cat"}}'
            )
        objects.append((number, value))
    if not objects:
        return []
    keys = list(dict.fromkeys(key for _, value in objects for key in value))
    rows = [TableRow(1, keys)]
    for number, value in objects:
        cells = [_cell_text(table, number, key, value.get(key)) for key in keys]
        rows.append(TableRow(number, cells))
    return rows


def _read_parquet(table: Path) -> list[TableRow]:
    """Return the names of the columns, and a row for each row; columns of lists and structures are left empty."""
    if find_spec("pyarrow") is None:
        raise EnvironmentProblem(
            f"{table.name} needs pyarrow, which is not installed: pip install 'reptk[parquet]', or use CSV"
        )
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(table) as file:
            schema = file.schema_arrow
            names = [field.name for field in schema if not pyarrow.types.is_nested(field.type)]
            # pyarrow cannot read a column whose name another one has, too.
            names = [name for name in names if schema.names.count(name) == 1]
            names = [name for name in names if not _is_binary(pyarrow, schema.field(name).type)]
            if "image" in schema.names and "image" not in names:
                raise DataError(
                    f"{table} holds the images themselves, in its column image; write them to files, and list those"
                )
            rows = [TableRow(1, names)]
            # In batches, since a Python object for each cell of a large table would take much memory.
            for batch in file.iter_batches(BATCH_ROWS, columns=names):
                columns = [column.to_pylist() for column in batch.columns]
                for values in zip(*columns, strict=True):
                    number = len(rows)
                    pairs = zip(names, values, strict=True)
                    rows.append(TableRow(number, [_cell_text(table, number, name, value) for name, value in pairs]))
    except (OSError, ValueError, KeyError, pyarrow.ArrowException) as cause:
        raise DataError(f"cannot read {table} as Parquet: {cause}; write it again, or use CSV") from cause
    if len(rows) > 1:
        return rows
    return []


def _is_binary(pyarrow: Any, data_type: Any) -> bool:
    return pyarrow.types.is_binary(data_type) or pyarrow.types.is_large_binary(data_type)


def _cell_text(table: Path, number: int, key: str, value: Any) -> str:
    """Return a value as text; lists and objects of columns that are not read are of no interest, so they are empty."""
    if value is None or isinstance(value, list | dict):
        return ""
    if isinstance(value, float) and math.isnan(value):
        return ""  # how pandas writes that there is nothing
    if isinstance(value, float) and value.is_integer():
        return str(int(value))  # integers of a column with gaps
    text = str(value)
    try:
        text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as cause:
        raise DataError(f"{table}, line {number}: {text!a} holds half a character; correct that line") from cause
    return text
