"""Retrieval metrics against their definitions and pytorch-metric-learning."""

import importlib

import pytest
import torch

from reptk.evaluate import knn, retrieval
from retrieval_problems import PROBLEMS, reference_retrieval, separate_queries

retrieval_module = importlib.import_module("reptk.evaluate.metrics.retrieval")


@pytest.mark.parametrize("name", PROBLEMS)
def test_retrieval_matches_its_definition(name: str, either_engine: str) -> None:
    problem = PROBLEMS[name]()
    metrics = retrieval(*problem.tensors, k=[1, 5, 10], exclude=problem.exclude)
    assert metrics == pytest.approx(reference_retrieval(problem, [1, 5, 10]))
    assert 0 < metrics["map@r"] < metrics["r_precision"] < 1


@pytest.mark.parametrize("leaves_one_out", [False, True], ids=["separate queries", "leave one out"])
def test_retrieval_equals_pytorch_metric_learning(leaves_one_out: bool) -> None:
    accuracy = pytest.importorskip("pytorch_metric_learning.utils.accuracy_calculator")
    bank, labels, queries, query_labels, _ = separate_queries()
    exclude = None
    if leaves_one_out:  # there, too, the only image of a class is skipped as a query
        queries, query_labels, exclude = bank, labels, torch.arange(len(bank))
    their_names = ("precision_at_1", "r_precision", "mean_average_precision_at_r", "mean_reciprocal_rank")
    calculator = accuracy.AccuracyCalculator(include=their_names, k="max_bin_count", device=torch.device("cpu"))
    expected = calculator.get_accuracy(queries, query_labels, bank, labels, ref_includes_query=leaves_one_out)
    metrics = retrieval(bank, labels, queries, query_labels, k=[1], exclude=exclude)
    for theirs, ours in zip(their_names, ("recall@1", "r_precision", "map@r", "mrr"), strict=True):
        assert metrics[ours] == pytest.approx(expected[theirs], abs=1e-6), ours


def test_map_at_r_depends_on_the_order_and_r_precision_does_not() -> None:
    hits = {"first half": [1] * 5 + [0] * 5, "second half": [0] * 5 + [1] * 5}
    expected = {"first half": 0.5, "second half": sum(i / (5 + i) for i in range(1, 6)) / 10}
    for name, first_labels in hits.items():
        labels = torch.tensor(first_labels + [0] * 20 + [1] * 5)
        similarities = torch.linspace(0.9, 0.1, len(labels))
        bank = torch.stack([similarities, (1 - similarities**2).sqrt()], dim=1)
        metrics = retrieval(bank, labels, torch.tensor([[1.0, 0.0]]), torch.tensor([1]), k=[1])
        assert metrics["r_precision"] == pytest.approx(0.5)
        assert metrics["map@r"] == pytest.approx(expected[name])


def test_queries_without_another_image_of_their_class_are_skipped(either_engine: str) -> None:
    bank, labels, queries, query_labels, _ = separate_queries()
    some_absent = torch.where(torch.arange(len(query_labels)) % 4 == 0, 99, query_labels)
    is_present = some_absent < 99
    assert retrieval(bank, labels, queries, some_absent) == pytest.approx(
        retrieval(bank, labels, queries[is_present], query_labels[is_present]), rel=1e-12
    )
    # Left out of the bank, the only image of a class has none to find. As a kNN query it counts, as wrong.
    single = int((labels == 0).nonzero())
    exclude = torch.arange(len(bank))
    others = exclude != single
    without_single = retrieval(bank, labels, bank[others], labels[others], exclude=exclude[others])
    assert retrieval(bank, labels, bank, labels, exclude=exclude) == pytest.approx(without_single, rel=1e-12)
    assert knn(bank, labels, bank[[single]], labels[[single]], k=[1], exclude=exclude[[single]])["knn@1"] == 0


def test_a_limit_on_memory_does_not_change_the_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = PROBLEMS["leave one out"]()
    expected = retrieval(*problem.tensors, precision=[3], exclude=problem.exclude)
    monkeypatch.setattr(retrieval_module, "MAX_RANKED", 100)  # a ranking is 21 deep: four queries at a time
    metrics = retrieval(*problem.tensors, precision=[3], exclude=problem.exclude)
    assert metrics == expected
    assert all(
        torch.equal(value.values.nan_to_num(-1), expected[name].values.nan_to_num(-1))
        for name, value in metrics.items()
    )
