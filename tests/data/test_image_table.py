"""CSV tables of images, line by line."""

from pathlib import Path

import pytest

from reptk.core.errors import DataError
from reptk.embeddings.image_table import ImageRow, read_image_table


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.png\n\nb.png,cat\nc.png,,x\n", [ImageRow("a.png"), ImageRow("b.png", "cat"), ImageRow("c.png", "", "x")]),
        ("Label, PATH\ncat,a.png\n,b.png\n", [ImageRow("a.png", "cat"), ImageRow("b.png")]),
        ("label,path\ncat\n", "1 rows without a path, first row 2"),
        ("path,path\na.png,b.png\n", [ImageRow("a.png")]),
        ("path\na.png,more\n", [ImageRow("a.png")]),
        ("a.png,cat,x\nb\0.png,cat,y\n", "1 rows without a path, first row 2|as CSV"),
    ],
)
def test_rows(text: str, expected: list[ImageRow] | str, tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text(text)
    if isinstance(expected, str):
        with pytest.raises(DataError, match=expected):
            read_image_table(table)
    else:
        assert read_image_table(table) == expected


def test_a_table_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot read"):
        read_image_table(tmp_path / "gone.csv")
