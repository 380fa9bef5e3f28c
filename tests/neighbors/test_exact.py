"""Exact search against a stable sort of all similarities: every engine, block size, precision and kind of bank."""

import warnings

import numpy as np
import pytest
import torch

from neighbor_searches import BANKS, brute_force, draw, same, search_all
from reptk.core.errors import EnvironmentProblem
from reptk.neighbors import bf16_prefilter, engine, exact, ranking, rerank, search, vectors


@pytest.fixture(params=["faiss", "torch", "bf16"])
def any_engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param != "torch":
        pytest.importorskip("faiss")
    monkeypatch.setattr(engine, "engine_name", lambda: "torch" if request.param == "torch" else "faiss")
    monkeypatch.setattr(bf16_prefilter, "cpu_multiplies_bf16", lambda: False)
    if request.param == "bf16":
        request.getfixturevalue("always_bf16")
    return request.param


@pytest.mark.filterwarnings("ignore:.*all zeros")
@pytest.mark.parametrize("margin", [0, 16])
@pytest.mark.parametrize("leave_one_out", [False, True])
@pytest.mark.parametrize("kind", BANKS)
def test_neighbors_are_those_of_a_stable_sort(
    kind: str, leave_one_out: bool, margin: int, any_engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exact, "MARGIN", margin)
    monkeypatch.setattr(exact, "FLOAT64_SCORES", {"cpu": 4000})
    monkeypatch.setattr(exact, "FLOAT64_KEYS", 12_000)
    count, width, largest = BANKS[kind]
    bank = draw(count, width, 1, largest)
    queries, exclude = draw(60, width, 2, largest), None
    if leave_one_out:
        queries, exclude = bank[::9], torch.arange(count)[::9]
        exclude[::3] = -1
    for k in (1, 7, 40, 90, count - 1):
        assert same(search_all(bank, queries, k, exclude), brute_force(bank, queries, k, exclude))


@pytest.mark.parametrize("scale", [1e-30, 1e-36, 1e-38, 1e-40, 1e-44])
def test_queries_of_any_smallness(scale: float, any_engine: str) -> None:
    """Down to where a number has a single digit, and many similarities are equal."""
    bank, queries = draw(500, 12, 19), draw(40, 12, 20) * scale
    assert same(search_all(bank, queries, 20), brute_force(bank, queries, 20))


def test_comparison_notices_an_unstable_sort() -> None:
    bank, queries = draw(900, 3, 1, 1), draw(60, 3, 2, 1)
    similarities, rows = brute_force(bank.flip(0), queries, 90)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = search_all(bank, queries, 90)
    assert torch.equal(result[0], similarities)
    assert not torch.equal(result[1], 899 - rows)


@pytest.mark.parametrize("noise", [0.0, 1e-8, 1e-7, 1e-6])
def test_collapsed_encoder(noise: float, any_engine: str) -> None:
    bank = 1 + noise * draw(3000, 16, 3)
    queries = 1 + noise * draw(40, 16, 4)
    assert same(search_all(bank, queries, 20), brute_force(bank, queries, 20))


@pytest.mark.parametrize("width", [1, 5, 64, 100])
def test_similarities_do_not_depend_on_block_sizes(
    width: int, any_engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bank, queries = draw(2000, width, 5), draw(150, width, 6)
    # Copies at other places, where BLAS would use other kernels
    bank[1500:] = bank[100:600]
    whole = search_all(bank, queries, 30)
    assert same(whole, brute_force(bank, queries, 30))
    for block, chunk_rows in ((1, 64), (7, 100), (150, 512)):
        monkeypatch.setattr(exact, "BLOCK", block)
        monkeypatch.setattr(ranking, "GATHER_BYTES", 8 * width * chunk_rows)
        assert same(search_all(bank, queries, 30), whole)
    assert same(search_all(bank[::2].contiguous(), queries, 9), search_all(bank[::2], queries, 9))
    few = search_all(bank, queries[:2], 3)
    assert same(few, (whole[0][:2, :3], whole[1][:2, :3]))


def test_threads_do_not_change_a_bit() -> None:
    bank, queries = draw(3000, 32, 7), draw(300, 32, 8)
    one = search_all(bank, queries, 50)
    torch.set_num_threads(3)
    try:
        assert same(search_all(bank, queries, 50), one)
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("chunk_rows", [3, 64, 10_000])
def test_bank_of_another_precision(
    chunk_rows: int, dtype: torch.dtype, any_engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bank, queries = draw(500, 10, 9).to(dtype), draw(50, 10, 10)
    monkeypatch.setattr(vectors, "CHUNK_BYTES", 4 * 10 * chunk_rows)
    monkeypatch.setattr(engine, "TORCH_SCORES", {"cpu": 50 * chunk_rows})
    monkeypatch.setattr(exact, "BLOCK", 16)
    assert same(search_all(bank, queries, 20), brute_force(bank.float(), queries, 20))


@pytest.mark.usefixtures("by_faiss")
def test_float32_bank_is_read_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    faiss = pytest.importorskip("faiss")
    knn, banks = faiss.knn, []

    def record(queries: np.ndarray, bank: np.ndarray, *args: object, **options: object) -> object:
        banks.append((bank.ctypes.data, bank.nbytes))
        return knn(queries, bank, *args, **options)

    monkeypatch.setattr(faiss, "knn", record)
    bank, queries = draw(300, 8, 14), draw(5, 8, 15)
    threshold = faiss.cvar.distance_compute_blas_threshold
    search_all(bank, queries, 3)
    assert banks == [(bank.data_ptr(), bank.nbytes)]
    monkeypatch.setattr(vectors, "CHUNK_BYTES", 4 * 8 * 50)
    banks.clear()
    search_all(bank.half(), queries, 3)
    assert [size for _, size in banks] == [4 * 8 * 50] * 6
    assert faiss.cvar.distance_compute_blas_threshold == threshold


@pytest.mark.gpu
@pytest.mark.parametrize("bank_device", ["cpu", "cuda"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("tf32", [False, True])
def test_gpu_equals_cpu(bank_device: str, dtype: torch.dtype, tf32: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("faiss")
    bank, queries = draw(5000, 96, 20).to(dtype), draw(300, 96, 21)
    bank[4000:4300] = bank[:300]
    queries[:50] = bank[:50]
    exclude = torch.arange(300)
    exclude[50:] = -1
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", tf32)
    depths = (20, 1000)
    by_gpu = [search_all(bank.to(bank_device), queries.to(bank_device), k, exclude.to(bank_device)) for k in depths]
    monkeypatch.setattr(engine, "engine_name", lambda: "faiss")
    for k, result in zip(depths, by_gpu, strict=True):
        assert same(result, search_all(bank, queries, k, exclude))


# Deep rankings, and queries that no candidates decide


@pytest.mark.parametrize("keys", [500, 20_000, 1 << 23])
@pytest.mark.parametrize("k", [130, 999, 2000])
def test_deep_rankings_sum_in_the_same_order(k: int, keys: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Similarities for which another order of summing could round otherwise are summed as candidates are."""
    recomputed = []

    def record(bank: torch.Tensor, queries: torch.Tensor, *pairs: torch.Tensor) -> torch.Tensor:
        recomputed.append(len(pairs[0]))
        return ranking.pair_similarities(bank, queries, *pairs)

    bank, queries = draw(2000, 512, 50), draw(90, 512, 51)
    all_rows = torch.arange(2000).expand(90, -1)
    expected = rerank(bank, queries, all_rows, k)
    monkeypatch.setattr(exact, "pair_similarities", record)
    monkeypatch.setattr(exact, "FLOAT64_KEYS", keys)
    assert same(search_all(bank, queries, k), expected)
    assert 0 < sum(recomputed) < 0.01 * 90 * 2000


@pytest.mark.parametrize("kind", ["one long row", "rows of zeros", "orthogonal"])
def test_float64_search_of_unusual_rows(kind: str) -> None:
    bank, queries = draw(300, 12, 52), draw(20, 12, 53)
    if kind == "one long row":
        bank[17] *= 1e12
    elif kind == "rows of zeros":
        bank[::2] = 0
    else:
        bank, queries = torch.eye(12).repeat(25, 1), torch.eye(12)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = search_all(bank, queries, 250)
    assert same(result, rerank(bank, queries, torch.arange(300).expand(len(queries), -1), 250))


def test_deep_rankings_come_in_smaller_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    bank, queries = draw(500, 8, 54), draw(20, 8, 55)
    whole = search_all(bank, queries, 100)
    monkeypatch.setattr(exact, "BLOCK_NEIGHBORS", 700)
    blocks = list(search(bank, queries, 100))
    assert [len(rows) for _, rows in blocks] == [7, 7, 6]
    assert same((torch.cat([block[0] for block in blocks]), torch.cat([block[1] for block in blocks])), whole)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_progress_counts_queries(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exact, "BLOCK", 8)
    progress: list[int] = []
    for _ in search(draw(500, 8, 56).to(dtype), draw(20, 8, 57), 3, progress=progress.append):
        pass
    assert progress == [8, 8, 4]


# Invalid input


def test_zero_rows_are_counted_and_named() -> None:
    bank = draw(50, 4, 18)
    bank[[3, 30]] = 0
    with pytest.warns(UserWarning, match=r"2 of 50 rows of bank are all zeros, first \[3, 30\]"):
        search_all(bank, bank[:3], 1)
    with pytest.warns(UserWarning, match=r"1 of 2 rows of queries are all zeros, first \[1\]"):
        search_all(draw(50, 4, 18), bank[2:4], 1)


def test_products_beyond_float32_are_refused() -> None:
    big, small = torch.full((3, 4), 2e19), torch.full((3, 4), 1e-30)
    with pytest.raises(ValueError, match="inner products beyond float32; normalize"):
        search_all(big, big, 1)
    assert search_all(big, small, 1)[0][0].item() == pytest.approx(8e-11)


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
def test_invalid_arguments_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        search_all(**({"bank": draw(20, 6, 20), "queries": draw(4, 6, 21), "k": 2} | change))


@pytest.mark.parametrize("name", ["faiss", "torch"])
def test_a_requested_engine_is_used_and_finds_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("faiss")
    used = []
    top_by_float32 = exact.top_by_float32

    def record(bank: torch.Tensor, queries: torch.Tensor, count: int, engine_name: str) -> object:
        used.append(engine_name)
        return top_by_float32(bank, queries, count, engine_name)

    monkeypatch.setattr(exact, "top_by_float32", record)
    bank, queries = draw(500, 8, 61), draw(20, 8, 62)
    assert same(search_all(bank, queries, 3, engine=name), brute_force(bank, queries, 3))
    assert used == [name]


def test_a_requested_engine_that_is_missing_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "load_faiss", lambda: None)
    with pytest.raises(EnvironmentProblem, match="engine 'faiss' needs FAISS"):
        search_all(draw(500, 8, 61), draw(20, 8, 62), 3, engine="faiss")
