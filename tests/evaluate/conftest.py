"""Fixtures of all tests of evaluation."""

import importlib

import pytest

# `reptk.neighbors` has a function of that name, so the module is asked for by its full name.
exact_search = importlib.import_module("reptk.neighbors.exact")


@pytest.fixture(autouse=True, scope="module")
def _one_thread(one_thread):
    """Everything here is tiny."""


@pytest.fixture(params=["faiss", "torch"])
def either_engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Search with FAISS, and again with torch."""
    if request.param == "faiss":
        pytest.importorskip("faiss")
    monkeypatch.setattr(exact_search, "engine_name", lambda: request.param)
    return request.param
