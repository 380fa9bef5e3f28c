"""Uniform numbers by key: a function of (key, salt, row), independent, the same with and without numba."""

import math

import pytest
import torch

from reptk.core import rng

SALTS = torch.tensor([3, 1, 4, 15, 92, 65])


def test_uniform_is_uniform_and_its_columns_are_independent():
    numbers = torch.arange(20000)
    u = rng.uniform(3, SALTS, numbers)
    assert u.shape == (20000, 6)
    assert u.dtype == torch.float32
    assert 0 <= u.min() < 1e-3 < 1 - 1e-3 < u.max() < 1
    histograms = torch.stack([column.histc(20, 0, 1) for column in u.T]) / 20000
    assert (histograms - 0.05).abs().max() < 5 * math.sqrt(0.05 / 20000)
    off_diagonal = torch.corrcoef(u.T) - torch.eye(6)
    assert off_diagonal.abs().max() < 4 / math.sqrt(20000)
    next_row = torch.stack([u[:-1, 0], u[1:, 0]])
    next_key = torch.stack([u[:, 0], rng.uniform(4, SALTS, numbers)[:, 0]])
    for pair in (next_row, next_key):
        assert abs(torch.corrcoef(pair)[0, 1]) < 4 / math.sqrt(20000)


def test_uniform_depends_on_key_salt_and_row_alone():
    numbers = torch.arange(100)
    u = rng.uniform(3, SALTS, numbers)
    assert torch.equal(u[[7, 3]][:, [2, 0]], rng.uniform(3, SALTS[[2, 0]], torch.tensor([7, 3])))
    for other in (
        rng.uniform(4, SALTS, numbers),
        rng.uniform(3, SALTS + 1, numbers),
        rng.uniform(3, SALTS, numbers + 100),
    ):
        assert (u == other).float().mean() < 0.01
    assert len(u.unique()) > 0.99 * u.numel()
    for extreme in (0, 2**63 - 1):
        assert rng.uniform(extreme, torch.tensor([extreme]), torch.arange(10)).isfinite().all()


def test_uniform_has_these_values():
    # A change of these values changes every run that has ever been recorded.
    expected = [0.5861849, 0.9964465, 0.1259108]
    torch.testing.assert_close(
        rng.uniform(1, SALTS[:3], torch.tensor([5]))[0], torch.tensor(expected), atol=1e-6, rtol=0
    )


@pytest.mark.parametrize("key", [0, 3, 2**63 - 1])
def test_uniform_is_bit_for_bit_the_same_with_numba_and_without(key, monkeypatch):
    numbers = torch.tensor([0, 1, 2**40, 2**62, *range(7, 3000)])
    compiled = rng.uniform(key, SALTS, numbers)
    monkeypatch.setattr(rng, "compile_exact", lambda function: None)
    assert torch.equal(compiled, rng.uniform(key, SALTS, numbers))
