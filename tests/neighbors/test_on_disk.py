"""Indexes whose lists are on disk: what an index in memory finds, built part by part, opened by mapping."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from reptk.core import rng
from reptk.core.errors import DataError, EnvironmentProblem, UsageError
from reptk.neighbors import ApproximateIndex, build_on_disk, lists_bytes, on_disk, open_on_disk

pytest.importorskip("faiss")

pytestmark = [pytest.mark.usefixtures("one_thread")]

KINDS = ["IVF16,Flat", "IVF16,PQ4x4", "PCA8,IVF16_HNSW16,SQ8"]


@pytest.fixture(scope="module")
def bank() -> Tensor:
    vectors = torch.randn(3000, 16, generator=rng.generator("on disk"))
    return torch.nn.functional.normalize(vectors, dim=1)


@pytest.mark.parametrize("kind", KINDS)
def test_parts_on_disk_are_searched_as_one_index_in_memory(kind: str, bank: Tensor, tmp_path: Path) -> None:
    lists = tmp_path / "lists.ivfdata"
    counts: list[int] = []
    # 8 bytes of a row's number, and 2 to 64 of its code: several parts, the last one smaller.
    built = build_on_disk(bank, kind, lists, part_bytes=12_000, progress=counts.append)
    assert sum(counts) == 3000
    assert len(counts) > 1
    assert [path.name for path in tmp_path.iterdir()] == ["lists.ivfdata"], "the parts are removed"
    assert lists.stat().st_size >= lists_bytes(16, kind, 3000)
    in_memory = ApproximateIndex.build(bank, kind)
    expected = in_memory.search(bank[:20], 30)
    data = built.to_bytes()
    assert str(tmp_path).encode() not in data, "no path of this machine is stored"
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    lists.rename(moved / "lists.ivfdata")
    opened = open_on_disk(data, moved / "lists.ivfdata")
    assert (len(opened), opened.width, opened.factory) == (3000, 16, kind)
    for index in (built, opened):
        similarities, rows = index.search(bank[:20], 30)
        assert torch.equal(rows, expected[1])
        assert torch.equal(similarities, expected[0])


def test_the_index_itself_is_small(bank: Tensor, tmp_path: Path) -> None:
    built = build_on_disk(bank, "IVF16,Flat", tmp_path / "lists.ivfdata")
    assert len(built.to_bytes()) < 10_000, "16 centroids of 16 values, and where their lists are"


def test_rows_that_a_damaged_file_names_are_returned_and_nothing_else(bank: Tensor, tmp_path: Path) -> None:
    lists = tmp_path / "lists.ivfdata"
    data = build_on_disk(bank, "IVF16,Flat", lists).to_bytes()
    lists.write_bytes(rng_bytes(lists.stat().st_size))
    _, rows = open_on_disk(data, lists).search(bank[:5], 10)
    assert rows.shape == (5, 10)


def rng_bytes(count: int) -> bytes:
    return torch.randint(0, 256, (count,), dtype=torch.uint8, generator=rng.generator("bytes")).numpy().tobytes()


@pytest.mark.parametrize("kind", ["Flat", "HNSW16", "IVF16,PQ4x4fs", "IVF16,Flat,RFlat"])
def test_kinds_that_cannot_be_on_disk(kind: str, bank: Tensor, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be on disk"):
        build_on_disk(bank, kind, tmp_path / "lists.ivfdata")
    assert lists_bytes(16, kind, 100) is None
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_too_small_is_noticed_before(
    bank: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, needed_bytes: int, advice: str) -> None:
        assert needed_bytes == 2 * 3000 * (64 + 8)
        raise EnvironmentProblem("too small")

    monkeypatch.setattr(on_disk, "check_free_space", refuse)
    with pytest.raises(EnvironmentProblem, match="too small"):
        build_on_disk(bank, "IVF16,Flat", tmp_path / "lists.ivfdata")


def test_bytes_and_files_that_are_no_index(bank: Tensor, tmp_path: Path) -> None:
    lists = tmp_path / "lists.ivfdata"
    data = build_on_disk(bank, "IVF16,Flat", lists).to_bytes()
    with pytest.raises(DataError, match="no index that reptk wrote"):
        open_on_disk(b"nothing", lists)
    with pytest.raises(DataError, match="damaged"):
        open_on_disk(ApproximateIndex.build(bank, "IVF16,Flat").to_bytes(), lists)
    lists.write_bytes(lists.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"lists\.ivfdata is missing or too short"):
        open_on_disk(data, lists)


def test_nothing_is_printed(bank: Tensor, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    lists = tmp_path / "lists.ivfdata"
    data = build_on_disk(bank, "IVF16,Flat", lists, part_bytes=100_000).to_bytes()
    open_on_disk(data, lists).search(bank[:2], 3)
    print("still there")
    assert capfd.readouterr() == ("still there\n", "")
