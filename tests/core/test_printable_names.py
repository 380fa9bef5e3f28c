"""Names of files and classes are printed in one line, whatever characters they hold."""

import os

import pytest

from reptk.core.printable_names import in_one_line


@pytest.mark.parametrize(
    ("name", "printed"),
    [
        ("cat 1.png", "cat 1.png"),
        ("grün/猫.png", "grün/猫.png"),
        ("two\nlines\r.png", "two\\nlines\\r.png"),
        ("\x1b[2Jred.png", "\\x1b[2Jred.png"),
        (os.fsdecode(b"caf\xe9.png"), "caf\\xe9.png"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
    ],
)
def test_a_name_is_one_line(name: str, printed: str) -> None:
    assert in_one_line(name) == printed
