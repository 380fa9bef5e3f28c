"""Numbers and foreign text as the page writes them."""

import math

import pytest

from reptk.report.formatting import (
    class_name,
    format_interval,
    format_number,
    format_percent,
    format_points,
    format_share,
    printable,
)


def test_shares_are_written_in_percent() -> None:
    assert format_percent(0.1234) == "12.3"
    assert format_percent(-0.5, 0) == "\u221250"
    assert format_percent(None) == format_percent(math.nan) == "\u2013"
    assert format_points(0.012) == "+1.2"
    assert format_points(-0.012) == "\u22121.2"
    assert format_interval((0.1, 0.25)) == "10.0 \u2013 25.0"
    assert format_interval(None) == ""
    assert format_share(0.5) == "50.0"
    assert format_share(3.5) == "3.5"


@pytest.mark.parametrize(
    ("value", "text"),
    [(12345, "12,345"), (-3, "\u22123"), (0.12345, "0.123"), (300.0, "300"), (1234.5, "1,234"), (math.inf, "\u2013")],
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert format_number(value) == text


def test_what_is_not_a_number_is_text() -> None:
    assert format_number(True) == "True"
    assert format_number("cpu") == "cpu"


def test_classes_without_a_name_are_named_by_their_label() -> None:
    assert class_name(("cat", ""), 0) == "cat"
    assert class_name(("cat", ""), 1) == "class 1"
    assert class_name(("cat", ""), 2) == "class 2"
    assert class_name(("cat", ""), -1) == "no label"


def test_characters_that_cannot_be_shown_are_replaced() -> None:
    assert printable("caf\u00e9 \u5199") == "caf\u00e9 \u5199"
    assert printable("a\nb\x7f\x85\u202e\ud800") == "a\u240ab\u2421\ufffd\ufffd?"
