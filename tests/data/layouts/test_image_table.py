"""Tables of images as people write them: headings, separators, encodings, and what is refused."""

import os
import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from image_files import write_image
from reptk.core.errors import DataError, ReptkError
from reptk.data.class_names import sorted_class_names
from reptk.data.layouts.image_table import ImageRow, read_image_table

CAT_AND_DOG = [ImageRow("a.png", "cat"), ImageRow("b.png", "dog")]


def read(tmp_path: Path, content: str | bytes, name: str = "t.csv") -> list[ImageRow]:
    table = tmp_path / name
    if isinstance(content, str):
        content = content.encode("utf-8", "surrogateescape")
    table.write_bytes(content)
    return read_image_table(table).rows


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.png\n\nb.png,cat\nc.png,,x\n", [ImageRow("a.png"), ImageRow("b.png", "cat"), ImageRow("c.png", "", "x")]),
        ("Label, PATH\ncat,a.png\n,b.png\n", [ImageRow("a.png", "cat"), ImageRow("b.png")]),
        ("path,path\na.png,b.png\n", [ImageRow("a.png")]),
        ("path,label\na.png,cat,,\n", [ImageRow("a.png", "cat")]),
        ("path,split\na.png,train\n", [ImageRow("a.png", split="train")]),
        ("path,label,class_name\na.png,3,cat\n", [ImageRow("a.png", "cat")]),
        ("image_id,label\na.png,cat\n", [ImageRow("a.png", "cat")]),
        ("image_id,path\nx,a.png\n", [ImageRow("a.png", "", "x")]),
        ('path,label\n"a, b.png",cat\n', [ImageRow("a, b.png", "cat")]),
        ("a, b.png\nc.png\n", [ImageRow("a, b.png"), ImageRow("c.png")]),
        ("path,label\r\n a.png , cat \r\n", [ImageRow("a.png", "cat")]),
        ("path,label\ra.png,cat\r", [ImageRow("a.png", "cat")]),
    ],
)
def test_rows(text: str, expected: list[ImageRow], tmp_path: Path) -> None:
    assert read(tmp_path, text) == expected


PATH_HEADINGS = "path file filename filepath file_path File_Name FILENAME image image_path img img_path Image"
LABEL_HEADINGS = "label class target category class_name Class Label labels CATEGORY species"


@pytest.mark.parametrize("heading", PATH_HEADINGS.split())
def test_usual_headings_of_paths(heading: str, tmp_path: Path) -> None:
    assert read(tmp_path, f"{heading},label\na.png,cat\nb.png,dog\n") == CAT_AND_DOG


@pytest.mark.parametrize("heading", LABEL_HEADINGS.split())
@pytest.mark.parametrize("path_heading", ["path", "file", "image"])
def test_usual_headings_of_labels(path_heading: str, heading: str, tmp_path: Path) -> None:
    assert read(tmp_path, f"{path_heading} , {heading} \na.png,cat\nb.png,dog\n") == CAT_AND_DOG


@pytest.mark.parametrize("has_headings", [True, False])
@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_separators(separator: str, has_headings: bool, tmp_path: Path) -> None:
    lines = [["a.png", "cat"], ["b.png", "dog"]]
    if has_headings:
        lines.insert(0, ["path", "label"])
    assert read(tmp_path, "".join(f"{separator.join(cells)}\n" for cells in lines)) == CAT_AND_DOG


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252"])
def test_encodings(encoding: str, tmp_path: Path) -> None:
    write_image(tmp_path / "é.png")
    content = "path;label\r\né.png;Hündchen\r\n".encode(encoding)
    assert read(tmp_path, content) == [ImageRow("é.png", "Hündchen")]


def test_a_file_name_that_is_not_utf8_is_read_as_it_is(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    try:
        write_image(tmp_path / name)
    except OSError as cause:
        pytest.skip(f"this file system refuses the name: {cause}")
    assert read(tmp_path, b"path,label\ncaf\xe9.png,caf\xe9\n") == [ImageRow(name, "café")]


def test_backslashes_are_slashes_where_there_is_such_a_file(tmp_path: Path) -> None:
    write_image(tmp_path / "cats" / "a.png")
    assert read(tmp_path, "path\ncats\\a.png\nb\\c.png\n") == [ImageRow("cats/a.png"), ImageRow("b\\c.png")]


def test_a_name_that_was_escaped_for_a_spreadsheet_is_read(tmp_path: Path) -> None:
    write_image(tmp_path / "=a.png")
    assert read(tmp_path, "path\n'=a.png\n'b.png\n") == [ImageRow("=a.png"), ImageRow("'b.png")]


def test_json_lines(tmp_path: Path) -> None:
    text = '{"image": "a.png", "label": 3, "box": [1, 2]}\n\n{"image": "b.png", "label": null, "id": "x"}\n'
    assert read(tmp_path, text, "t.jsonl") == [ImageRow("a.png", "3"), ImageRow("b.png", "", "x")]
    assert read(tmp_path, text, "t.txt") == [ImageRow("a.png", "3"), ImageRow("b.png", "", "x")]


def test_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    columns = {"file": ["a.png", "b.png"], "class": [3, None], "box": [[1], [2]]}
    parquet.write_table(pyarrow.table(columns), tmp_path / "t.parquet")
    table = read_image_table(tmp_path / "t.parquet")
    assert table.rows == [ImageRow("a.png", "3"), ImageRow("b.png")]
    parquet.write_table(pyarrow.table({"image": [{"bytes": b"x", "path": "a"}]}), tmp_path / "hub.parquet")
    with pytest.raises(DataError, match="holds the images themselves"):
        read_image_table(tmp_path / "hub.parquet")


def test_columns_that_are_not_read_are_named(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("width,path,Height\n1,a.png,2\n")
    table = read_image_table(tmp_path / "t.csv")
    assert table.unread_columns == ("width", "Height")
    assert table.describe() == [
        f"{tmp_path / 't.csv'}: 1 image, no labels",
        "  columns not read: width, Height",
        f"  missing: 1 file, the first: {tmp_path / 'a.png'}",
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "lists no images"),
        ("path,label\n", "lists no images, only headings"),
        ("label,path\ncat\n", "1 row without a path, the first on line 2"),
        ("\n\npath,label\na.png,cat\n\n,dog\n", "1 row without a path, the first on line 6"),
        ("a.png,cat,x\nb\0.png,cat,y\n", "1 row without a path, the first on line 2|as CSV, line 2"),
        ("path\na.png,more\n", "line 2: 2 cells for 1 headings; .* double quotes"),
        ("a.png,b,c,d\n", "line 1: more than 3 columns and no line of headings"),
        ("name,kind\na.png,cat\n", "line 1: 'name,kind' is neither an image file nor a line of headings"),
        ("a.png 0\nb.png 1\n", "line 1: 'a.png 0' .* must be separated by"),
        ('path,label\na.png,"open\n', "as CSV, line 2"),
        (b"PK\x03\x04rest", "save it as CSV"),
        ("path,label\n".encode("utf-16") + b"x", "not valid UTF-16"),
        ('{"path": "a.png"}\n{"path": }\n', "line 2 is not JSON"),
        ('{"path": "a.png"}\n[1]\n', "line 2 is not a JSON object"),
        ('{"path": "a.png"}\n{"path": "\\ud800.png"}\n', "line 2: .* holds half a character"),
        ('{"width": 1}\n', "no column of paths among width; name it path"),
    ],
)
def test_what_cannot_be_understood_is_refused(content: str | bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        read(tmp_path, content)


def test_an_image_is_no_table(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is an image, not a table"):
        read_image_table(write_image(tmp_path / "a.png"))


def test_a_table_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot read"):
        read_image_table(tmp_path / "gone.csv")


# Damaged tables

GOOD_TABLES = [
    b"path,label,id\na.png,cat,1\nb.png,dog,2\n",
    b"\xef\xbb\xbffile;target\r\n\"a;1.png\";cat\r\n'b.png';dog\r\n",
    "image\tclass\nä.png\tcät\n".encode("utf-16"),
    "image\tclass\nä.png\tcät\n".encode("cp1252"),
    b'{"path": "a.png", "label": 1}\n{"path": "b.png", "label": [2]}\n',
    b"a.png|cat|7\nb.png|dog|8\n",
]


NUM_MANGLED_TABLES = 130
"""Of each of the four kinds: 520 in all."""


def _flip_bytes(content: bytearray, draw: random.Random) -> bytearray:
    for _ in range(draw.randint(1, 8)):
        content[draw.randrange(len(content))] = draw.randrange(256)
    return content


def _cut(content: bytearray, draw: random.Random) -> bytearray:
    return content[draw.randrange(len(content)) : draw.randrange(len(content) + 1)]


def _insert_special(content: bytearray, draw: random.Random) -> bytearray:
    specials = [
        b'"',
        b"\0",
        b"\n",
        b"\r",
        b",",
        b"\xff",
        b"\xed\xb3\xa9",
        b"\\u0000",
        b"/",
        b"x" * 140_000,
        b"..",
        b"{",
        b"1e999",
    ]
    for _ in range(draw.randint(1, 4)):
        position = draw.randrange(len(content) + 1)
        content[position:position] = draw.choice(specials)
    return content


def _shuffle(content: bytearray, draw: random.Random) -> bytearray:
    pieces = [content[start : start + 7] for start in range(0, len(content), 7)]
    draw.shuffle(pieces)
    return bytearray(b"".join(pieces))


@pytest.mark.parametrize("mangle", [_flip_bytes, _cut, _insert_special, _shuffle])
def test_a_mangled_table_is_read_or_refused(
    mangle: Callable[[bytearray, random.Random], bytearray], tmp_path: Path
) -> None:
    refusals = []
    for seed in range(NUM_MANGLED_TABLES):
        draw = random.Random(seed)
        content = bytes(mangle(bytearray(draw.choice(GOOD_TABLES)), draw))
        name = draw.choice(["t.csv", "t.jsonl", "t.txt"])
        try:
            rows = read(tmp_path, content, name)
        except ReptkError as error:
            refusals.append(str(error))
        else:
            assert rows
            assert all(row.path and "\0" not in row.path for row in rows)
    assert refusals
    assert all(re.search(r"t\.(csv|jsonl|txt)", message) for message in refusals)


def test_paths_out_of_the_tables_folder_are_read_and_counted(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    write_image(tmp_path / "out.png")
    write_image(folder / "in.png")
    write_image(folder / "a..b.png")
    table = folder / "t.csv"
    table.write_text(f"path\nin.png\n./x/../in.png\na..b.png\n../out.png\n{tmp_path}/out.png\n{folder}/in.png\n")
    assert f"  outside of {folder}: 2 files, as the table names them" in read_image_table(table).details()
    table.write_text("path\nin.png\n")
    assert read_image_table(table).details() == []


def test_class_names_of_thousands_of_digits_are_sorted_as_text(tmp_path: Path) -> None:
    assert sorted_class_names(["9" * 5000, "10", "9"]) == ("9", "10", "9" * 5000)
