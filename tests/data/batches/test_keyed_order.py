"""Orders that are not in memory: bijections, functions of (seed, epoch, position), in windows of shards, for any ranks."""

from collections import Counter

import numpy as np
import pytest
import torch
from torch import Tensor

from reptk.core import rng
from reptk.core.errors import UsageError
from reptk.data import InMemory, Loader, Split, create_sampler
from reptk.data.batches import samplers
from reptk.data.batches.keyed_order import FeistelOrder, WindowOrder

STARTS = np.array([0, 10, 11, 40, 45, 70, 99])
"""Of shards with 10, 1, 29, 5, 25, 29 and 1 images."""


def unlabeled(count: int) -> Tensor:
    return torch.full((count,), -1)


def numbers_of(sampler, epoch: int) -> Tensor:
    batches = sampler.epoch(epoch)
    return torch.stack([batches[step] for step in range(sampler.steps_per_epoch)])


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 64, 65, 100, 1000, 4097])
def test_every_number_comes_once(size: int) -> None:
    order = FeistelOrder(size, 3, "order", 0).at(torch.arange(size))
    assert torch.equal(order.sort().values, torch.arange(size))


def test_any_position_is_known_without_the_others() -> None:
    order = FeistelOrder(10**12 + 7, 0, "order", 5)
    positions = torch.randint(10**12, (500,), generator=torch.Generator().manual_seed(0))
    numbers = order.at(positions)
    assert ((numbers >= 0) & (numbers < 10**12 + 7)).all()
    assert len(numbers.unique()) == 500
    assert torch.equal(torch.cat([order.at(part) for part in positions.split(7)]), numbers)
    assert torch.equal(order.at(positions.flip(0)), numbers.flip(0))


def test_the_order_is_as_random_as_a_permutation() -> None:
    size = 1000
    orders = torch.stack([FeistelOrder(size, seed).at(torch.arange(size)) for seed in range(300)]).double()
    # Of a uniform number below n, the mean is n / 2 and the deviation of 300 means is 17.
    assert (orders.mean(0) - (size - 1) / 2).abs().max() < 5 * 17
    steps = orders.diff(dim=1).sign()
    assert abs(float(steps.mean())) < 0.01
    correlation = torch.corrcoef(torch.stack([orders[:, :-1].flatten(), orders[:, 1:].flatten()]))[0, 1]
    assert abs(float(correlation)) < 0.01
    fixed = (orders == torch.arange(size)).sum(1)
    assert 0.7 < float(fixed.double().mean()) < 1.3, "a random permutation has one fixed point on average"


def test_below_the_limit_the_order_is_that_of_randperm(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = create_sampler(unlabeled(100), batch_size=16, seed=3)
    expected = torch.randperm(100, generator=rng.generator(3, "order", 2))[:96].view(6, 16)
    assert torch.equal(sampler.epoch(2), expected)
    assert sampler.description == ""
    monkeypatch.setattr(samplers, "MAX_PERMUTED", 99)
    sampler = create_sampler(unlabeled(100), batch_size=16, seed=3)
    assert sampler.description == "order by a keyed bijection"
    first, second = numbers_of(sampler, 0), numbers_of(sampler, 1)
    assert len(first.unique()) == 96
    assert not torch.equal(first, second)
    assert torch.equal(first, numbers_of(create_sampler(unlabeled(100), batch_size=16, seed=3), 0))
    assert not torch.equal(first, numbers_of(create_sampler(unlabeled(100), batch_size=16, seed=4), 0))


@pytest.mark.parametrize("per_window", [1, 2, 3, 7, 20])
def test_a_window_has_the_images_of_some_shards(per_window: int) -> None:
    order = WindowOrder(STARTS, 100, per_window=per_window, seed=0, epoch=4)
    numbers = order.at(torch.arange(100))
    assert torch.equal(numbers.sort().values, torch.arange(100))
    remaining = np.diff([*STARTS, 100])
    open_shards: set[int] = set()
    num_windows = 0
    for shard in (np.searchsorted(STARTS, numbers.numpy(), side="right") - 1).tolist():
        open_shards.add(shard)
        assert len(open_shards) <= per_window
        remaining[shard] -= 1
        if not remaining[list(open_shards)].any() and (len(open_shards) == per_window or not remaining.any()):
            open_shards.clear()
            num_windows += 1
    assert num_windows == -(-7 // per_window)
    assert torch.equal(torch.cat([order.at(part) for part in torch.arange(100).split(9)]), numbers)
    again = WindowOrder(STARTS, 100, per_window=per_window, seed=0, epoch=5).at(torch.arange(100))
    assert not torch.equal(again, numbers)


def test_one_window_of_all_shards_is_a_random_order() -> None:
    counts = Counter()
    for epoch in range(400):
        order = WindowOrder(STARTS, 100, per_window=7, seed=1, epoch=epoch)
        counts[int(order.at(torch.tensor([0])))] += 1
    assert len(counts) > 90
    assert max(counts.values()) < 20


@pytest.mark.parametrize("shuffle", ["global", "window:2"])
@pytest.mark.parametrize("world", [2, 4])
def test_ranks_share_the_batches_and_resume_in_an_epoch(
    shuffle: str, world: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(samplers, "MAX_PERMUTED", 20)
    split = Split(InMemory(torch.zeros(100, 3, 2, 2, dtype=torch.uint8)), unlabeled(100))

    def batches(rank: int, world: int, first_step: int) -> list[Tensor]:
        sampler = create_sampler(split.labels, batch_size=16, seed=0, shuffle=shuffle, block_starts=STARTS)
        loader = Loader(split, batch_size=16, seed=0, sampler=sampler, rank=rank, world_size=world)
        return [numbers for _, _, numbers in loader.batches(first_step, 14)]

    whole = torch.stack(batches(0, 1, 0))
    assert whole.shape == (14, 16)
    assert len(whole[:6].unique()) == 96
    of_ranks = [torch.stack(batches(rank, world, 0)) for rank in range(world)]
    assert torch.equal(torch.cat(of_ranks, 1), whole)
    assert torch.equal(torch.stack(batches(0, 1, 9)), whole[9:])


def test_windows_of_collections_without_shards() -> None:
    sampler = create_sampler(unlabeled(5000), batch_size=100, seed=0, shuffle="window:2")
    assert sampler.description == "blocks of 1,024 images mixed 2 at a time, of 5"
    numbers = numbers_of(sampler, 0)
    assert len(numbers.unique()) == 5000
    assert len((numbers[:5].flatten() // 1024).unique()) <= 2


def test_windows_are_for_random_batches() -> None:
    with pytest.raises(UsageError, match=r"use data\.shuffle=global, or"):
        create_sampler(torch.arange(40) % 2, batch_size=8, seed=0, name="pk", shuffle="window:2")
