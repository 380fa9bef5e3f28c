"""Several values of one key."""

import pytest

from reptk.config.value_lists import several_values_hint, split_values
from reptk.core.errors import UsageError


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("0.05,0.1,0.2", ["0.05", "0.1", "0.2"]),
        ("0..3", ["0", "1", "2", "3"]),
        ("-1..1", ["-1", "0", "1"]),
        ("5..5", ["5"]),
        ("0..2,7", ["0", "1", "2", "7"]),
        ("[1,5]", ["[1,5]"]),
        ("[1,5],[20]", ["[1,5]", "[20]"]),
        ("{a=1,b=[2,3]},4", ["{a=1,b=[2,3]}", "4"]),
        ('["a,b]",2],3', ['["a,b]",2]', "3"]),
        ('"IVF16,Flat","HNSW8"', ['"IVF16,Flat"', '"HNSW8"']),
        ("'a,b'", ["'a,b'"]),
        ("supcon, tcl", ["supcon", "tcl"]),
        ("Bob's,Ann's", ["Bob's", "Ann's"]),
        ("", [""]),
        ("../a..b", ["../a..b"]),
        ("0.1..0.2", ["0.1..0.2"]),
        ("[1,2", ["[1,2"]),
    ],
)
def test_commas_and_ranges(text: str, values: list[str]) -> None:
    assert split_values("key", text) == values


@pytest.mark.parametrize("text", ["0,", ",", "0,,1", "3..1", "0..10000000"])
def test_values_that_cannot_be_meant(text: str) -> None:
    with pytest.raises(UsageError, match=r"^seed=") as error:
        split_values("seed", text)
    assert text in str(error.value)


def test_the_hint_needs_a_refused_key_with_several_values() -> None:
    assert several_values_hint("tiny", ["seed=0,1", "optim.lr=1"], ["seed"]).endswith(
        "reptk sweep tiny seed=0,1 optim.lr=1"
    )
    assert several_values_hint("tiny", ["seed=0..1"], ["seed"])
    assert several_values_hint("tiny", ["seed=x"], ["seed"]) == ""
    # Where a text with a comma is valid, something else was refused.
    assert several_values_hint("tiny", ["data.root=a,b", "seed=x"], ["seed"]) == ""
