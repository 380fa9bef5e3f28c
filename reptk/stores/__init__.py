"""Vector databases that embeddings are exported to, and searched in: Lance and PostgreSQL with pgvector."""

from reptk.core.passwords import redacted, without_secrets
from reptk.stores.addresses import is_address, open_store, require_address
from reptk.stores.lance_store import LanceStore
from reptk.stores.postgres_store import PostgresStore
from reptk.stores.protocol import (
    Collection,
    Store,
    StoredRows,
    raise_changed,
    ranked,
    require_collection,
    require_new_collection,
    require_store_package,
    require_unchanged,
)

__all__ = [
    "Collection",
    "LanceStore",
    "PostgresStore",
    "Store",
    "StoredRows",
    "is_address",
    "open_store",
    "raise_changed",
    "ranked",
    "redacted",
    "require_address",
    "require_collection",
    "require_new_collection",
    "require_store_package",
    "require_unchanged",
    "without_secrets",
]
