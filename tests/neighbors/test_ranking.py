"""Similarities of pairs in float64, their order as integers, and re-ranking."""

import pytest
import torch
from torch import Tensor

from neighbor_searches import brute_force, draw, same
from reptk.neighbors import ranking, rerank


@pytest.mark.parametrize("width", [1, 2, 3, 7, 64, 129, 512])
def test_torch_and_numba_sum_alike_to_the_last_bit_of_float64(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU uses torch. Sums that cancel leave nothing but what was rounded."""
    monkeypatch.setattr(ranking, "TORCH_VALUES", 1000)
    bank, queries = draw(400, width, 16), draw(30, width, 17)
    query_rows, rows = torch.arange(300) % 30, torch.arange(300) * 7 % 400
    assert equal_pairs(bank, queries, rows, query_rows)
    if width % 2 == 0:
        bank[:, 1::2], queries[:, 1::2] = -bank[:, ::2], queries[:, ::2]
        bank[:, 0] *= 1 + 2**-20
        assert equal_pairs(bank, queries, rows, query_rows)


def equal_pairs(bank: Tensor, queries: Tensor, rows: Tensor, query_rows: Tensor) -> bool:
    by_numba = ranking.pair_similarities(bank, queries, rows, query_rows)
    by_torch = ranking._by_torch(bank, queries, rows, query_rows)
    return torch.equal(by_numba, by_torch) and bool(by_numba.abs().max() > 0)


def test_pairs_without_numba(monkeypatch: pytest.MonkeyPatch) -> None:
    bank, queries, rows = draw(100, 9, 22), draw(5, 9, 23), torch.arange(35).view(5, 7)
    by_numba = rerank(bank, queries, rows, 4)
    monkeypatch.setattr(ranking, "load_kernels", lambda module: None)
    assert same(rerank(bank, queries, rows, 4), by_numba)


@pytest.mark.parametrize("wrong", [-1, 400])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_rows_that_do_not_exist_are_refused(wrong: int, dtype: torch.dtype) -> None:
    bank, queries = draw(400, 8, 16).to(dtype), draw(30, 8, 17)
    with pytest.raises(IndexError, match="of 400"):
        ranking.pair_similarities(bank, queries, torch.tensor([3, wrong]), torch.tensor([0, 1]))


def test_keys_sort_by_similarity_then_row() -> None:
    similarities = torch.tensor([[2.0, -1.0, 0.0, 2.0, 1e-40, -1e-40, -3e38, 3e38]])
    rows = torch.tensor([[9, 0, (1 << 32) - 1, 4, 5, 6, 7, 8]])
    sorted_similarities, sorted_rows = ranking.unpack(ranking.greatest(ranking.pack(similarities, rows), 8))
    assert sorted_rows[0].tolist() == [8, 4, 9, 5, (1 << 32) - 1, 6, 0, 7]
    assert torch.equal(sorted_similarities, similarities.sort(descending=True).values)
    similarity, row = ranking.unpack(torch.tensor([[ranking.NO_NEIGHBOR]]))
    assert row.item() == -1
    assert similarity.item() == -torch.inf


@pytest.mark.parametrize("k", [1, 5, 49, 50, 99, 100, 101])
def test_greatest_keys(k: int) -> None:
    keys = torch.randint(-(1 << 62), 1 << 62, (7, 100), generator=torch.Generator().manual_seed(0))
    assert torch.equal(ranking.greatest(keys, k), keys.sort(1, descending=True).values[:, :k])


def test_reranking_all_rows_is_exact_search() -> None:
    bank, queries = draw(200, 6, 24, 2), draw(10, 6, 25, 2)
    exclude = torch.tensor([-1, 3] * 5)
    shuffled = torch.randperm(200, generator=torch.Generator().manual_seed(1)).expand(10, -1)
    assert same(rerank(bank, queries, shuffled, 30, exclude), brute_force(bank, queries, 30, exclude))


def test_reranking_too_few_candidates() -> None:
    bank, queries = draw(50, 6, 26), draw(2, 6, 27)
    candidates = torch.tensor([[4, -1, 7, -1], [-1, -1, 9, -1]])
    similarities, rows = rerank(bank, queries, candidates, 3, torch.tensor([-1, 9]))
    assert sorted(rows[0, :2].tolist()) == [4, 7]
    assert rows[0, 2:].tolist() == [-1]
    assert rows[1].tolist() == [-1] * 3
    assert similarities[0, :2].isfinite().all()
    assert similarities[rows < 0].eq(-torch.inf).all()
