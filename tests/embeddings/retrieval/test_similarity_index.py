"""Index.search: queries must fit, and re-ranked candidates are what exact search returns."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

import reptk
from reptk import neighbors
from reptk.core import rng
from reptk.core.errors import DataError
from reptk.embeddings.retrieval.similarity_index import exact_search

pytestmark = [pytest.mark.usefixtures("one_thread")]


@pytest.mark.parametrize("exclude", [None, torch.tensor([0, -1, 7])], ids=["all", "but some"])
def test_candidates_are_ranked_as_exact_search_ranks_them(exclude: Tensor | None) -> None:
    bank = torch.randn(50, 4, generator=rng.generator("ranked", 50))
    queries = torch.randn(3, 4, generator=rng.generator("ranked", 3))
    bank[30:40] = bank[:10]
    shuffled = torch.stack([torch.randperm(50, generator=rng.generator("order", query)) for query in range(3)])
    candidates = torch.cat([shuffled, torch.full((3, 5), -1)], 1)
    similarities, rows = neighbors.rerank(bank, queries, candidates, 12, exclude)
    exact_similarities, exact_rows = exact_search(bank, queries, 12, exclude)
    assert torch.equal(similarities, exact_similarities)
    assert torch.equal(rows, exact_rows)
    similarities, rows = neighbors.rerank(bank, queries, candidates[:, 44:], 8)
    assert (rows[:, :6] >= 0).all()
    assert (rows[:, 6:] == -1).all()
    assert (similarities[:, 6:] == -torch.inf).all()


@pytest.mark.parametrize(
    ("queries", "message"),
    [
        (torch.ones(1, 3), "64 values"),
        (torch.full((1, 64), torch.nan), "NaN"),
        (torch.zeros(1, 64), "zero"),
        (torch.ones(64), "floating point"),
        (torch.ones(1, 64, dtype=torch.int64), "floating point"),
    ],
)
def test_queries_must_fit_the_index(queries: Tensor, message: str, photo_embeddings: Path) -> None:
    with pytest.raises(DataError, match=message):
        reptk.search(photo_embeddings, queries)
