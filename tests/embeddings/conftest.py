"""Fixtures of tests/embedding_inputs.py."""

from pathlib import Path

import pytest

from embedding_inputs import clustered, encoded, encoder_run, photo_embeddings, photo_folder, photos

__all__ = ["clustered", "encoded", "encoder_run", "photo_embeddings", "photo_folder", "photos"]


@pytest.fixture
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Indexes of shards are written to a folder of the test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
