"""Checks of vectors before they are searched."""

import pytest
import torch

from neighbor_searches import draw
from reptk.neighbors import check_vectors, vectors


def test_norms_without_numba_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = draw(50, 33, 18) * torch.tensor([1e-30, 1.0, 1e30]).repeat(17)[:50, None]  # squares beyond float32
    rows[3], rows[5, 7], rows[6, 1] = 0, torch.nan, torch.inf
    by_numba = vectors.row_norms(rows)
    monkeypatch.setattr(vectors, "load_kernels", lambda module: None)
    torch.testing.assert_close(by_numba, vectors.row_norms(rows), rtol=1e-14, atol=0, equal_nan=True)
    assert (~by_numba.isfinite()).nonzero().flatten().tolist() == [5, 6]
    assert (by_numba == 0).nonzero().flatten().tolist() == [3]


def test_norms_of_a_strided_bank() -> None:
    rows = draw(40, 6, 28)
    assert torch.equal(vectors.row_norms(rows[::2, ::2]), vectors.row_norms(rows[::2, ::2].contiguous()))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_values_that_are_not_finite_are_counted_and_named(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectors, "CHUNK_BYTES", 4 * 4 * 11)
    rows = draw(100, 4, 19).to(dtype)
    for row, value in ((5, torch.nan), (20, torch.inf), (99, -torch.inf)):
        rows[row, 1] = value
    with pytest.raises(ValueError, match=r"3 of 100 rows of bank hold NaN or infinity, first \[5, 20, 99\]"):
        check_vectors("bank", rows)


def test_no_more_than_five_rows_are_named() -> None:
    rows = torch.full((8, 2), torch.nan)
    with pytest.raises(ValueError, match=r"8 of 8 rows of queries hold NaN or infinity, first \[0, 1, 2, 3, 4\]"):
        check_vectors("queries", rows)


def test_norms_neither_overflow_nor_underflow() -> None:
    big, small = torch.full((3, 4), 2e19), torch.full((3, 4), 1e-30)
    assert check_vectors("bank", big).max_norm == pytest.approx(4e19)
    assert check_vectors("bank", small).zero_count == 0


def test_no_rows() -> None:
    assert check_vectors("queries", torch.zeros(0, 3)) == (0.0, 0, [])
