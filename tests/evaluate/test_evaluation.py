"""The assembly: evaluators built and chosen for a data set, called, and joined to one evaluation."""

import importlib

import pytest
import torch

from reptk.core.errors import DataError, NumericalError, UsageError
from reptk.evaluate import (
    EvalResult,
    Evaluation,
    ImageFeatures,
    Knn,
    LinearProbe,
    QueryMean,
    ViewRetrieval,
    build_evaluators,
    engine_name,
    evaluate_pixels,
    run_evaluators,
)
from reptk.views.sets import crop_flip
from small_features import few_pixels, small_data, unlabeled_data

# The packages export functions of these names.
features_module = importlib.import_module("reptk.evaluate.features")
exact_search = importlib.import_module("reptk.neighbors.exact")


def test_results_of_evaluators_are_joined() -> None:
    data = small_data()
    features = ImageFeatures(few_pixels, size_px=8)
    knn = Knn(k=(1,), retrieval=False)
    evaluation = run_evaluators(
        features, data, [knn, lambda features, data: EvalResult({"answer": 42.0}, {"other": {"seed": 1}})]
    )
    assert list(evaluation.metrics) == ["knn@1", "knn_majority@1", "answer"]
    assert evaluation.notes == {"knn": {"index": "Flat", "engine": engine_name()}, "other": {"seed": 1}}
    assert len(evaluation.predictions) == 21
    assert set(evaluation.health) == {"alignment", "uniformity", "rank", "dimensions", "std"}


def test_during_training_there_are_metrics_alone() -> None:
    data = small_data()
    features = ImageFeatures(few_pixels, size_px=8)
    evaluation = run_evaluators(features, data, [Knn(k=(1,))], during_training=True)
    assert list(evaluation.metrics) == ["knn@1", "knn_majority@1"]
    assert evaluation.predictions is None
    assert evaluation.health == {}


def test_progress_is_reported_by_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features_module, "BLOCK", 16)
    monkeypatch.setattr(exact_search, "BLOCK", 15)
    reports = []
    data = small_data()
    evaluate_pixels(data, [Knn(k=(1,))], progress=lambda *report: reports.append(report))
    encoded_bank = [("encoding", 16, 40), ("encoding", 32, 40), ("encoding", 40, 40)]
    encoded_queries = [("encoding", 16, 21), ("encoding", 21, 21)]
    searched = [("searching", 15, 21), ("searching", 21, 21)]
    assert reports == encoded_bank + encoded_queries + searched
    reports.clear()
    evaluate_pixels(
        unlabeled_data(20), [ViewRetrieval()], views=crop_flip(size=8), progress=lambda *report: reports.append(report)
    )
    assert {stage for stage, _, _ in reports} == {"encoding", "searching"}
    assert reports[-1] == ("searching", 20, 20)


def test_an_evaluator_that_returns_something_else_is_named() -> None:
    features = ImageFeatures(few_pixels, size_px=8)

    class Careless:
        def __call__(self, features, data):
            return {"x": 0.5}

    with pytest.raises(UsageError, match=r"evaluator Careless must return an EvalResult\(metrics\), got dict"):
        run_evaluators(features, small_data(), [Careless()])


def test_what_an_evaluator_cannot_use_is_an_error_that_names_it() -> None:
    data = small_data(classes=1)
    with pytest.raises(DataError, match="LinearProbe cannot evaluate this data: "):
        run_evaluators(ImageFeatures(few_pixels, size_px=8), data, [LinearProbe()])


def test_features_that_are_not_finite_are_a_numerical_error() -> None:
    features = ImageFeatures(lambda images: few_pixels(images) * torch.nan, size_px=8)
    with pytest.raises(NumericalError, match="Knn: 40 of 40 rows of bank hold NaN or infinity"):
        run_evaluators(features, small_data(), [Knn(k=(1,))])


def test_evaluators_are_built_from_tables() -> None:
    tables = {"often": {"name": "knn", "k": (1, 5), "every_epochs": 2}, "few_shot": {"name": "few_shot"}}
    evaluators, every_epochs = build_evaluators(tables, small_data())
    assert isinstance(evaluators["often"], Knn)
    assert evaluators["often"].k == [1, 5]
    assert list(evaluators) == ["often", "few_shot"]
    assert every_epochs == {"often": 2, "few_shot": 0}


def test_without_labels_view_retrieval_replaces_evaluators_that_need_them() -> None:
    data = unlabeled_data(20)
    tables = {"knn": {"name": "knn", "every_epochs": 2}, "linear": {"name": "linear", "every_epochs": 5}}
    evaluators, every_epochs = build_evaluators(tables, data)
    assert isinstance(evaluators["view_retrieval"], ViewRetrieval)
    assert every_epochs == {"view_retrieval": 5}
    evaluators, every_epochs = build_evaluators(
        {**tables, "views": {"name": "view_retrieval", "limit": 10, "every_epochs": 1}}, data
    )
    assert list(evaluators) == ["views"]
    assert evaluators["views"].limit == 10
    assert every_epochs == {"views": 1}


def test_a_state_gives_metrics_with_their_values_again() -> None:
    evaluation = evaluate_pixels(small_data(), [Knn(k=(1,), retrieval=False)])
    evaluation.metrics["plain"] = 0.25
    state = evaluation.state_dict()
    assert isinstance(state["metrics"]["knn@1"], torch.Tensor)
    restored = Evaluation.from_state(state)
    assert restored.metrics == evaluation.metrics
    assert isinstance(restored.metrics["knn@1"], QueryMean)
    assert torch.equal(restored.metrics["knn@1"].values, evaluation.metrics["knn@1"].values)
    assert restored.health == evaluation.health
