"""Long lists of names in messages."""

from reptk.core.name_lists import first_names, first_names_and_count

NAMES = ["a", "b", "c"]


def test_short_lists_are_complete() -> None:
    for listed in (first_names, first_names_and_count):
        assert listed(NAMES, 3) == listed(tuple(NAMES), 9) == "a, b, c"
        assert listed([], 3) == ""


def test_long_lists_say_that_there_are_more() -> None:
    assert first_names(NAMES, 2) == "a, b, ..."
    assert first_names_and_count(NAMES, 2) == "a, b and 1 more"
    assert first_names_and_count(["a"] * 1_002, 1) == "a and 1,001 more"
