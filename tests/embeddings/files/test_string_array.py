"""Strings in two arrays are the strings that went in."""

import pytest

from embedding_inputs import NAMES, NON_UTF8
from reptk.embeddings.files import string_array
from reptk.embeddings.files.string_array import StringArray, StringArrayBuilder, are_utf8, is_utf8


def test_strings_are_returned_by_index_slice_and_iteration() -> None:
    strings = StringArray.from_strings([*NAMES, NON_UTF8])
    assert list(strings) == [*NAMES, NON_UTF8]
    assert len(strings) == 8
    assert strings[-1] == NON_UTF8
    assert strings[1:3] == NAMES[1:3]
    assert strings[::-2] == [*NAMES, NON_UTF8][::-2]
    assert strings[5:2] == []
    with pytest.raises(IndexError):
        strings[8]


def test_find_returns_the_first_index() -> None:
    strings = StringArray.from_strings([*NAMES, NON_UTF8])
    assert [strings.find(name) for name in ("a.jpg", "", NON_UTF8, "b.jpg")] == [0, 1, 7, -1]


def test_find_goes_through_all_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(string_array, "STRINGS_PER_CHUNK", 3)
    names = [f"{number:02}" for number in range(20)]
    strings = StringArray.from_strings(names)
    assert [strings.find(name) for name in names] == list(range(20))
    assert list(strings) == names
    assert StringArray.from_strings([]).find("") == -1


def test_a_string_array_is_not_copied() -> None:
    strings = StringArray.from_strings(NAMES)
    assert StringArray.from_strings(strings) is strings


def test_the_builder_counts_and_can_go_on() -> None:
    builder = StringArrayBuilder()
    builder.extend(NAMES[:3])
    assert (len(builder), list(builder.build())) == (3, NAMES[:3])
    builder.extend(NAMES[3:])
    assert (len(builder), list(builder.build())) == (7, NAMES)


def test_names_that_are_not_utf8_are_recognized() -> None:
    assert [is_utf8(NAMES[2]), is_utf8(NON_UTF8)] == [True, False]
    for convert in (list, StringArray.from_strings):
        assert [are_utf8(convert(names)) for names in (["a"], NAMES, [*NAMES, NON_UTF8])] == [True, True, False]
