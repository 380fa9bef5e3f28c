"""The same images in a folder, tables, shards, Lance and a saved data set are the same data, in the same order on any ranks."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from image_files import same_data
from reptk.data import Data, Loader, create_sampler, folder
from reptk.testing import check_dataset
from same_images import SOURCES, write_folder


@pytest.fixture(autouse=True)
def _caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Data:
    return folder(str(write_folder(tmp_path_factory.mktemp("reference"))), size=16)


def batches(data: Data, rank: int = 0, world: int = 1, workers: int = 0) -> list[tuple[Tensor, ...]]:
    loader = Loader(data.train, batch_size=8, seed=3, rank=rank, world_size=world, workers=workers)
    return list(loader.batches(3, 7))


@pytest.mark.parametrize("source", SOURCES)
def test_every_source_gives_the_data_of_a_folder(source: str, tmp_path: Path, reference: Data) -> None:
    root = SOURCES[source](tmp_path)
    data = folder(str(root), size=16)
    assert same_data(data, reference)
    check_dataset(data)
    assert same_data(folder(str(root), size=16, cache=str(tmp_path / "cache")), reference)
    assert folder(str(root), size=16, labels="none").train.labels.eq(-1).all()
    for world in (1, 2, 4):
        of_ranks = [batches(data, rank, world, workers=2) for rank in range(world)]
        for step, (images, labels, numbers) in enumerate(batches(reference)):
            parts = [of_rank[step] for of_rank in of_ranks]
            assert torch.equal(torch.cat([part[0] for part in parts]), images)
            assert torch.equal(torch.cat([part[1] for part in parts]), labels)
            assert torch.equal(torch.cat([part[2] for part in parts]), numbers)


@pytest.mark.parametrize("source", ["parquet", "shards", "lance"])
def test_a_window_reads_few_shards(source: str, tmp_path: Path) -> None:
    data = folder(str(SOURCES[source](tmp_path)), size=16, labels="none")
    starts = data.train.images.block_starts()
    assert len(starts) == {"parquet": 7, "shards": 5, "lance": 5}[source]
    sampler = create_sampler(data.train.labels, batch_size=8, seed=0, shuffle="window:1", block_starts=starts)
    order = sampler.epoch(0)
    assert sampler.description == f"shards mixed 1 at a time, of {len(starts)}"
    numbers = torch.cat([order[step] for step in range(len(order))])
    assert len(numbers.unique()) == 48
    shards = torch.searchsorted(torch.from_numpy(starts), numbers, right=True)
    assert int((shards.diff() != 0).sum()) == len(starts) - 1, "one shard after the other"


def test_held_out_images_leave_the_shards_as_they_are(tmp_path: Path) -> None:
    data = folder(str(SOURCES["shards"](tmp_path)), size=16)
    assert len(data.train) == 40
    starts = data.train.images.block_starts()
    assert starts[0] == 0
    assert len(starts) == 5
    assert data.train.images.resized("squash").block_starts().tolist() == starts.tolist()
