"""Candidates by products in bfloat16: the bound that they promise, and the same neighbours in the end."""

import importlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from neighbour_searches import brute, drawn, found, same
from reptk.neighbours import check_rows

exact, coarse, pairs = (importlib.import_module(f"reptk.neighbours.{name}") for name in ("exact", "coarse", "pairs"))


@pytest.fixture(autouse=True, scope="module")
def _quick(one_thread):
    """Tiny work throughout."""


def spread(kind: str) -> Tensor:
    """(4000, 48) rows that are similar to each other in different ways."""
    rows = drawn(4000, 48, 30)
    made = {
        "any": rows,
        "a cone": rows + 8 * drawn(1, 48, 31),
        "clusters": 0.3 * rows + drawn(40, 48, 32)[torch.arange(4000) % 40],
        "rectified": rows.relu(),
        "lengths": rows * drawn(4000, 1, 33).exp(),
        "tiny": rows * 1e-9,
        "huge": rows * 1e9,
        "copies": rows[torch.arange(4000) % 500],
    }
    return made[kind]


KINDS = ["any", "a cone", "clusters", "rectified", "lengths", "tiny", "huge", "copies"]


@pytest.mark.usefixtures("always_coarse")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k", [1, 30])
def test_bfloat16_is_off_by_no_more_than_it_says(kind: str, k: int) -> None:
    bank = spread(kind)
    queries = bank[::40] + 0.1 * bank[1::40]
    found = coarse.coarse(bank, check_rows("bank", bank))(queries, k)
    true = queries.double() @ bank.double().T
    is_listed = found.rows >= 0
    off = (found.similarities.double() - true.gather(1, found.rows.clamp_min(0))).abs()
    assert (off <= found.error[:, None])[is_listed].all()
    assert 0.03 < (off / found.error[:, None])[is_listed].max() <= 1
    unlisted = true.masked_fill(
        torch.zeros_like(true, dtype=torch.bool).scatter(1, found.rows.clamp_min(0), True), -1e30
    )
    settled = found.rest < torch.inf
    assert settled.double().mean() > 0.9
    assert (unlisted.amax(1) <= found.rest + found.error)[settled].all()
    assert (is_listed.sum(1) >= k)[settled].all()


@pytest.mark.usefixtures("always_coarse")
@pytest.mark.parametrize("kind", KINDS)
def test_candidates_by_bfloat16_lead_to_the_same_neighbours(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("faiss")
    monkeypatch.setattr(exact, "engine", lambda: "faiss")
    bank, own = spread(kind), torch.arange(0, 4000, 25)
    queries = bank[own]
    through, asked = found(bank, queries, 20, own), []
    monkeypatch.setattr(coarse.Coarse, "takes", lambda self, *given: asked.append(given) and False)
    assert same(through, found(bank, queries, 20, own))
    assert asked == [(160, 20)]


@pytest.mark.usefixtures("always_coarse")
def test_bfloat16_suffices_for_almost_all_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("faiss")
    monkeypatch.setattr(exact, "engine", lambda: "faiss")
    left, ask = [], exact.first_of
    monkeypatch.setattr(
        exact, "first_of", lambda find, queries, **more: left.append(len(queries)) or ask(find, queries, **more)
    )
    bank, queries = drawn(4000, 64, 34), drawn(500, 64, 35)
    assert same(found(bank, queries, 10), brute(bank, queries, 10))
    assert sum(left) < 25


@pytest.mark.usefixtures("always_coarse")
def test_bfloat16_is_given_up_where_it_settles_too_little(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("faiss")
    monkeypatch.setattr(exact, "engine", lambda: "faiss")
    monkeypatch.setattr(exact, "BLOCK", 50)
    looks, look = [], coarse.Coarse.__call__
    monkeypatch.setattr(coarse.Coarse, "__call__", lambda self, *given: looks.append(1) or look(self, *given))
    bank = drawn(4000, 48, 36) * 1e-3
    bank[0] = 1e3  # all others round to where they are next to each other
    queries = drawn(200, 48, 37)
    assert same(found(bank, queries, 10), brute(bank, queries, 10))
    assert len(looks) == 1
    assert same(found(bank[1:].contiguous(), queries, 10), brute(bank[1:], queries, 10))
    assert len(looks) == 5


def test_rows_are_rounded_as_torch_does() -> None:
    native, rows, mean = pairs.kernels("reptk.neighbours"), drawn(50, 33, 38), drawn(1, 33, 39)[0]
    rows[0], rows[1] = mean, mean + 2.0**-8 * 1.5
    rows[2:5] = mean + torch.tensor([1.00390625, 1.01171875, -1.00390625])[:, None]  # halfway between two
    short = coarse._Short(rows, mean, native)
    assert torch.equal(short.rows, (rows - mean).bfloat16())
    lost = (rows - mean) - (rows - mean).bfloat16().float()
    assert short.lost == pytest.approx(lost.norm(dim=1).max().item() * 1.001, rel=1e-5)
    assert short.longest == pytest.approx((rows - mean).norm(dim=1).max().item() * 1.001, rel=1e-5)


@pytest.mark.parametrize("count", [1, 5, 64])
def test_sifting_keeps_the_best(count: int) -> None:
    native = pairs.kernels("reptk.neighbours")
    scores = drawn(7, 3000, 40).bfloat16()
    kept = coarse._Kept(7, count, native, np.zeros(7, np.int16))
    for first in range(0, 3000, 700):
        kept.sift(scores[:, first : first + 700].contiguous(), first)
    best, last = (coarse._value(bits) for bits in kept.ranks(count))
    ordered = scores.float().sort(1, descending=True).values
    assert torch.equal(best, ordered[:, 0])
    assert torch.equal(last, ordered[:, count - 1])
    values, rows = kept.above(last)
    present = rows >= 0
    assert torch.equal(values[present], scores.float().gather(1, rows.clamp_min(0))[present])
    # Of those equal to the last some may be dropped, none of those above it
    above = (scores.float() > last[:, None]).sum(1)
    assert torch.equal((values > last[:, None]).sum(1), above)


@pytest.mark.parametrize(
    ("features", "expected"),
    [("flags : sse avx512_bf16 fma", True), ("flags : amx_bf16", True), ("flags : avx512f", False)],
)
def test_processors_say_whether_they_multiply_bfloat16(
    features: str, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coarse.Path, "read_text", lambda self: features)
    coarse.multiplies_bfloat16.cache_clear()
    try:
        assert coarse.multiplies_bfloat16() is expected
    finally:
        coarse.multiplies_bfloat16.cache_clear()


def test_processors_that_say_nothing_are_not_asked_for_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(self: Path) -> str:
        raise FileNotFoundError(self)

    monkeypatch.setattr(coarse.Path, "read_text", missing)
    coarse.multiplies_bfloat16.cache_clear()
    try:
        assert coarse.multiplies_bfloat16() is False
    finally:
        coarse.multiplies_bfloat16.cache_clear()
