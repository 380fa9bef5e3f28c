"""docs/reliability.md: every test that it names exists, every fault is there once, and README leads to it."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCUMENT = (ROOT / "docs" / "reliability.md").read_text()
NUM_FAULTS = 120
NUM_PROMISES = 10

NAMED_TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


def missing_tests(text: str) -> list[str]:
    """Names of tests in a text that no file defines."""
    missing = []
    for file, function in NAMED_TEST.findall(text):
        path = ROOT / file
        if not path.is_file() or not re.search(rf"^def {function}\(", path.read_text(), re.MULTILINE):
            missing.append(f"{file}::{function}")
    return missing


def faults(text: str) -> list[tuple[int, list[str]]]:
    """Number and cells of each row of the tables."""
    rows = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if line.startswith("| ") and cells[0].strip().isdecimal():
            rows.append((int(cells[0]), cells))
    return rows


def test_every_test_that_is_named_exists() -> None:
    assert len(NAMED_TEST.findall(DOCUMENT)) > NUM_FAULTS
    assert missing_tests(DOCUMENT) == []


def test_every_fault_is_there_once() -> None:
    assert [number for number, _ in faults(DOCUMENT)] == list(range(1, NUM_FAULTS + 1))


@pytest.mark.parametrize(("number", "cells"), faults(DOCUMENT))
def test_every_fault_has_an_answer_and_a_test_or_the_reason_why_not(number: int, cells: list[str]) -> None:
    assert len(cells) == 4
    assert all(cells)
    assert NAMED_TEST.search(cells[3]) or cells[3].startswith("not tested here: ")


def test_every_promise_has_a_test() -> None:
    promises = re.split(r"^\*\*R(\d+)\.", DOCUMENT.split("## Faults")[0], flags=re.MULTILINE)
    assert promises[1::2] == [str(number) for number in range(1, NUM_PROMISES + 1)]
    assert all(NAMED_TEST.search(text) for text in promises[2::2])


def test_the_readme_leads_to_the_document() -> None:
    assert "(docs/reliability.md)" in (ROOT / "README.md").read_text()


def test_a_missing_test_is_detected() -> None:
    assert missing_tests("`tests/core/test_files.py::test_new_file_is_created`") == []
    assert missing_tests("`tests/core/test_files.py::test_nothing`") == ["tests/core/test_files.py::test_nothing"]
    assert missing_tests("`tests/core/test_none.py::test_a`") == ["tests/core/test_none.py::test_a"]
    assert [number for number, _ in faults("| 3 | a | b | c |\n| # | a |\n|---|\n| 4 | a | b | c |")] == [3, 4]


def test_there_are_no_environment_variables_of_reptk() -> None:
    """So that a misspelt one cannot be ignored in silence."""
    for path in (ROOT / "reptk").rglob("*.py"):
        assert "REPTK_" not in path.read_text(), path
