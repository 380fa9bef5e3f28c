"""Fixtures of the tests of stores."""

from pathlib import Path

import pytest

from embedding_inputs import encoder_run, photo_embeddings, photo_folder
from reptk.config.plugins import load_plugin
from reptk.config.registry import STORES as REGISTERED_STORES
from store_servers import QDRANT_PLUGIN, STORES, new_address

__all__ = ["address", "encoder_run", "photo_embeddings", "photo_folder", "store_name"]


@pytest.fixture(params=STORES)
def store_name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def address(store_name: str, tmp_path: Path, restored_registries: None, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of a collection that does not exist yet, in each store."""
    found = new_address(store_name, tmp_path)
    if store_name == "qdrant":
        load_plugin(QDRANT_PLUGIN)
        _share_client(monkeypatch)
    return found


def _share_client(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let all stores of the test use one client, whose collections are in memory."""
    from qdrant_client import QdrantClient

    client = QdrantClient(":memory:")
    store = REGISTERED_STORES.get("qdrant")
    monkeypatch.setattr(store, "_connect", lambda self: client)
    monkeypatch.setattr(store, "close", lambda self: None)
