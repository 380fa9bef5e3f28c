"""Assignments by Sinkhorn-Knopp: the paper's equations, published values, several ranks, and no overflow."""

import pytest
import torch
from torch import Tensor

from reptk.methods import sinkhorn
from reptk.testing.simulated_ranks import run_on_ranks


def scores(rows: int, prototypes: int) -> Tensor:
    return torch.sin(torch.arange(rows * prototypes, dtype=torch.float64) * 0.7).reshape(rows, prototypes)


def in_loops(values: Tensor, temperature: float, iterations: int) -> Tensor:
    """Diag(u) exp(C^T Z / epsilon) Diag(v) of SwAV, appendix A.1, one number after the other; then rows that sum to 1."""
    num_rows, num_prototypes = values.shape
    kernel = (values / temperature).exp()
    u = torch.ones(num_prototypes, dtype=torch.float64)
    v = torch.ones(num_rows, dtype=torch.float64)
    for _ in range(iterations):
        for k in range(num_prototypes):
            u[k] = 1 / num_prototypes / sum(kernel[b, k] * v[b] for b in range(num_rows))
        for b in range(num_rows):
            v[b] = 1 / num_rows / sum(kernel[b, k] * u[k] for k in range(num_prototypes))
    return kernel * u * v[:, None] * num_rows


@pytest.mark.parametrize("iterations", [1, 3])
def test_it_is_the_algorithm_of_the_paper(iterations: int) -> None:
    values = scores(5, 4)
    expected = in_loops(values, 0.2, iterations)
    torch.testing.assert_close(sinkhorn(values, temperature=0.2, iterations=iterations), expected)
    assert not torch.allclose(expected, in_loops(values, 0.2, iterations + 1), atol=1e-4)


def test_it_gives_the_values_of_the_published_code() -> None:
    """Of `distributed_sinkhorn` in main_swav.py of facebookresearch/swav, in float64 on one process."""
    expected = [
        [0.11808957, 0.40366042, 0.47825001],
        [0.72598036, 0.23788223, 0.03613741],
        [0.37488812, 0.28303460, 0.34207728],
        [0.12007640, 0.40714477, 0.47277882],
    ]
    result = sinkhorn(scores(4, 3), temperature=0.5)
    torch.testing.assert_close(result, torch.tensor(expected, dtype=torch.float64), atol=1e-8, rtol=0)


def test_many_iterations_use_all_prototypes_equally() -> None:
    assignments = sinkhorn(scores(8, 4), temperature=0.3, iterations=200)
    torch.testing.assert_close(assignments.sum(0), torch.full((4,), 2.0, dtype=torch.float64))
    torch.testing.assert_close(assignments.sum(1), torch.ones(8, dtype=torch.float64))


def test_a_low_temperature_does_not_overflow_in_float32() -> None:
    """exp(1 / 0.001) is infinite in float32, and exp(-1 / 0.001) is 0."""
    assignments = sinkhorn(scores(6, 4).float(), temperature=0.001)
    assert assignments.dtype == torch.float32
    assert assignments.isfinite().all()
    torch.testing.assert_close(assignments.sum(1), torch.ones(6))
    assert sinkhorn(scores(6, 4).bfloat16(), temperature=0.05).dtype == torch.float32


@pytest.mark.parametrize("rows_of_ranks", [[4, 4], [3, 5]])
def test_ranks_assign_as_one_process_does(rows_of_ranks: list[int]) -> None:
    values = scores(8, 4)
    parts = values.split(rows_of_ranks)
    results = run_on_ranks(sinkhorn, lambda part, rank: part(parts[rank], temperature=0.1))
    torch.testing.assert_close(torch.cat(results), sinkhorn(values, temperature=0.1))
