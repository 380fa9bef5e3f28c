"""Approximate indexes: recall of every kind, reproducibility, files, and what is refused."""

import subprocess
import sys

import pytest
import torch
from torch import Tensor

from reptk.core.errors import DataError, EnvironmentProblem, UsageError
from reptk.neighbors import ApproximateIndex, engine, recommended_index, search, vectors

pytest.importorskip("faiss")


def clustered(count: int, width: int = 32, clusters: int = 40, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    centers = torch.randn(clusters, width, generator=torch.Generator().manual_seed(99))
    labels = torch.randint(0, clusters, (count,), generator=generator)
    noise = torch.randn(count, width, generator=generator)
    return torch.nn.functional.normalize(centers[labels] + 0.6 * noise, dim=1)


@pytest.fixture(scope="module")
def bank() -> Tensor:
    return clustered(4000)


@pytest.fixture(scope="module")
def queries() -> Tensor:
    return clustered(150, seed=1)


# Lower bounds of recall@10. Measured: 1, 1, 1, 1, 0.484, 0.464, 0.924, 0.355 and 0.997.
MIN_RECALL = {
    "Flat": 1.0,
    "IVF64,Flat": 0.97,
    "HNSW16": 0.97,
    "IVF16_HNSW32,Flat": 0.97,
    "PQ8": 0.44,
    "IVF16,PQ16x4": 0.42,
    "SQ8": 0.89,
    "PCA16,Flat": 0.32,
    "IVF16,PQ16x4,RFlat": 0.96,
}


@pytest.mark.filterwarnings("ignore:.*centroids")
@pytest.mark.parametrize("factory", MIN_RECALL)
def test_every_kind_has_recall_and_is_reproducible(factory: str, bank: Tensor, queries: Tensor) -> None:
    index = ApproximateIndex.build(bank, factory)
    recall = index.recall(bank, queries, 10)
    assert MIN_RECALL[factory] <= recall <= 1
    assert ApproximateIndex.build(bank, factory).to_bytes() == index.to_bytes()


def test_recall_is_the_share_of_exact_neighbors(bank: Tensor, queries: Tensor) -> None:
    index = ApproximateIndex.build(bank, "IVF64,Flat", effort=1)
    exact = torch.cat([rows for _, rows in search(bank, queries, 10)])
    _, approximate = index.search(queries, 10)
    recall = (exact[:, :, None] == approximate[:, None, :]).any(2).double().mean().item()
    assert index.recall(bank, queries, 10) == pytest.approx(recall)
    assert recall < 0.95 < ApproximateIndex.build(bank, "IVF64,Flat", effort=64).recall(bank, queries, 10)


def test_recall_samples_the_same_queries_every_time(bank: Tensor, queries: Tensor) -> None:
    index = ApproximateIndex.build(bank, "IVF64,Flat", effort=1)
    recall = index.recall(bank, queries, 10, sample=50)
    assert recall == index.recall(bank, queries, 10, sample=50) != index.recall(bank, queries, 10)


def test_row_as_similar_as_the_kth_counts_as_found(queries: Tensor) -> None:
    copies = queries[:5].repeat(40, 1)
    assert ApproximateIndex.build(copies, "Flat").recall(copies, queries, 3) == 1


def test_seed_changes_the_index(bank: Tensor) -> None:
    assert (
        ApproximateIndex.build(bank, "IVF64,Flat", seed=1).to_bytes()
        != ApproximateIndex.build(bank, "IVF64,Flat").to_bytes()
    )
    assert ApproximateIndex.build(bank, "HNSW8", seed=1).to_bytes() != ApproximateIndex.build(bank, "HNSW8").to_bytes()


def test_flat_is_exact_search(bank: Tensor, queries: Tensor) -> None:
    similarities, rows = ApproximateIndex.build(bank, "Flat").search(queries, 7)
    exact = list(search(bank, queries, 7))
    assert torch.equal(rows, torch.cat([rows for _, rows in exact]))
    torch.testing.assert_close(similarities, torch.cat([similarities for similarities, _ in exact]))


def test_missing_neighbors_are_minus_one(bank: Tensor) -> None:
    similarities, rows = ApproximateIndex.build(bank[:100], "Flat").search(bank[:2], 103)
    assert rows[:, 100:].eq(-1).all()
    assert similarities[:, 100:].eq(-torch.inf).all()
    assert rows[:, :100].sort().values.equal(torch.arange(100).expand(2, -1))
    assert similarities[:, :100].isfinite().all()


def test_more_lists_are_visited_for_as_many_neighbors_as_requested(bank: Tensor, queries: Tensor) -> None:
    index = ApproximateIndex.build(bank, "IVF64,Flat", effort=1)
    _, first = index.search(queries, 3)
    similarities, rows = index.search(queries, 200)
    assert (rows >= 0).all()
    assert all(len(set(neighbors)) == 200 for neighbors in rows.tolist())
    assert (similarities[:, :-1] >= similarities[:, 1:]).all()
    # Afterwards the effort is what it was.
    assert torch.equal(index.search(queries, 3)[1], first)


def test_equal_similarities_are_in_row_order() -> None:
    bank = torch.eye(4).repeat(30, 1)
    _, rows = ApproximateIndex.build(bank, "Flat").search(torch.eye(4)[:1], 30)
    assert rows[0].tolist() == list(range(0, 120, 4))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_bank_of_another_precision_is_converted_chunk_by_chunk(
    dtype: torch.dtype, bank: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = bank[:500].to(dtype)
    monkeypatch.setattr(vectors, "CHUNK_BYTES", 7 * 4 * bank.shape[1])
    progress: list[int] = []
    index = ApproximateIndex.build(rows, "SQ8", progress=progress.append)
    monkeypatch.undo()
    assert index.to_bytes() == ApproximateIndex.build(rows.float(), "SQ8").to_bytes()
    assert progress == [*71 * [7], 3]


@pytest.mark.filterwarnings("ignore:.*centroids")
@pytest.mark.parametrize("factory", ["IVF64,Flat", "HNSW16", "IVF16,PQ8"])
def test_bytes_and_back(factory: str, bank: Tensor, queries: Tensor) -> None:
    built = ApproximateIndex.build(bank, factory, effort=7)
    read = ApproximateIndex.from_bytes(built.to_bytes())
    assert (read.factory, len(read), read.width) == (factory, 4000, 32)
    assert all(torch.equal(*pair) for pair in zip(built.search(queries, 10), read.search(queries, 10), strict=True))


def test_bytes_of_something_else_are_refused() -> None:
    with pytest.raises(DataError, match="no index that reptk wrote"):
        ApproximateIndex.from_bytes(b"IxFI" + bytes(100))
    with pytest.raises(DataError, match="no index that reptk wrote"):
        ApproximateIndex.from_bytes(b"")
    data = ApproximateIndex.build(torch.eye(4), "Flat").to_bytes()
    with pytest.raises(DataError, match="build it again"):
        ApproximateIndex.from_bytes(data[:-8])


@pytest.mark.parametrize(
    "factory",
    [
        *("nonsense", "", "IVF,Flat", "IVF16,PQ7", "LSH", "Flat\n"),
        # With these, FAISS builds an index that finds nothing, does not end, or ends the process.
        *(
            "IVF0,Flat",
            "IVF-1,Flat",
            "HNSW0",
            "HNSW1",
            "IVF4_HNSW1,Flat",
            "NSG0",
            "HNSW99999999999999",
            f"IVF{9**30},Flat",
        ),
    ],
)
def test_invalid_factory_string(factory: str, bank: Tensor) -> None:
    with pytest.raises(
        UsageError, match=r"FAISS cannot build an index .* rows of 32 values: .*Known to work.*IVF256,PQ4"
    ):
        ApproximateIndex.build(bank, factory)


def test_rows_that_cannot_be_added(bank: Tensor) -> None:
    with pytest.raises(UsageError, match="IDMap"):
        ApproximateIndex.build(bank, "IDMap,Flat")


@pytest.mark.parametrize(
    ("factory", "needed", "better"), [("IVF256,Flat", 256, 9984), ("PQ8", 256, 9984), ("IVF512,PQ4", 512, 19968)]
)
def test_too_few_rows_to_train(factory: str, needed: int, better: int, bank: Tensor) -> None:
    with pytest.raises(UsageError, match=f"at least {needed} rows to be trained, better {better}; the bank has 200"):
        ApproximateIndex.build(bank[:200], factory)


def test_few_rows_to_train_are_warned_of(bank: Tensor) -> None:
    with pytest.warns(UserWarning, match="300 rows train 256 centroids badly; 9984 or more"):
        ApproximateIndex.build(bank[:300], "IVF256,Flat")


def test_invalid_rows(bank: Tensor) -> None:
    index = ApproximateIndex.build(bank, "Flat")
    with pytest.raises(ValueError, match="32 values, queries of 8"):
        index.search(torch.ones(2, 8), 1)
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        index.search(bank[:2], 0)
    with pytest.raises(ValueError, match="1 of 2 rows of queries hold NaN"):
        index.search(torch.tensor([[torch.nan] * 32, [1.0] * 32]), 1)
    with pytest.raises(ValueError, match=r"built from \(4000, 32\) rows, the bank is \(10, 32\)"):
        index.recall(bank[:10], bank[:2], 1)
    with pytest.raises(ValueError, match="floating point"):
        ApproximateIndex.build(bank.long(), "Flat")


@pytest.mark.parametrize("problem", [ImportError, RuntimeError, AttributeError])
def test_without_faiss(problem: type[Exception], bank: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise problem("no faiss")

    monkeypatch.setattr(engine.importlib, "import_module", absent)
    for act in (lambda: ApproximateIndex.build(bank, "Flat"), lambda: ApproximateIndex.from_bytes(b"")):
        with pytest.raises(EnvironmentProblem, match=r"needs FAISS.*pip install 'reptk\[cpu\]'"):
            act()


def test_recommended_index() -> None:
    assert recommended_index(1000, 256) == recommended_index(199_999, 2048) == "Flat"
    assert recommended_index(1_000_000, 256) == "IVF4096,Flat"
    assert recommended_index(50_000_000, 256) == "IVF32768,PQ32"
    assert recommended_index(50_000_000, 2048) == "IVF32768,PQ256"
    assert recommended_index(50_000_000, 509) == "IVF32768,PQ1"


def test_nothing_is_written_to_the_terminal() -> None:
    """FAISS's C++ code warns on standard error about few rows to train on; that is said once, by a warning."""
    code = (
        "import torch, warnings; warnings.simplefilter('ignore'); from reptk.neighbors import ApproximateIndex; "
        "ApproximateIndex.build(torch.randn(300, 8), 'IVF64,PQ4x4')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
