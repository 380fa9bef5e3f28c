"""Keys in lists of keys and tables."""

import pytest

from reptk.config.dotted_keys import flatten, is_among


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("trackers", True),
        ("trackers.wandb.project", True),
        ("train.workers", True),
        ("train", False),
        ("train.workers_x", False),
        ("trackersx.wandb", False),
    ],
)
def test_a_key_or_its_table(key: str, expected: bool) -> None:
    assert is_among(key, ("train.workers", "trackers")) is expected


def test_nested_tables_by_dotted_keys() -> None:
    table = {"a": 1, "b": {"c": [2, {"d": 3}], "e": {"f": None, "g": {}}}}
    assert flatten(table) == {"a": 1, "b.c": [2, {"d": 3}]}
    assert flatten(table, with_unset=True) == {"a": 1, "b.c": [2, {"d": 3}], "b.e.f": None}
    assert list(flatten({"b": {"x": 1}, "a": 2})) == ["b.x", "a"]
    assert flatten({"x": {"y": 1}}, "t") == {"t.x.y": 1}
    assert flatten(5, "t") == {"t": 5}
    assert flatten(None, "t") == flatten({}) == {}
