"""Keys in lists of keys and tables."""

import pytest

from reptk.config.dotted_keys import is_among


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
