"""Fixtures of tests of the search."""

import pytest

from reptk.neighbors import bf16_prefilter, engine


@pytest.fixture(autouse=True, scope="module")
def _one_thread(one_thread: None) -> None:
    """So little work is faster on one thread."""


@pytest.fixture
def always_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Search in bfloat16 first, on any CPU, with few rows and queries, and in several chunks."""
    monkeypatch.setattr(bf16_prefilter, "cpu_multiplies_bf16", lambda: True)
    sizes = {"MIN_ROWS": 1, "MIN_QUERIES": 1, "MIN_ROWS_PER_NEIGHBOR": 1, "CHUNK_ROWS": 90}
    sizes |= {"MAX_NEIGHBORS": 1 << 40}
    for name, size in sizes.items():
        monkeypatch.setattr(bf16_prefilter, name, size)


@pytest.fixture
def by_faiss(monkeypatch: pytest.MonkeyPatch) -> None:
    """Search by FAISS, whatever the machine."""
    pytest.importorskip("faiss")
    monkeypatch.setattr(engine, "engine_name", lambda: "faiss")
