"""Cells of CSV files that a spreadsheet would take for formulas."""

import pytest

from reptk.core.csv_cells import escape_formula


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ("=1+1.png", "'=1+1.png"),
        ("+a.png", "'+a.png"),
        ("-b.png", "'-b.png"),
        ("@c.png", "'@c.png"),
        ("\t=a", "'\t=a"),
        ("a=b.png", "a=b.png"),
        ("-1", "-1"),
        ("+1.5e3", "+1.5e3"),
        (-0.5, -0.5),
        ("", ""),
    ],
)
def test_text_that_would_run_is_escaped(cell: object, expected: object) -> None:
    assert escape_formula(cell) == expected
