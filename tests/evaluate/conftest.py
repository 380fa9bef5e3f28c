"""Fixtures of all tests of evaluation."""

import importlib

import pytest

engine_module = importlib.import_module("reptk.neighbors.engine")


@pytest.fixture(autouse=True, scope="module")
def _one_thread(one_thread):
    """Everything here is tiny."""


@pytest.fixture(params=["faiss", "torch"])
def either_engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Search with FAISS, and again with torch."""
    if request.param == "faiss":
        pytest.importorskip("faiss")
    monkeypatch.setattr(engine_module, "engine_name", lambda: request.param)
    return request.param
