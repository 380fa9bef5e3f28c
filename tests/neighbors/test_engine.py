"""Which library searches, and what is said where FAISS is missing."""

import sys
from collections.abc import Iterator

import pytest
import torch

from reptk.neighbors import engine, engine_name


@pytest.fixture
def fresh_engine() -> Iterator[None]:
    engine_name.cache_clear()
    yield
    engine_name.cache_clear()


def test_torch_searches_on_a_gpu(monkeypatch: pytest.MonkeyPatch, fresh_engine: None) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert engine_name() == "torch"


@pytest.mark.parametrize("problem", [ImportError, RuntimeError, AttributeError])
def test_faiss_that_cannot_be_loaded(
    problem: type[Exception], monkeypatch: pytest.MonkeyPatch, fresh_engine: None
) -> None:
    def broken(name: str) -> None:
        raise problem("CUDA libraries are missing")

    monkeypatch.setattr(engine.importlib, "import_module", broken)
    if sys.platform == "darwin":
        assert engine_name() == "torch"
        return
    with pytest.warns(UserWarning, match=r"FAISS is not installed.*pip install 'reptk\[cpu\]'"):
        assert engine_name() == "torch"


def test_empty_module_of_an_uninstalled_faiss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", type(sys)("faiss"))
    assert engine.load_faiss() is None
