"""Exact search against a stable sort written out in NumPy: every engine_name, block size, precision, file and number of ranks."""

import importlib
import os
import socket
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from torch import Tensor

from neighbour_searches import brute, drawn, found, same
from reptk.neighbors import check_vectors, engine_name, search_sharded

# Their numbers are made small here, so the modules themselves are asked for.
exact, candidates, coarse, crowded, pairs, rows_module, order, engine_module = (
    importlib.import_module(f"reptk.neighbors.{name}")
    for name in ("exact", "candidates", "coarse", "crowded", "pairs", "rows", "order", "engine")
)


@pytest.fixture(autouse=True, scope="module")
def _quick(one_thread):
    """Tiny work throughout."""


@pytest.fixture(params=["faiss", "torch", "coarse"])
def either_engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param != "torch":
        pytest.importorskip("faiss")
    monkeypatch.setattr(exact, "engine_name", lambda: "torch" if request.param == "torch" else "faiss")
    monkeypatch.setattr(coarse, "has_instructions", lambda: False)
    if request.param == "coarse":
        request.getfixturevalue("always_coarse")
    return request.param


# count, width, greatest integer (0: normal numbers)
BANKS = {
    "all different": (700, 12, 0),
    "many ties": (700, 6, 2),
    "hundreds of copies": (900, 3, 1),
    "two values": (400, 1, 1),
}


@pytest.mark.filterwarnings("ignore:.*all zeros")
@pytest.mark.parametrize("margin", [0, 16])
@pytest.mark.parametrize("leave_out", [False, True])
@pytest.mark.parametrize("kind", BANKS)
def test_neighbours_are_those_of_a_stable_sort(
    kind: str, leave_out: bool, margin: int, either_engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exact, "MARGIN", margin)
    monkeypatch.setattr(crowded, "SCORES", 4000)
    count, width, most = BANKS[kind]
    bank = drawn(count, width, 1, most)
    queries = bank[::9] if leave_out else drawn(60, width, 2, most)
    own = torch.where(torch.arange(len(queries)) % 3 == 0, -1, torch.arange(count)[::9]) if leave_out else None
    for k in (1, 7, 90, count - 1):
        assert same(found(bank, queries, k, own), brute(bank, queries, k, own))


@pytest.mark.parametrize("scale", [1e-30, 1e-36, 1e-38, 1e-40, 1e-44])
def test_queries_of_any_smallness(scale: float, either_engine: str) -> None:
    """Down to where a number has a single digit, and many similarities are equal."""
    bank, queries = drawn(500, 12, 19), drawn(40, 12, 20) * scale
    assert same(found(bank, queries, 20), brute(bank, queries, 20))


def test_a_sort_that_is_not_stable_is_noticed() -> None:
    bank, queries = drawn(900, 3, 1, 1), drawn(60, 3, 2, 1)
    similarities, rows = brute(bank.flip(0), queries, 90)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ours = found(bank, queries, 90)
    assert torch.equal(ours[0], similarities)
    assert not torch.equal(ours[1], 899 - rows)


@pytest.mark.parametrize("noise", [0.0, 1e-8, 1e-7, 1e-6])
def test_a_collapsed_encoder_is_searched_all_the_same(noise: float, either_engine: str) -> None:
    bank = 1 + noise * drawn(3000, 16, 3)
    queries = 1 + noise * drawn(40, 16, 4)
    assert same(found(bank, queries, 20), brute(bank, queries, 20))


@pytest.mark.parametrize("width", [1, 5, 64, 100])
def test_similarities_do_not_depend_on_how_the_work_is_cut(
    width: int, either_engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bank, queries = drawn(2000, width, 5), drawn(150, width, 6)
    # Copies at other places, where BLAS would take other kernels
    bank[1500:] = bank[100:600]
    whole = found(bank, queries, 30)
    assert same(whole, brute(bank, queries, 30))
    for block, chunk in ((1, 64), (7, 100), (150, 512)):
        monkeypatch.setattr(exact, "BLOCK", block)
        monkeypatch.setattr(pairs, "CHUNK_BYTES", 8 * width * chunk)
        assert same(found(bank, queries, 30), whole)
    assert same(found(bank[::2].contiguous(), queries, 9), found(bank[::2], queries, 9))
    # Only the lines that are asked for, so that few rows are gathered rather than chunks of all
    few = found(bank, queries[:2], 3)
    assert same(few, (whole[0][:2, :3], whole[1][:2, :3]))


def test_threads_do_not_change_a_bit() -> None:
    bank, queries = drawn(3000, 32, 7), drawn(300, 32, 8)
    one = found(bank, queries, 50)
    torch.set_num_threads(3)
    try:
        assert same(found(bank, queries, 50), one)
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("chunk", [3, 64, 10_000])
def test_a_bank_of_another_precision_is_searched_as_it_is(
    chunk: int, dtype: torch.dtype, either_engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bank, queries = drawn(500, 10, 9).to(dtype), drawn(50, 10, 10)
    monkeypatch.setattr(rows_module, "CHUNK_BYTES", 4 * 10 * chunk)
    monkeypatch.setattr(candidates, "SCORES", {"cpu": 50 * chunk})
    monkeypatch.setattr(exact, "BLOCK", 16)
    assert same(found(bank, queries, 20), brute(bank.float(), queries, 20))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("width", [3, 48])
def test_half_precision_is_ranked_again_by_the_exact_rows(width: int, dtype: torch.dtype, either_engine: str) -> None:
    bank, queries = torch.nn.functional.normalize(drawn(2500, width, 11), dim=1), drawn(40, width, 12)
    half = bank.to(dtype)
    assert same(found(half, queries, 30, exact=bank), found(bank, queries, 30))
    assert not same(found(half, queries, 30), found(bank, queries, 30))


def test_the_exact_rows_have_to_belong_to_the_bank() -> None:
    bank = torch.nn.functional.normalize(drawn(200, 8, 13), dim=1)
    with pytest.raises(ValueError, match="exact holds other rows than bank"):
        found(bank.half(), bank[:3], 2, exact=bank.flip(0))
    with pytest.raises(ValueError, match=r"exact must be \(200, 8\) like bank, got torch.float32 \(199, 8\)"):
        found(bank.half(), bank[:3], 2, exact=bank[1:])


def test_a_float32_bank_is_searched_where_it_lies(monkeypatch: pytest.MonkeyPatch) -> None:
    faiss = pytest.importorskip("faiss")
    monkeypatch.setattr(exact, "engine_name", lambda: "faiss")
    real, seen = faiss.knn, []

    def knn(asked: np.ndarray, bank: np.ndarray, *more: object, **options: object) -> object:
        seen.append((bank.ctypes.data, bank.nbytes))
        return real(asked, bank, *more, **options)

    monkeypatch.setattr(faiss, "knn", knn)
    bank, queries = drawn(300, 8, 14), drawn(5, 8, 15)
    before = faiss.cvar.distance_compute_blas_threshold
    found(bank, queries, 3)
    assert seen == [(bank.data_ptr(), bank.nbytes)]
    monkeypatch.setattr(rows_module, "CHUNK_BYTES", 4 * 8 * 50)
    seen.clear()
    found(bank.half(), queries, 3)
    assert [size for _, size in seen] == [4 * 8 * 50] * 6
    assert faiss.cvar.distance_compute_blas_threshold == before


@pytest.mark.parametrize("width", [1, 2, 3, 7, 64, 129, 512])
def test_pairs_on_a_gpu_are_those_of_the_processor_to_the_last_bit_of_float64(
    width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The way that CUDA takes, on the processor's tensors; sums that cancel but for what was rounded."""
    monkeypatch.setattr(pairs, "BLOCK_VALUES", 1000)
    bank, queries = drawn(400, width, 16), drawn(30, width, 17)
    numbers, rows = torch.arange(300) % 30, torch.arange(300) * 7 % 400
    assert same_pairs(bank, queries, numbers, rows)
    if width % 2 == 0:
        bank[:, 1::2], queries[:, 1::2] = -bank[:, ::2], queries[:, ::2]
        bank[:, 0] *= 1 + 2**-20
        assert same_pairs(bank, queries, numbers, rows)


def same_pairs(bank: torch.Tensor, queries: torch.Tensor, numbers: torch.Tensor, rows: torch.Tensor) -> bool:
    native = pairs.load_kernels("reptk.neighbors.kernels")
    made = pairs._in_order(native, bank, queries, numbers, rows)
    return torch.equal(made, pairs._gathered(bank, queries, numbers, rows)) and bool(made.abs().max() > 0)


@pytest.mark.gpu
@pytest.mark.parametrize("where", ["cpu", "cuda"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("tf32", [False, True])
def test_a_gpu_finds_the_neighbours_of_the_processor(
    where: str, dtype: torch.dtype, tf32: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("faiss")
    bank, queries = drawn(5000, 96, 20).to(dtype), drawn(300, 96, 21)
    bank[4000:4300] = bank[:300]
    queries[:50] = bank[:50]
    own = torch.arange(300).masked_fill_(torch.arange(300) >= 50, -1)
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", tf32)
    there = found(bank.to(where), queries.to(where), 20, own.to(where))
    monkeypatch.setattr(exact, "engine_name", lambda: "faiss")
    here = found(bank, queries, 20, own)
    assert all(torch.equal(one, other) for one, other in zip(there, here, strict=True))


@pytest.mark.parametrize("wrong", [-1, 400])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_pairs_beyond_the_bank_are_refused(wrong: int, dtype: torch.dtype) -> None:
    bank, queries = drawn(400, 8, 16).to(dtype), drawn(30, 8, 17)
    with pytest.raises(IndexError, match="of 400"):
        pairs.pair_similarities(bank, queries, torch.tensor([0, 1]), torch.tensor([3, wrong]))


def test_lengths_without_machine_code_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = drawn(50, 33, 18) * torch.tensor([1e-30, 1.0, 1e30]).repeat(17)[:50, None]  # squares beyond float32
    rows[3], rows[5, 7], rows[6, 1] = 0, torch.nan, torch.inf
    ours = rows_module.lengths(rows)
    monkeypatch.setattr(rows_module, "load_kernels", lambda package: None)
    torch.testing.assert_close(ours, rows_module.lengths(rows), rtol=1e-14, atol=0, equal_nan=True)
    assert (~ours.isfinite()).nonzero().flatten().tolist() == [5, 6]
    assert (ours == 0).nonzero().flatten().tolist() == [3]


def test_keys_sort_like_similarity_then_row() -> None:
    similarities = torch.tensor([[2.0, -1.0, 0.0, 2.0, 1e-40, -1e-40, -3e38, 3e38]])
    rows = torch.tensor([[9, 0, (1 << 32) - 1, 4, 5, 6, 7, 8]])
    made = order.nearest(order.keys(similarities, rows), 8)
    assert order.rows(made)[0].tolist() == [8, 4, 9, 5, (1 << 32) - 1, 6, 0, 7]
    assert torch.equal(order.similarities(made), similarities.sort(descending=True).values)
    none = torch.tensor([[order.NONE]])
    assert order.rows(none).item() == -1
    assert order.similarities(none).item() == -torch.inf


# Engines


@pytest.fixture
def fresh_engine() -> None:
    engine_name.cache_clear()
    yield
    engine_name.cache_clear()


def test_a_gpu_is_searched_by_torch(monkeypatch: pytest.MonkeyPatch, fresh_engine: None) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert engine_name() == "torch"


@pytest.mark.parametrize("problem", [ImportError, RuntimeError, AttributeError])
def test_a_faiss_that_cannot_be_loaded(
    problem: type[Exception], monkeypatch: pytest.MonkeyPatch, fresh_engine: None
) -> None:
    def broken(name: str) -> None:
        raise problem("CUDA libraries are missing")

    monkeypatch.setattr(engine_module.importlib, "import_module", broken)
    if sys.platform == "darwin":
        assert engine_name() == "torch"
        return
    with pytest.warns(UserWarning, match=r"FAISS is not installed.*pip install 'reptk\[cpu\]'"):
        assert engine_name() == "torch"


def test_what_an_uninstalled_faiss_leaves_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", type(sys)("faiss"))
    assert engine_module.faiss() is None


# Bad input


def test_zero_rows_are_counted_and_named() -> None:
    bank = drawn(50, 4, 18)
    bank[[3, 30]] = 0
    with pytest.warns(UserWarning, match=r"2 of 50 rows of bank are all zeros, first \[3, 30\]"):
        found(bank, bank[:3], 1)
    with pytest.warns(UserWarning, match=r"1 of 2 rows of queries are all zeros, first \[1\]"):
        found(drawn(50, 4, 18), bank[2:4], 1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_values_that_are_not_finite_are_counted_and_named(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows_module, "CHUNK_BYTES", 4 * 4 * 11)
    rows = drawn(100, 4, 19).to(dtype)
    for number, value in ((5, torch.nan), (20, torch.inf), (99, -torch.inf)):
        rows[number, 1] = value
    with pytest.raises(ValueError, match=r"3 of 100 rows of bank hold NaN or infinity, first \[5, 20, 99\]"):
        check_vectors("bank", rows)


def test_lengths_beyond_float32_are_no_infinity() -> None:
    big, small = torch.full((3, 4), 2e19), torch.full((3, 4), 1e-30)
    assert check_vectors("bank", big).longest == pytest.approx(4e19)
    assert check_vectors("bank", small).zero == 0
    with pytest.raises(ValueError, match="inner products beyond float32; normalise"):
        found(big, big, 1)
    assert found(big, small, 1)[0][0].item() == pytest.approx(8e-11)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 0}, "k must be 1 to 20 .* got 0"),
        ({"k": 21}, "k must be 1 to 20 .* got 21"),
        ({"k": 20, "exclude": torch.arange(4)}, "k must be 1 to 19 .*besides the query"),
        ({"exclude": torch.arange(3)}, "exclude must hold 4 row numbers below 20"),
        ({"exclude": torch.tensor([1, 2, 3, 20])}, "exclude must hold 4 row numbers below 20"),
        ({"queries": torch.ones(4, 5)}, "bank rows have 6 values, query rows 5"),
        ({"bank": torch.ones(20, 6).long()}, "bank must be .* floating point"),
        ({"bank": torch.ones(20)}, "bank must be .* floating point"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        found(**({"bank": drawn(20, 6, 20), "queries": drawn(4, 6, 21), "k": 2} | change))


# Ranks


def case(kind: str) -> tuple[Tensor, Tensor, Tensor]:
    count, width, most = BANKS[kind]
    bank = drawn(count, width, 1, most)
    queries = torch.cat([bank[::20], drawn(9, width, 2, most)])
    return bank, queries, torch.cat([torch.arange(count)[::20], torch.full((9,), -1)])


def cut(count: int, parts: int) -> list[int]:
    """Where uneven parts end; the second is empty where there are four."""
    return {1: [count], 2: [count // 3, count], 4: [count // 3, count // 3, count - 5, count]}[parts]


def search_as_rank(rank: int, world: int, out: str) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    from reptk.core import distributed

    exact.BLOCK = importlib.import_module("reptk.neighbors.sharded").BLOCK = 10
    made: dict[str, Tensor] = {}
    for kind in BANKS:
        bank, queries, own = case(kind)
        rows = slice([0, *cut(len(bank), world)][rank], cut(len(bank), world)[rank])
        asked = slice([0, *cut(len(queries), world)][rank], cut(len(queries), world)[rank])
        for k in (1, 40, 390):
            for exclude in (None, own[asked]):
                parts = list(search_sharded(bank[rows], queries[asked], k, exclude))
                similarities, numbers = (
                    zip(*parts, strict=True) if parts else ([torch.empty(0, k)], [torch.empty(0, k)])
                )
                made[f"{kind},{k},{exclude is None}"] = torch.stack(
                    [torch.cat(similarities), torch.cat(numbers)]
                ).double()
    # Everyone refuses what one rank has to refuse, rather than waiting for it.
    bank, queries, _ = case("all different")
    if rank == world - 1:
        bank = torch.full_like(bank, torch.nan)
    expected = "hold NaN" if rank == world - 1 else f"rank {world - 1} has rows"
    with pytest.raises(ValueError, match=expected):
        list(search_sharded(bank[:10], queries[:2], 1))
    torch.save(made, f"{out}.{distributed.rank()}")


def _start(rank: int, world: int, port: int, out: str) -> None:
    from reptk.core import distributed

    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    distributed.setup("cpu")
    try:
        search_as_rank(rank, world, out)
    finally:
        distributed.cleanup()


@pytest.mark.filterwarnings("ignore:.*all zeros")
@pytest.mark.parametrize("world", [1, pytest.param(2, marks=pytest.mark.slow), pytest.param(4, marks=pytest.mark.slow)])
def test_any_number_of_ranks_finds_what_one_finds(world: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = str(tmp_path / "found")
    if world == 1:
        for module in (exact, importlib.import_module("reptk.neighbors.sharded")):
            monkeypatch.setattr(module, "BLOCK", module.BLOCK)
        search_as_rank(0, 1, out)
    else:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = listener.getsockname()[1]
        mp.spawn(_start, args=(world, port, out), nprocs=world)
    ranks = [torch.load(f"{out}.{rank}", weights_only=True) for rank in range(world)]
    for kind in BANKS:
        bank, queries, own = case(kind)
        for k in (1, 40, 390):
            for exclude in (None, own):
                made = torch.cat([rank[f"{kind},{k},{exclude is None}"] for rank in ranks], 1)
                assert torch.equal(made, torch.stack([part.double() for part in found(bank, queries, k, exclude)]))
