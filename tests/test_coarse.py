"""Candidates by products in bfloat16: the bound that they promise, and the same neighbours in the end."""

import importlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from neighbour_searches import brute, drawn, found, same
from reptk.neighbors import check_vectors
from reptk.neighbors.rows import Facts

exact, coarse, pairs, order = (
    importlib.import_module(f"reptk.neighbors.{name}") for name in ("exact", "coarse", "pairs", "order")
)


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
        "alike but for almost nothing": rows * 2.0**-80 + (torch.arange(48) == 0),
        "alike but for less": rows * 2.0**-110 + (torch.arange(48) == 0),
    }
    return made[kind]


KINDS = ["any", "a cone", "clusters", "rectified", "lengths", "tiny", "huge", "copies"]
HARD = ["alike but for almost nothing", "alike but for less"]


@pytest.mark.usefixtures("always_coarse")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k", [1, 30])
def test_bfloat16_is_off_by_no_more_than_it_says(kind: str, k: int) -> None:
    bank = spread(kind)
    queries = bank[::40] + 0.1 * bank[1::40]
    looked = coarse.coarse(bank, check_vectors("bank", bank))(queries, k)
    true = queries.double() @ bank.double().T
    is_listed, listed = looked.rows >= 0, torch.zeros_like(true, dtype=torch.bool)
    listed[is_listed.nonzero()[:, 0], looked.rows[is_listed]] = True
    off = (looked.similarities.double() - true.gather(1, looked.rows.clamp_min(0))).abs()
    assert (off <= looked.error[:, None])[is_listed].all()
    assert 0.03 < (off / looked.error[:, None])[is_listed].max() <= 1  # and not a multiple of what it is
    settled = looked.rest < torch.inf
    assert settled.double().mean() > 0.9
    assert (true.masked_fill(listed, -torch.inf).amax(1) <= looked.rest + looked.error)[settled].all()
    assert (is_listed.sum(1) >= k)[settled].all()


@pytest.mark.usefixtures("always_coarse")
@pytest.mark.parametrize("kind", KINDS + HARD)
def test_candidates_by_bfloat16_lead_to_the_same_neighbours(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("faiss")
    monkeypatch.setattr(exact, "engine_name", lambda: "faiss")
    bank, own = spread(kind), torch.arange(0, 4000, 25)
    queries = bank[own]
    through, asked = found(bank, queries, 20, own), []
    monkeypatch.setattr(coarse.Coarse, "takes", lambda self, *given: asked.append(given) and False)
    assert same(through, found(bank, queries, 20, own))
    assert asked == [(160, 20)]


@pytest.mark.usefixtures("always_coarse")
def test_bfloat16_suffices_for_almost_all_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("faiss")
    monkeypatch.setattr(exact, "engine_name", lambda: "faiss")
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
    monkeypatch.setattr(exact, "engine_name", lambda: "faiss")
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
    native, rows, mean = pairs.kernels("reptk.neighbors.kernels"), drawn(50, 33, 38), drawn(1, 33, 39)[0]
    rows[0], rows[1] = mean, mean + 2.0**-8 * 1.5
    rows[2:5] = mean + torch.tensor([1.00390625, 1.01171875, -1.00390625])[:, None]  # halfway between two
    short = coarse._Short(rows, mean, native)
    assert torch.equal(short.rows, (rows - mean).bfloat16())
    lost = (rows - mean) - (rows - mean).bfloat16().float()
    assert short.lost == pytest.approx(lost.norm(dim=1).max().item() * 1.001, rel=1e-5)
    assert short.longest == pytest.approx((rows - mean).norm(dim=1).max().item() * 1.001, rel=1e-5)


@pytest.mark.parametrize("scale", [2.0**-40, 2.0**-64, 2.0**-80, 2.0**-120])
def test_lengths_of_what_vanishes_when_squared_are_no_less(scale: float) -> None:
    native, rows, mean = pairs.kernels("reptk.neighbors.kernels"), drawn(50, 33, 38) * scale, torch.zeros(33)
    short = coarse._Short(rows, mean, native)
    assert short.longest >= rows.double().norm(dim=1).max()
    assert short.lost >= (rows.double() - rows.bfloat16().double()).norm(dim=1).max()


@pytest.mark.parametrize("count", [1, 5, 64])
def test_sifting_keeps_the_best(count: int) -> None:
    native = pairs.kernels("reptk.neighbors.kernels")
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
    features: str, expected: bool, monkeypatch: pytest.MonkeyPatch, fresh_features: None
) -> None:
    monkeypatch.setattr(coarse.Path, "read_text", lambda self: features)
    assert coarse.multiplies_bfloat16() is expected
    for limit, allowed in (("AVX512_CORE", False), ("avx512_core_amx", True), ("AVX2", False), ("ALL", True)):
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
        assert coarse.multiplies_bfloat16() is (expected and allowed)
    with torch.backends.mkldnn.flags(enabled=False, allow_tf32=None):
        assert not coarse.multiplies_bfloat16()


def test_processors_that_say_nothing_are_not_asked_for_bfloat16(
    monkeypatch: pytest.MonkeyPatch, fresh_features: None
) -> None:
    def missing(self: Path) -> str:
        raise FileNotFoundError(self)

    monkeypatch.setattr(coarse.Path, "read_text", missing)
    assert coarse.multiplies_bfloat16() is False


@pytest.fixture
def fresh_features() -> Iterator[None]:
    coarse.has_instructions.cache_clear()
    yield
    coarse.has_instructions.cache_clear()


def test_what_bfloat16_is_worth_it_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coarse, "has_instructions", lambda: True)
    bank = drawn(20_000, 4, 41)
    given = coarse.coarse(bank, check_vectors("bank", bank))
    fits = [(128, 1), (5000, 399), (127, 1), (128, 401)]
    assert [given.takes(queries, k) for queries, k in fits] == [True, True, False, False]
    for other in (bank[1:], bank.double(), bank.half(), bank[:, ::2], bank * 1e-15, bank * 1e15):
        assert coarse.coarse(other, check_vectors("bank", other)) is None
    monkeypatch.setattr(coarse, "load_kernels", lambda package: None)
    assert coarse.coarse(bank, check_vectors("bank", bank)) is None


@pytest.mark.parametrize(
    ("pairs_each", "settled", "expected"), [(180, 200, True), (180, 150, True), (180, 149, False), (190, 200, False)]
)
def test_whether_it_was_worth_it(pairs_each: int, settled: int, expected: bool, always_coarse: None) -> None:
    bank = drawn(20_000, 4, 41)
    given = coarse.coarse(bank, check_vectors("bank", bank))
    rows = torch.arange(400).expand(200, -1).masked_fill(torch.arange(400) >= pairs_each, -1)
    given.learn(coarse.Candidates(torch.zeros(200, 400), rows, torch.zeros(200), torch.zeros(200)), 30, settled)
    assert given.is_worth is expected


@pytest.mark.usefixtures("always_coarse")
def test_any_order_of_sums_is_allowed_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows and queries that bfloat16 holds, so that little but the order of sums in float32 is left to err."""
    half = (drawn(2000, 400, 42).abs() + 1).bfloat16().float()
    bank = torch.cat([torch.cat([half, -half.flip(1)], 1), torch.cat([-half, half.flip(1)], 1)])
    queries = torch.cat([half[:50], half[:50].flip(1)], 1)
    monkeypatch.setattr(coarse, "ROUNDING", 0.0)
    monkeypatch.setattr(coarse, "SAMPLE", 4000)
    looked = coarse.coarse(bank, check_vectors("bank", bank))
    allowed = 802 * 2.0**-24 * queries.norm(dim=1) * bank.norm(dim=1).max()
    assert (looked(queries, 20).error >= allowed).all()


@pytest.mark.usefixtures("always_coarse")
@pytest.mark.parametrize("which", ["bank", "queries"])
def test_rows_that_ask_for_gradients(which: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("faiss")
    monkeypatch.setattr(exact, "engine_name", lambda: "faiss")
    rows = {"bank": spread("copies"), "queries": spread("copies")[:150:3]}
    expected = brute(rows["bank"], rows["queries"], 12)
    rows[which].requires_grad_()
    assert same(found(rows["bank"], rows["queries"], 12), expected)
    monkeypatch.setattr(coarse.Coarse, "takes", lambda self, *given: False)
    assert same(found(rows["bank"], rows["queries"], 12), expected)


@pytest.mark.usefixtures("always_coarse")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["faiss", "torch"])
def test_autocast_changes_nothing(dtype: torch.dtype, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("faiss")
    monkeypatch.setattr(exact, "engine_name", lambda: kind)
    bank, queries = drawn(900, 48, 43) * 30, drawn(150, 48, 44) * 100
    with torch.autocast("cpu", dtype=dtype):
        assert same(found(bank, queries, 10), brute(bank, queries, 10))
        monkeypatch.setattr(coarse.Coarse, "takes", lambda self, *given: False)
        assert same(found(bank, queries, 10), brute(bank, queries, 10))


@pytest.mark.usefixtures("always_coarse")
def test_another_bank_that_decides_is_not_looked_at_through_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("faiss")
    monkeypatch.setattr(exact, "engine_name", lambda: "faiss")
    bank = drawn(2000, 48, 45)
    short = bank.half().float()
    assert exact.prepare(short, check_vectors("bank", short), bank).coarse is None
    assert exact.prepare(short, check_vectors("bank", short)).coarse is not None


@pytest.mark.usefixtures("always_coarse")
def test_a_part_of_a_bank_whose_other_rows_are_long(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("faiss")
    monkeypatch.setattr(exact, "engine_name", lambda: "faiss")
    bank, queries = drawn(1000, 16, 46) * 1e-25, drawn(150, 16, 47)
    made = exact.nearest_keys(exact.prepare(bank, Facts(1.0, 0, [])), queries, None, 5)
    assert same((order.similarities(made), order.rows(made)), brute(bank, queries, 5))
