"""Passwords of addresses are hidden in whatever is printed."""

import pytest

from reptk.core.passwords import hide_passwords, redacted, without_secrets


@pytest.mark.parametrize(
    ("address", "printed"),
    [
        ("postgresql://me:pw@host:5432/db?table=x", "postgresql://me:***@host:5432/db?table=x"),
        ("postgresql://me:p@w/?#@host/db", "postgresql://me:***@host/db"),
        ("postgresql://:pw@host/db", "postgresql://:***@host/db"),
        ("postgresql:/me:pw@host", "postgresql:/me:***@host"),  # as pathlib writes it
        (
            "postgresql://host/db?user=me&PassWord=pw&sslmode=require",
            "postgresql://host/db?user=me&PassWord=***&sslmode=require",
        ),
        ("qdrant:http://host:6333/photos?api_key=pw", "qdrant:http://host:6333/photos?api_key=***"),
        ("postgresql://postgres:@/postgres?host=/tmp", "postgresql://postgres:@/postgres?host=/tmp"),
        ("postgresql://me@host:5432/db", "postgresql://me@host:5432/db"),
        ("lance:photos@home.lance", "lance:photos@home.lance"),
        ("https://example.org:80/a", "https://example.org:80/a"),
        ("postgresql://me@corp:pw@host/db", "postgresql://me@corp:***@host/db"),
        ("postgresql://me/x:pw@host/db", "postgresql://me/x:***@host/db"),
        ("postgresql:me:pw@host/db", "postgresql:me:***@host/db"),
        ("qdrant:http://me:pw@host:6333/photos", "qdrant:http://me:***@host:6333/photos"),
        ("postgresql:host=h password=pw dbname=d", "postgresql:host=h password=*** dbname=d"),
        ("host=h PASSWORD = 'a pw' dbname=d", "host=h PASSWORD = *** dbname=d"),
        ("host=h sslpassword=pw", "host=h sslpassword=***"),
    ],
)
def test_addresses(address: str, printed: str) -> None:
    assert redacted(address) == printed
    assert hide_passwords(f"no {address} here") == f"no {printed} here"


def test_only_passwords_of_a_text_are_hidden() -> None:
    text = "from postgresql://a:x@h/d, mail me@example.org at 12:30"
    assert hide_passwords(text) == "from postgresql://a:***@h/d, mail me@example.org at 12:30"


def test_a_message_that_quotes_the_password() -> None:
    address = "postgresql://me:s%40fe@host/db?password=other"
    assert without_secrets("pw and a b fail", "host=h password='a b'") == "pw and *** fail"
    assert without_secrets("p:w fails", "postgresql:me@corp:p:w@host/db") == "*** fails"
    assert without_secrets("s@fe and s%40fe and other fail", address) == "*** and *** and *** fail"
