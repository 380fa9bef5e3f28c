"""Which texts are addresses of stores."""

import pytest

from reptk.core.errors import UsageError
from reptk.stores import is_address, open_store, require_address


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("lance:photos.lance", True),
        ("LANCE:photos.lance", True),
        ("postgresql://me@host/db", True),
        ("postgres:///db", True),
        ("photos.index", False),
        ("c:/photos.index", False),
        ("photos:2024.index", False),
        ("", False),
        (":x", False),
    ],
)
def test_addresses_are_told_from_files(text: str, expected: bool) -> None:
    assert is_address(text) == expected


def test_an_unknown_store_is_named_with_the_nearest(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(UsageError, match=r"postgresq://me:\*\*\*@host/db: no store 'postgresq'\. Nearest: postgresql"):
        open_store("postgresq://me:geheim@host/db")
    with pytest.raises(UsageError, match="is not a store address"):
        require_address("photos.lance")
