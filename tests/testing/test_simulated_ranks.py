"""Ranks as threads: each has its number, and collectives exchange what they pass."""

import threading

import pytest
import torch
import torch.distributed as dist
from torch import nn

from reptk.core import distributed
from reptk.testing.simulated_ranks import run_on_ranks


def test_ranks_exchange_tensors_in_their_order() -> None:
    def exchange(_: None, rank: int) -> list[list[float]]:
        assert (distributed.rank(), distributed.world_size()) == (rank, 3)
        local = torch.tensor([float(rank), 10.0])
        gathered = distributed.all_gather(local)
        into_list = [torch.empty(2) for _ in range(3)]
        dist.all_gather(into_list, local)
        total, largest, first = local.clone(), local.clone(), local.clone()
        dist.all_reduce(total)
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        dist.broadcast(first, src=1)
        return [gathered.tolist(), torch.cat(into_list).tolist(), total.tolist(), largest.tolist(), first.tolist()]

    rows = [0.0, 10.0, 1.0, 10.0, 2.0, 10.0]
    expected = [rows, rows, [3.0, 30.0], [2.0, 10.0], [1.0, 10.0]]
    assert run_on_ranks(None, exchange, world_size=3) == [expected] * 3


def test_each_rank_has_a_copy_of_the_part() -> None:
    module = nn.Linear(1, 1)

    def add_rank(part: nn.Linear, rank: int) -> float:
        with torch.no_grad():
            return part.bias.fill_(rank + 5.0).item()

    assert run_on_ranks(module, add_rank) == [5.0, 6.0]
    assert module.bias.item() not in (5.0, 6.0)


def test_this_thread_has_no_group_meanwhile_and_afterwards() -> None:
    started, finished = threading.Event(), threading.Event()
    observed = []

    def watch() -> None:
        started.wait(10)
        observed.append(dist.is_initialized())
        finished.set()

    watcher = threading.Thread(target=watch)
    watcher.start()

    def wait(_: None, rank: int) -> bool:
        started.set()
        finished.wait(10)
        return dist.is_initialized()

    original = dist.get_rank
    assert run_on_ranks(None, wait) == [True, True]
    watcher.join()
    assert observed == [False]
    assert dist.get_rank is original


def test_the_error_of_a_rank_ends_the_others() -> None:
    def fail_on_rank_1(_: None, rank: int) -> None:
        if rank == 1:
            raise ValueError("rank 1 fails")
        dist.all_reduce(torch.ones(1))

    with pytest.raises(ValueError, match="rank 1 fails"):
        run_on_ranks(None, fail_on_rank_1)


def test_a_collective_that_the_others_do_not_call_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reptk.testing.simulated_ranks.COLLECTIVE_TIMEOUT_SECONDS", 0.2)

    def reduce_on_rank_0(_: None, rank: int) -> None:
        if rank == 0:
            dist.all_reduce(torch.ones(1))

    with pytest.raises(RuntimeError, match="different collectives"):
        run_on_ranks(None, reduce_on_rank_0)
