"""Counts, ranges and sizes in sentences."""

import pytest

from reptk.core.counts import format_bytes, format_count, format_range, verb_form


def test_one_is_singular_and_thousands_have_separators() -> None:
    assert format_count(1, "image") == "1 image"
    assert format_count(0, "image") == "0 images"
    assert format_count(2000, "image") == "2,000 images"
    assert format_count(1, "class", "classes") == "1 class"
    assert format_count(3, "class", "classes") == "3 classes"


@pytest.mark.parametrize(("count", "verb"), [(0, "are"), (1, "is"), (2, "are")])
def test_the_verb_agrees_with_the_count(count: int, verb: str) -> None:
    assert verb_form(count, "is", "are") == verb


def test_a_range_of_one_number_is_no_range() -> None:
    assert format_range(5, 1900, "image") == "5 to 1,900 images"
    assert format_range(5, 5, "image") == "5 images each"
    assert format_range(1, 1, "class", "classes") == "1 class each"
    assert format_range(0, 1, "image") == "0 to 1 image"


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 bytes"),
        (1, "1 byte"),
        (999, "999 bytes"),
        (1000, "1.0 kB"),
        (2_340_000, "2.3 MB"),
        (123.4e9, "123.4 GB"),
        (999_999, "1.0 MB"),
        (10_500.7, "10.5 kB"),
    ],
)
def test_bytes_are_in_the_largest_unit_that_they_fill(count: float, text: str) -> None:
    assert format_bytes(count) == text
