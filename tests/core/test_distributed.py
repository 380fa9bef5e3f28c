"""Gathering, rank 0's part, and buffers: the identity on one process, and what two gloo processes exchange."""

from functools import partial
from pathlib import Path

import pytest
import torch
from rank_processes import run_on_ranks
from torch import Tensor, nn

from reptk.core import distributed
from reptk.core.errors import DataError, EnvironmentProblem

WORLD_SIZE = 2


def sum_over_all(values: Tensor, replicated_loss: bool) -> Tensor:
    return distributed.all_reduce_sum(values.exp().sum(), replicated_loss=replicated_loss)


def mean_over_all(values: Tensor, replicated_loss: bool) -> Tensor:
    return distributed.all_reduce_mean(values.exp().mean(), replicated_loss=replicated_loss)


STATISTICS = {"sum": sum_over_all, "mean": mean_over_all}


def rows_of_rank(rank: int, world_size: int) -> Tensor:
    """The part of this rank of eight rows that are the same for any number of ranks."""
    rows = torch.randn(8, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return rows.chunk(world_size)[rank]


def loss_of_statistic(statistic: Tensor) -> Tensor:
    """A loss that is no sum of terms of the ranks."""
    return statistic.square().log() + statistic.sin()


def run_rank(rank: int, out: str) -> None:
    """What each of the two processes computes; saved to `out`, a file a rank."""
    downloads = Path(out, "downloads")
    downloads.mkdir(exist_ok=True)
    torch.save(results_of_rank(rank, downloads), f"{out}/{rank}")


def results_of_rank(rank: int, out: Path) -> dict[str, Tensor]:
    def rows(count: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.arange(2 * count, dtype=dtype).view(count, 2) + 100 * rank

    results = {
        "even": distributed.all_gather(rows(3)),
        "uneven": distributed.all_gather_uneven(rows(3 - rank)),
        "uneven_by_counts": distributed.all_gather_uneven(rows(3 - rank), [3, 2]),
        "second_has_no_rows": distributed.all_gather_uneven(rows(3 * (1 - rank))),
        "first_has_no_rows": distributed.all_gather_uneven(rows(rank, torch.int64)),
        "no_rows": distributed.all_gather_uneven(rows(0, torch.int64)),
        "world": torch.tensor([distributed.rank(), distributed.world_size(), int(distributed.is_main())]),
    }
    for replicated_loss in (False, True):
        leaf = rows(1).requires_grad_()
        distributed.all_gather(leaf, replicated_loss=replicated_loss).square().sum().backward()
        results[f"gradient_{replicated_loss}"] = leaf.grad
    for name, statistic in STATISTICS.items():
        for replicated_loss in (False, True):
            weight = torch.tensor([0.3, -0.2, 0.5], dtype=torch.float64, requires_grad=True)
            loss = loss_of_statistic(statistic(rows_of_rank(rank, WORLD_SIZE) @ weight, replicated_loss))
            loss.backward()
            results[f"{name}_loss_{replicated_loss}"] = loss.detach()
            results[f"{name}_gradient_{replicated_loss}"] = weight.grad
    own_loss = torch.tensor([1.0, 2.0], requires_grad=True)
    # The losses of the ranks differ, so that their gradients have to be summed.
    ((rank + 1) * distributed.all_reduce_sum(own_loss).square()).sum().backward()
    results["gradient_of_different_losses"] = own_loss.grad
    results["sum_of_transposed"] = distributed.all_reduce_sum(rows(3).T)
    order = []

    def download() -> str:
        order.append(len(list(out.iterdir())))
        Path(out, f"downloaded_{rank}").touch()
        return f"rank {rank}"

    assert distributed.run_in_turns(download) == f"rank {rank}"
    results["files_before_turn"] = torch.tensor(order)
    results["failures"] = torch.tensor(num_failures_in_turns(rank))
    norm = nn.BatchNorm1d(2)
    norm.running_mean.fill_(rank + 1)
    distributed.broadcast_buffers(norm)
    results["running_mean"] = norm.running_mean
    return results


def num_failures_in_turns(rank: int) -> int:
    """How often a function raises that fails on this rank alone, then on all."""

    def fail(is_failing: bool) -> None:
        if is_failing:
            raise DataError("no such file")

    failures = 0
    for is_failing in (rank == 0, rank == 1, True):
        try:
            distributed.run_in_turns(partial(fail, is_failing))
        except DataError:
            failures += 1
    return failures


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Tensor]]:
    """The results of both processes, by rank."""
    folder = tmp_path_factory.mktemp("ranks")
    run_on_ranks(run_rank, WORLD_SIZE, str(folder))
    return [torch.load(Path(folder, str(rank)), weights_only=True) for rank in range(WORLD_SIZE)]


FIRST = [[0, 1], [2, 3], [4, 5]]
SECOND = [[100, 101], [102, 103], [104, 105]]

EXPECTED_ROWS = {
    "even": FIRST + SECOND,
    "uneven": FIRST + SECOND[:2],
    "uneven_by_counts": FIRST + SECOND[:2],
    "second_has_no_rows": FIRST,
    "first_has_no_rows": SECOND[:1],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPECTED_ROWS)
def test_rows_are_gathered_in_rank_order(name, ranks):
    for results in ranks:
        assert results[name].tolist() == EXPECTED_ROWS[name]


@pytest.mark.slow
def test_gathering_zero_rows_gives_zero_rows_of_the_same_shape_and_type(ranks):
    for results in ranks:
        assert results["no_rows"].shape == (0, 2)
        assert results["no_rows"].dtype == torch.int64
        assert results["first_has_no_rows"].dtype == torch.int64


@pytest.mark.slow
def test_gradient_of_gathered_rows_is_that_of_all_ranks(ranks):
    """Both ranks compute the same sum of squares, whose gradient is 2 x on each of them."""
    for rank, results in enumerate(ranks):
        expected = [[WORLD_SIZE * 2.0 * (100 * rank), WORLD_SIZE * 2.0 * (100 * rank + 1)]]
        assert results["gradient_False"].tolist() == expected
        assert results["gradient_True"].tolist() == expected


@pytest.mark.slow
@pytest.mark.parametrize("name", STATISTICS)
@pytest.mark.parametrize("replicated_loss", [False, True])
def test_loss_of_a_sum_or_mean_over_ranks_has_the_value_and_gradient_of_one_process(name, replicated_loss, ranks):
    weight = torch.tensor([0.3, -0.2, 0.5], dtype=torch.float64, requires_grad=True)
    loss = loss_of_statistic(STATISTICS[name](rows_of_rank(0, 1) @ weight, replicated_loss))
    loss.backward()
    for results in ranks:
        torch.testing.assert_close(results[f"{name}_loss_{replicated_loss}"], loss.detach())
    # As DDP does.
    mean_gradient = sum(results[f"{name}_gradient_{replicated_loss}"] for results in ranks) / WORLD_SIZE
    torch.testing.assert_close(mean_gradient, weight.grad)


@pytest.mark.slow
def test_gradients_of_different_losses_of_a_sum_are_summed(ranks):
    """The sum is [2, 4]; the losses are once and twice its square."""
    for results in ranks:
        assert results["gradient_of_different_losses"].tolist() == [3 * 2 * 2.0, 3 * 2 * 4.0]


@pytest.mark.slow
def test_sum_of_a_transposed_tensor_is_transposed(ranks):
    expected = torch.tensor(FIRST).T + torch.tensor(SECOND).T
    for results in ranks:
        assert results["sum_of_transposed"].tolist() == expected.tolist()


@pytest.mark.slow
def test_buffers_are_those_of_rank_0(ranks):
    for results in ranks:
        assert results["running_mean"].tolist() == [1.0, 1.0]


@pytest.mark.slow
def test_ranks_are_numbered_and_the_first_is_main(ranks):
    assert [results["world"].tolist() for results in ranks] == [[0, 2, 1], [1, 2, 0]]


@pytest.mark.slow
def test_ranks_that_download_take_turns(ranks):
    assert [results["files_before_turn"].tolist() for results in ranks] == [[0], [1]]


@pytest.mark.slow
def test_a_rank_that_fails_in_its_turn_does_not_hold_up_the_others(ranks):
    assert [int(results["failures"]) for results in ranks] == [2, 2]


def test_one_process_gathers_its_rows_unchanged():
    rows = torch.randn(3, 2, requires_grad=True)
    assert distributed.all_gather(rows) is rows
    assert distributed.all_gather(rows, replicated_loss=True) is rows
    assert distributed.all_reduce_sum(rows) is rows
    assert torch.equal(distributed.all_reduce_mean(rows), rows)
    assert distributed.all_gather_uneven(rows) is rows
    empty = torch.empty(0, 2)
    assert distributed.all_gather_uneven(empty) is empty


def test_one_process_is_main_and_calls_the_function():
    assert distributed.is_main()
    assert (distributed.rank(), distributed.world_size()) == (0, 1)
    assert distributed.run_on_main(lambda: 3) == 3
    assert distributed.run_in_turns(lambda: 4) == 4
    with pytest.raises(ValueError, match="refused"):
        distributed.run_on_main(lambda: int("refused"))


def test_rank_is_read_from_the_environment_of_torchrun(monkeypatch):
    monkeypatch.setenv("RANK", "3")
    assert distributed.rank() == 3
    assert not distributed.is_main()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_that_is_not_available_is_an_environment_problem():
    assert distributed.setup("auto") == torch.device("cpu")
    with pytest.raises(EnvironmentProblem, match="the device is 'cuda:1', but torch finds no CUDA device"):
        distributed.setup("cuda:1")


def test_ranks_share_gpus_only_where_they_may(monkeypatch):
    monkeypatch.setattr(distributed, "choose_device", torch.device)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert distributed.setup("cuda", may_share_gpu=True) == torch.device("cuda:1")
    assert distributed.setup("cuda:0", may_share_gpu=True) == torch.device("cuda:0")
    with pytest.raises(EnvironmentProblem, match="needs CUDA device 3, but there are 2"):
        distributed.setup("cuda")
