"""A bank spread over ranks is searched as if one process held it."""

import warnings
from pathlib import Path

import pytest
import torch
from rank_processes import run_on_ranks
from torch import Tensor

from neighbor_searches import BANKS, draw, search_all
from reptk.core import distributed
from reptk.neighbors import exact, search_sharded

DEPTHS = (1, 40, 390)


def problem(kind: str) -> tuple[Tensor, Tensor, Tensor]:
    count, width, largest = BANKS[kind]
    bank = draw(count, width, 1, largest)
    queries = torch.cat([bank[::20], draw(9, width, 2, largest)])
    return bank, queries, torch.cat([torch.arange(count)[::20], torch.full((9,), -1)])


def rank_slice(count: int, rank: int, world_size: int) -> slice:
    """Uneven parts; the second is empty where there are four."""
    ends = {
        1: [0, count],
        2: [0, count // 3, count],
        4: [0, count // 3, count // 3, count - 5, count],
    }[world_size]
    return slice(ends[rank], ends[rank + 1])


def search_on_rank(rank: int, world_size: int, out: str) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    exact.BLOCK = 10
    results: dict[str, Tensor] = {}
    for kind in BANKS:
        bank, queries, exclude = problem(kind)
        rows, local_queries = (rank_slice(len(tensor), rank, world_size) for tensor in (bank, queries))
        for k in DEPTHS:
            for is_leave_one_out in (False, True):
                local_exclude = exclude[local_queries] if is_leave_one_out else None
                blocks = list(search_sharded(bank[rows], queries[local_queries], k, local_exclude))
                similarities = torch.cat([torch.empty(0, k)] + [block[0] for block in blocks])
                numbers = torch.cat([torch.empty(0, k)] + [block[1] for block in blocks])
                results[f"{kind},{k},{is_leave_one_out}"] = torch.stack([similarities, numbers]).double()
    progress: list[int] = []
    for _ in search_sharded(bank[rows], queries[local_queries], 3, progress=progress.append):
        pass
    count = len(queries[local_queries])
    assert sum(progress) == count
    assert set(progress[:-1]) <= {10}
    # All ranks refuse what one has to refuse, instead of waiting for it.
    bank, queries, _ = problem("all different")
    if rank == world_size - 1:
        bank = torch.full_like(bank, torch.nan)
    message = "hold NaN" if rank == world_size - 1 else f"rank {world_size - 1} has rows"
    with pytest.raises(ValueError, match=message):
        list(search_sharded(bank[:10], queries[:2], 1))
    torch.save(results, f"{out}.{distributed.rank()}")


@pytest.mark.filterwarnings("ignore:.*all zeros")
@pytest.mark.parametrize(
    "world_size", [1, pytest.param(2, marks=pytest.mark.slow), pytest.param(4, marks=pytest.mark.slow)]
)
def test_any_number_of_ranks_equals_one(world_size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = str(tmp_path / "results")
    if world_size == 1:
        monkeypatch.setattr(exact, "BLOCK", exact.BLOCK)
        search_on_rank(0, 1, out)
    else:
        run_on_ranks(search_on_rank, world_size, world_size, out)
    ranks = [torch.load(f"{out}.{rank}", weights_only=True) for rank in range(world_size)]
    for kind in BANKS:
        bank, queries, exclude = problem(kind)
        for k in DEPTHS:
            for is_leave_one_out in (False, True):
                result = torch.cat([rank[f"{kind},{k},{is_leave_one_out}"] for rank in ranks], 1)
                similarities, rows = search_all(bank, queries, k, exclude if is_leave_one_out else None)
                assert torch.equal(result, torch.stack([similarities.double(), rows.double()]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 0}, "k must be 1 to 20 .* got 0"),
        ({"k": 20, "exclude": torch.arange(4)}, "k must be 1 to 19 .*besides the query"),
        ({"exclude": torch.arange(3)}, r"exclude must hold 4 row numbers \(or -1\), got \(3,\)"),
        ({"exclude": torch.tensor([1, 2, 3, 20])}, "exclude must hold row numbers below 20 .*got 20"),
        ({"queries": torch.ones(4, 5)}, "bank rows have 6 values, query rows 5"),
    ],
)
def test_invalid_arguments_are_refused_by_ranks(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        list(search_sharded(**({"part": draw(20, 6, 20), "queries": draw(4, 6, 21), "k": 2} | change)))
