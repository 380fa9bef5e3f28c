"""The assembly: evaluators built and chosen for a data set, called, and joined to one evaluation."""

import importlib
import math

import pytest
import torch

from reptk.core.errors import DataError, NumericalError, UsageError
from reptk.data import Data
from reptk.evaluate import (
    EvalResult,
    Evaluation,
    Evaluator,
    FewShot,
    ImageFeatures,
    Knn,
    LinearProbe,
    LinearStage,
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


EVALUATORS_OF_FEATURES = [
    Knn(k=(1,)),
    LinearProbe(),
    FewShot(shots=(1,)),
    ViewRetrieval(),
    LinearStage(epochs=1, batch_size=8),
    LinearStage(epochs=1, batch_size=8, views="none"),
]


@pytest.mark.parametrize("factor", [math.nan, math.inf, 1e25], ids=["nan", "infinite", "too long for float32"])
@pytest.mark.parametrize("evaluator", EVALUATORS_OF_FEATURES, ids=lambda evaluator: type(evaluator).__name__)
def test_features_that_are_not_finite_are_a_numerical_error(evaluator: Evaluator, factor: float) -> None:
    """Whatever an evaluator would compute of them; the last images alone are bad, so that some are labeled queries."""
    data = small_data()

    def embed(images: torch.Tensor) -> torch.Tensor:
        h = few_pixels(images) + 0.1
        h[-3:] *= factor
        return h

    features = ImageFeatures(embed, size_px=8, views=lambda images, key: images[None] / 255)
    with pytest.raises(
        NumericalError, match=r"^the features of 3 of \d+ images hold NaN or infinity \(image/\d+, "
    ) as error:
        run_evaluators(features, data, [evaluator])
    assert "optim.lr" in str(error.value)


def test_features_of_predictions_that_are_not_finite_are_a_numerical_error() -> None:
    def evaluator(features: ImageFeatures, data: Data) -> EvalResult:
        result = Knn(k=(1,))(features, data)
        result.predictions.features[4, 0] = math.nan
        return result

    with pytest.raises(NumericalError, match="the features of the predictions: 1 of 21 rows of h hold NaN"):
        run_evaluators(ImageFeatures(few_pixels, size_px=8), small_data(), [evaluator])


def test_classifiers_that_diverge_are_a_numerical_error_or_are_not_chosen() -> None:
    data = small_data()

    def accuracy(*lr: float) -> float:
        features = ImageFeatures(few_pixels, size_px=8)
        stage = LinearStage(epochs=3, batch_size=8, views="none", lr=lr, weight_decay=1.0, momentum=0.0)
        return run_evaluators(features, data, [stage]).metrics["linear_stage"]

    with pytest.raises(NumericalError, match="LinearStage: all classifiers of the linear stage hold NaN"):
        accuracy(1e30)
    assert accuracy(0.1, 1e30) == accuracy(0.1)


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
