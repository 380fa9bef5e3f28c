"""The vote of the neighbors: compiled loops and torch operations, ties."""

import importlib

import pytest
import torch

from reptk.evaluate import knn
from reptk.evaluate.voting import predict, vote_weights

voting = importlib.import_module("reptk.evaluate.voting")


@pytest.mark.parametrize("grain", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("num_classes", [2, 9, 300])
def test_kernel_and_torch_table_agree(num_classes: int, grain: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Coarse weights make many classes equal; some neighbors (label `num_classes`) do not vote."""
    stream = torch.Generator().manual_seed(num_classes)
    labels = torch.randint(0, num_classes + 1, (200, 50), generator=stream)
    weights = torch.rand(200, 50, generator=stream, dtype=torch.float64)
    if grain:
        weights = (weights / grain).ceil() * grain
    weights = weights * (labels < num_classes)
    ks = [1, 2, 7, 50]
    assert voting.load_kernels("reptk.evaluate.vote_kernels") is not None
    compiled = predict(labels, weights, ks, num_classes)
    monkeypatch.setattr(voting, "load_kernels", lambda module: None)
    by_torch = predict(labels, weights, ks, num_classes)
    for k, one, other in zip(ks, compiled, by_torch, strict=True):
        has_votes = (labels[:, :k] < num_classes).any(1)
        assert has_votes.any()
        for values, other_values in zip(one, other, strict=True):
            assert torch.equal(values[has_votes], other_values[has_votes])


def test_the_winning_weight_is_that_of_the_winner() -> None:
    labels = torch.tensor([[0, 1, 1, 2], [2, 3, 3, 3]])  # 3: does not vote
    weights = torch.tensor([[0.5, 0.3, 0.3, 0.1], [0.2, 0.9, 0.9, 0.9]], dtype=torch.float64)
    first, all_four = predict(labels, weights, [1, 4], 3)
    assert first.weighted.tolist() == [0, 2]
    assert first.weight.tolist() == [0.5, 0.2]
    assert all_four.weighted.tolist() == [1, 2]
    assert all_four.weight.tolist() == [0.6, 0.2]


def test_weights_are_relative_to_the_nearest_and_0_for_missing_neighbors() -> None:
    similarities = torch.tensor([[0.9, 0.2, -torch.inf], [-torch.inf, -torch.inf, -torch.inf]])
    weights = vote_weights(similarities, 0.1)
    assert weights[0].tolist() == pytest.approx([1, torch.tensor(-7.0).exp().item(), 0], rel=1e-5)
    assert weights[1].tolist() == [0, 0, 0]


@pytest.mark.parametrize("winner", [0, 1])
def test_equal_votes_go_to_the_larger_weight(winner: int) -> None:
    similarities = torch.tensor([0.9, 0.6, 0.5, 0.1])
    bank = torch.stack([similarities, (1 - similarities**2).sqrt()], dim=1)
    labels = torch.tensor([winner, 1 - winner, 1 - winner, winner])
    metrics = knn(bank, labels, torch.tensor([[1.0, 0.0]]), torch.tensor([winner]), k=[3, 4])
    assert metrics["knn_majority@3"] == 0  # one vote against two, whatever their weight
    assert metrics["knn_majority@4"] == 1


def test_equal_votes_of_equal_weight_always_go_to_the_first_class() -> None:
    bank = torch.tensor([[1.0, 0.0]]).repeat(6, 1)
    labels = torch.tensor([2, 1, 0, 2, 1, 0])
    for _ in range(2):
        correct = [knn(bank, labels, bank[:1], torch.tensor([c]), k=[6])["knn_majority@6"] for c in (0, 1, 2)]
        assert correct == [1, 0, 0]
