"""The bfloat16 prefilter: the error bound it promises, and the same neighbors in the end."""

import pytest
import torch
from torch import Tensor

from neighbor_searches import brute_force, draw, same, search_all
from reptk.neighbors import bf16_prefilter, check_vectors, exact, ranking
from reptk.neighbors import engine as engine_module
from reptk.neighbors.bf16_prefilter import Bf16Bank


def bank_of(kind: str) -> Tensor:
    """(4000, 48) rows that are similar to each other in different ways."""
    rows = draw(4000, 48, 30)
    numbers = torch.arange(4000)
    banks = {
        "normal": rows,
        "cone": rows + 8 * draw(1, 48, 31),
        "clusters": 0.3 * rows + draw(40, 48, 32)[numbers % 40],
        "rectified": rows.relu(),
        "norms": rows * draw(4000, 1, 33).exp(),
        "tiny": rows * 1e-9,
        "huge": rows * 1e9,
        "copies": rows[numbers % 500],
        "almost alike": rows * 2.0**-80 + (torch.arange(48) == 0),
        "even more alike": rows * 2.0**-110 + (torch.arange(48) == 0),
    }
    return banks[kind]


KINDS = ["normal", "cone", "clusters", "rectified", "norms", "tiny", "huge", "copies"]
HARD_KINDS = ["almost alike", "even more alike"]


@pytest.fixture
def no_bf16(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Reject every search, and record numbers of queries and neighbors."""
    calls: list[tuple[int, int]] = []

    def reject(self: Bf16Bank, query_count: int, k: int) -> bool:
        calls.append((query_count, k))
        return False

    monkeypatch.setattr(Bf16Bank, "is_faster", reject)
    return calls


# The bound


@pytest.mark.usefixtures("always_bf16")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k", [1, 30])
def test_error_is_within_its_bound(kind: str, k: int) -> None:
    bank = bank_of(kind)
    queries = bank[::40] + 0.1 * bank[1::40]
    candidates = Bf16Bank(bank).candidates(queries, k)
    similarities = queries.double() @ bank.double().T
    is_candidate = candidates.rows >= 0
    query_rows = is_candidate.nonzero()[:, 0]
    is_listed = torch.zeros_like(similarities, dtype=torch.bool)
    is_listed[query_rows, candidates.rows[is_candidate]] = True
    errors = (candidates.similarities.double() - similarities.gather(1, candidates.rows.clamp_min(0))).abs()
    relative = (errors / candidates.error[:, None])[is_candidate]
    assert relative.max() <= 1
    assert relative.max() > 0.03  # the bound is not many times too large
    is_decided = candidates.bound < torch.inf
    assert is_decided.double().mean() > 0.9
    others = similarities.masked_fill(is_listed, -torch.inf).amax(1)
    assert (others <= candidates.bound + candidates.error)[is_decided].all()
    assert (is_candidate.sum(1) >= k)[is_decided].all()


@pytest.mark.usefixtures("always_bf16")
def test_bound_allows_any_order_of_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of rows and queries that bfloat16 holds, where the order of sums in float32 causes most of the error."""
    half = (draw(2000, 400, 42).abs() + 1).bfloat16().float()
    bank = torch.cat([torch.cat([half, -half.flip(1)], 1), torch.cat([-half, half.flip(1)], 1)])
    queries = torch.cat([half[:50], half[:50].flip(1)], 1)
    monkeypatch.setattr(bf16_prefilter, "BF16_ROUNDING", 0.0)
    monkeypatch.setattr(bf16_prefilter, "SAMPLE_SHARE", 1)
    candidates = Bf16Bank(bank).candidates(queries, 20)
    sum_error = 802 * 2.0**-24 * queries.norm(dim=1) * bank.norm(dim=1).max()
    assert (candidates.error >= sum_error).all()


def test_rows_are_rounded_as_torch_rounds() -> None:
    rows, mean = draw(50, 33, 38), draw(1, 33, 39)[0]
    rows[0], rows[1] = mean, mean + 2.0**-8 * 1.5
    rows[2:5] = mean + torch.tensor([1.00390625, 1.01171875, -1.00390625])[:, None]  # halfway between two
    bank = Bf16Bank(rows)
    bank.mean = mean
    rounded = bank.round(rows)
    assert torch.equal(rounded.rows, (rows - mean).bfloat16())
    errors = (rows - mean) - (rows - mean).bfloat16().float()
    assert rounded.max_error == pytest.approx(errors.norm(dim=1).max().item() * 1.001, rel=1e-5)
    assert rounded.max_norm == pytest.approx((rows - mean).norm(dim=1).max().item() * 1.001, rel=1e-5)


@pytest.mark.parametrize("scale", [2.0**-40, 2.0**-64, 2.0**-80, 2.0**-120])
def test_norms_whose_squares_underflow_are_not_underestimated(scale: float) -> None:
    rows = draw(50, 33, 38) * scale
    bank = Bf16Bank(rows)
    bank.mean = torch.zeros(33)
    rounded = bank.round(rows)
    assert rounded.max_norm >= rows.double().norm(dim=1).max()
    assert rounded.max_error >= (rows.double() - rows.bfloat16().double()).norm(dim=1).max()


# Collecting


@pytest.mark.parametrize("floor", [0.0, 0.5, 1.5, 9.0])
def test_all_scores_above_the_floor_are_collected(floor: float) -> None:
    scores = draw(7, 3000, 40).bfloat16()
    floors = torch.full((7,), floor).bfloat16()
    floors[3] = 0.25
    matches = bf16_prefilter._Matches(floors, capacity=3000)
    for first in range(0, 3000, 700):
        matches.add(scores[:, first : first + 700].contiguous(), first)
    values, rows = matches.result(20)
    assert values.shape == rows.shape == (7, max(20, int((scores > floors[:, None]).sum(1).max())))
    assert not matches.overflowed.any()
    for query in range(7):
        expected = (scores[query] > floors[query]).nonzero()[:, 0]
        is_match = rows[query] >= 0
        assert torch.equal(rows[query][is_match], expected)
        assert torch.equal(values[query][is_match], scores[query, expected].float())
        assert values[query][~is_match].eq(-torch.inf).all()


def test_too_many_matches_are_noticed() -> None:
    scores = torch.full((3, 100), -1.0).bfloat16()
    scores[0, :5], scores[1, :6], scores[2, :90] = 1, 1, 1
    matches = bf16_prefilter._Matches(torch.zeros(3).bfloat16(), capacity=5)
    matches.add(scores, 0)
    assert matches.overflowed.tolist() == [False, True, True]
    _, rows = matches.result(5)
    assert rows.tolist() == [[0, 1, 2, 3, 4]] * 3


# Searching


@pytest.mark.usefixtures("always_bf16", "by_faiss")
@pytest.mark.parametrize("kind", KINDS + HARD_KINDS)
def test_prefilter_leads_to_the_same_neighbors(kind: str, request: pytest.FixtureRequest) -> None:
    bank, exclude = bank_of(kind), torch.arange(0, 4000, 25)
    queries = bank[exclude]
    filtered = search_all(bank, queries, 20, exclude)
    calls = request.getfixturevalue("no_bf16")
    assert same(filtered, search_all(bank, queries, 20, exclude))
    assert calls == [(160, 20)]


@pytest.mark.usefixtures("always_bf16", "by_faiss")
def test_prefilter_decides_almost_all_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    left = []

    def record(bank: Tensor, queries: Tensor, count: int, engine: str) -> tuple[Tensor, Tensor]:
        left.append(len(queries))
        return top_by_float32(bank, queries, count, engine)

    top_by_float32 = exact.top_by_float32
    monkeypatch.setattr(exact, "top_by_float32", record)
    bank, queries = draw(4000, 64, 34), draw(500, 64, 35)
    assert same(search_all(bank, queries, 10), brute_force(bank, queries, 10))
    assert sum(left) < 25


@pytest.mark.usefixtures("always_bf16", "by_faiss")
def test_prefilter_that_decides_too_little_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def record(self: Bf16Bank, queries: Tensor, k: int) -> bf16_prefilter.Candidates:
        calls.append(k)
        return candidates(self, queries, k)

    candidates = Bf16Bank.candidates
    monkeypatch.setattr(exact, "BLOCK", 50)
    monkeypatch.setattr(Bf16Bank, "candidates", record)
    bank = draw(4000, 48, 36) * 1e-3
    bank[0] = 1e3  # next to it, all others round to nearly the same
    queries = draw(200, 48, 37)
    assert same(search_all(bank, queries, 10), brute_force(bank, queries, 10))
    assert len(calls) == 1
    assert same(search_all(bank[1:].contiguous(), queries, 10), brute_force(bank[1:], queries, 10))
    assert len(calls) == 5


@pytest.mark.usefixtures("always_bf16", "by_faiss")
@pytest.mark.parametrize("which", ["bank", "queries"])
def test_rows_that_require_gradients(which: str, request: pytest.FixtureRequest) -> None:
    rows = {"bank": bank_of("copies"), "queries": bank_of("copies")[:150:3]}
    expected = brute_force(rows["bank"], rows["queries"], 12)
    rows[which].requires_grad_()
    assert same(search_all(rows["bank"], rows["queries"], 12), expected)
    request.getfixturevalue("no_bf16")
    assert same(search_all(rows["bank"], rows["queries"], 12), expected)


@pytest.mark.usefixtures("always_bf16", "by_faiss")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("engine", ["faiss", "torch"])
def test_autocast_changes_nothing(
    dtype: torch.dtype, engine: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.setattr(engine_module, "engine_name", lambda: engine)
    bank, queries = draw(900, 48, 43) * 30, draw(150, 48, 44) * 100
    with torch.autocast("cpu", dtype=dtype):
        assert same(search_all(bank, queries, 10), brute_force(bank, queries, 10))
        request.getfixturevalue("no_bf16")
        assert same(search_all(bank, queries, 10), brute_force(bank, queries, 10))


@pytest.mark.usefixtures("always_bf16", "by_faiss")
def test_part_of_a_bank_whose_other_rows_are_long() -> None:
    bank, queries = draw(1000, 16, 46) * 1e-25, draw(150, 16, 47)
    searchable = exact.SearchableBank.prepare(bank, max_norm=1.0)
    assert searchable.prefilter is not None
    keys = exact.nearest_keys(searchable, queries, torch.full((150,), -1), 5)
    assert same(ranking.unpack(keys), brute_force(bank, queries, 5))


# When it applies


@pytest.mark.parametrize("avx512", [False, True])
@pytest.mark.parametrize("amx", [False, True])
def test_cpu_needs_instructions_that_torch_uses(avx512: bool, amx: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    if torch.backends.mkldnn.is_available():
        assert bf16_prefilter.cpu_multiplies_bf16() is (avx512 or amx)
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX512_CORE")
        assert not bf16_prefilter.cpu_multiplies_bf16()
        monkeypatch.delenv("ONEDNN_MAX_CPU_ISA")
    with torch.backends.mkldnn.flags(enabled=False, allow_tf32=None):
        assert not bf16_prefilter.cpu_multiplies_bf16()


def test_sizes_for_which_it_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bf16_prefilter, "cpu_multiplies_bf16", lambda: True)
    bank = draw(20_000, 4, 41)
    norm = check_vectors("bank", bank).max_norm
    assert Bf16Bank.applies(bank, norm)
    rounded = Bf16Bank(bank)
    sizes = [(128, 1), (5000, 400), (127, 1), (128, 401)]
    assert [rounded.is_faster(*size) for size in sizes] == [True, True, False, False]
    for other in (bank[1:], bank.double(), bank.half(), bank[:, ::2], bank * 1e-15, bank * 1e15):
        assert not Bf16Bank.applies(other, check_vectors("bank", other).max_norm)
    monkeypatch.setattr(bf16_prefilter, "cpu_multiplies_bf16", lambda: False)
    assert not Bf16Bank.applies(bank, norm)
    monkeypatch.setattr(bf16_prefilter, "cpu_multiplies_bf16", lambda: True)
    monkeypatch.setattr(bf16_prefilter, "load_kernels", lambda module: None)
    assert not Bf16Bank.applies(bank, norm)
