"""Addresses of stores, such as lance:photos.lance or postgresql://me@host/db?table=photos."""

import re

from reptk.config.registry import STORES, unknown
from reptk.core.errors import UsageError
from reptk.core.passwords import redacted
from reptk.stores.protocol import Store

ALIASES = {"postgres": "postgresql"}
"""Other names that addresses begin with, as libpq allows them."""

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9_+.-]+):")
"""At least two letters: one is a drive."""


def is_address(text: str) -> bool:
    """Return whether a text is the address of a store, and not the name of a file.

    Raises:
        UsageError: it is an address, and there is no such store.
    """
    match = _SCHEME.match(text)
    if match is None:
        return False
    name = _store_name(match[1])
    if name in STORES.names():
        return True
    if text[match.end() :].startswith("//"):
        raise UsageError(f"{redacted(text)}: {unknown('store', name, STORES.names())}")
    return False


def require_address(text: str) -> None:
    """Check that a text is the address of a store.

    Raises:
        UsageError: it is not, or there is no such store.
    """
    if not is_address(text):
        raise UsageError(
            f"{redacted(text)} is not a store address. An address starts with the name of the store: lance:photos.lance, "
            f"postgresql://user@host/database?table=photos. Stores: {', '.join(STORES.names())}"
        )


def open_store(address: str) -> Store:
    """Return the store of an address. It connects when it is used.

    Raises:
        UsageError: there is no such store, or the address is not valid.
    """
    require_address(address)
    scheme, _, rest = address.partition(":")
    name = _store_name(scheme)
    return STORES.build(name, {"address": f"{name}:{rest}"}, {})


def _store_name(scheme: str) -> str:
    name = scheme.lower()
    return ALIASES.get(name, name)
