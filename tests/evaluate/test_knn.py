"""kNN accuracy against its definition, scikit-learn, and itself computed in another way; the evaluator."""

import importlib
import sys
import warnings
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from reptk.data import Split
from reptk.evaluate import ImageFeatures, Knn, engine_name, knn, pixels, retrieval
from retrieval_problems import PROBLEMS, reference_knn, reference_retrieval, separate_queries
from small_features import few_pixels, small_data

exact_search = importlib.import_module("reptk.neighbors.exact")


@pytest.fixture
def fresh_engine() -> Iterator[None]:
    """The engine is chosen anew in the test, and again after it."""
    engine_name.cache_clear()
    yield
    engine_name.cache_clear()


@pytest.mark.parametrize("temperature", [0.07, 1.0])
@pytest.mark.parametrize("name", PROBLEMS)
def test_knn_matches_its_definition(name: str, temperature: float, either_engine: str) -> None:
    problem = PROBLEMS[name]()
    metrics = knn(*problem.tensors, k=[1, 2, 5, 30], temperature=temperature, exclude=problem.exclude)
    expected = {}
    for k in (1, 2, 5, 30):
        expected |= reference_knn(problem, k, temperature)
    assert metrics == pytest.approx(expected)
    assert 0.2 < metrics["knn@5"] < 1  # neither chance nor so easy that a mistake would not show


def test_the_references_can_disagree() -> None:
    problem = separate_queries()
    tensors = problem.tensors
    assert knn(*tensors, k=[5])["knn_majority@5"] != reference_knn(problem, 30)["knn_majority@30"]
    assert knn(*tensors, k=[30])["knn@30"] != reference_knn(problem, 30, temperature=1.0)["knn@30"]
    assert retrieval(*tensors)["map@r"] != reference_retrieval(problem, [1])["r_precision"]


@pytest.mark.parametrize("k", [1, 4, 15, 53])
@pytest.mark.parametrize("name", ["separate queries", "leave one out"])
def test_weighted_knn_equals_scikit_learn(name: str, k: int) -> None:
    problem = PROBLEMS[name]()
    is_leave_one_out = problem.exclude is not None
    if is_leave_one_out:
        k = min(k, len(problem.bank) - 1)
    peer = KNeighborsClassifier(
        k, metric="cosine", algorithm="brute", weights=lambda distance: np.exp((1 - distance) / 0.07)
    )
    peer.fit(problem.bank.numpy(), problem.bank_labels.numpy())
    predicted = peer.predict(None if is_leave_one_out else problem.queries.numpy())
    metrics = knn(*problem.tensors, k=[k], exclude=problem.exclude)
    assert metrics[f"knn@{k}"] == pytest.approx((predicted == problem.query_labels.numpy()).mean())


@pytest.mark.parametrize("k", [1, 3, 7, 21])
def test_majority_knn_equals_scikit_learn(k: int) -> None:
    bank, labels, queries, query_labels, _ = separate_queries()
    labels, query_labels = labels % 2, query_labels % 2  # an odd k and two classes: no ties, which it decides otherwise
    peer = KNeighborsClassifier(k, metric="cosine", algorithm="brute").fit(bank.numpy(), labels.numpy())
    expected = (peer.predict(queries.numpy()) == query_labels.numpy()).mean()
    assert knn(bank, labels, queries, query_labels, k=[k])[f"knn_majority@{k}"] == pytest.approx(expected)


def test_several_k_equal_each_k_alone() -> None:
    tensors = separate_queries().tensors
    alone = {}
    for k in (1, 3, 10, 53):
        alone |= knn(*tensors, k=[k])
    assert knn(*tensors, k=[10, 1, 53, 3, 3]) == alone
    assert list(knn(*tensors, k=[10, 1])) == ["knn@1", "knn@10", "knn_majority@1", "knn_majority@10"]


@pytest.mark.skipif(sys.platform == "darwin", reason="torch searches there, FAISS or not")
def test_without_faiss_there_is_one_warning_and_the_same_metrics(
    monkeypatch: pytest.MonkeyPatch, fresh_engine: None
) -> None:
    problem = separate_queries()
    monkeypatch.setitem(sys.modules, "faiss", None)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        metrics = [knn(*problem.tensors, k=[1, 5]) | retrieval(*problem.tensors, k=[1]) for _ in range(2)]
    assert engine_name() == "torch"
    assert [str(warning.message).split(";")[0] for warning in caught] == ["FAISS is not installed"]
    expected = reference_knn(problem, 1) | reference_knn(problem, 5) | reference_retrieval(problem, [1])
    assert metrics == [pytest.approx(expected)] * 2


# The evaluator


def test_the_evaluator_equals_the_two_functions() -> None:
    data = small_data()
    features = ImageFeatures(few_pixels, size_px=8)
    tensors = (features.features(data.bank), data.bank.labels, features.features(data.query), data.query.labels)
    result = Knn(k=(1, 10), temperature=0.5, recall=(1, 3), precision=(2,))(features, data)
    votes = knn(*tensors, k=[1, 10], temperature=0.5)
    assert result.metrics == votes | retrieval(*tensors, k=[1, 3], precision=[2])
    assert result.notes == {"knn": {"index": "Flat", "engine": engine_name()}}
    during_training = Knn(k=(1, 10), temperature=0.5).during_training(features, data)
    assert during_training.metrics == votes
    assert during_training.predictions is None
    assert list(Knn(k=(1,), retrieval=False)(features, data).metrics) == ["knn@1", "knn_majority@1"]


def test_a_bank_that_is_the_queries_means_leave_one_out() -> None:
    data = small_data()
    data = replace(data, query=data.bank)
    features = ImageFeatures(few_pixels, size_px=8)
    tensors = [features.features(data.bank), data.bank.labels] * 2
    exclude = torch.arange(40)
    metrics = Knn(k=(1, 39), recall=(1,), precision=(3,))(features, data).metrics
    votes = knn(*tensors, k=[1, 39], exclude=exclude)
    assert metrics == votes | retrieval(*tensors, k=[1], precision=[3], exclude=exclude)
    # A copy of the bank is not the bank: there every query finds itself.
    copy = replace(data, query=Split(data.bank.images, data.bank.labels))
    assert Knn(k=(1,), recall=(1,))(features, copy).metrics["knn@1"] == 1
    assert metrics["knn@1"] < 1


@pytest.mark.parametrize(("leaves_one_out", "limit"), [(False, 40), (True, 39)])
def test_k_beyond_the_bank_is_lowered_with_a_warning(leaves_one_out: bool, limit: int) -> None:
    data = small_data()
    if leaves_one_out:
        data = replace(data, query=data.bank)
    features = ImageFeatures(pixels(data.train), size_px=8)
    with pytest.warns(UserWarning, match=f"k = 200 is more than the bank offers; {limit} is used"):
        metrics = Knn(k=(1, 100, 200), retrieval=False)(features, data).metrics
    assert list(metrics) == ["knn@1", f"knn@{limit}", "knn_majority@1", f"knn_majority@{limit}"]
