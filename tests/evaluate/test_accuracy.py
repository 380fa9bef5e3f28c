"""Accuracy of a trained classifier: counted by hand, for encoders that have one, and never for baselines without."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from probe_problems import tiny_encoder
from reptk.core.errors import NumericalError, UsageError
from reptk.data import Data
from reptk.evaluate import Accuracy, Knn, build_evaluators, evaluate_encoder, evaluate_pixels
from reptk.evaluate.results import build_results, headline
from reptk.models.encoder import Encoder, eval_mode
from reptk.testing import check_evaluator

NUM_CLASSES = 8


@pytest.fixture(scope="module")
def problem() -> tuple[Encoder, Data, nn.Linear]:
    """An encoder, data whose last query has no label, and a classifier of more classes than the data shows."""
    encoder, data = tiny_encoder()
    labels = data.query.labels.clone()
    labels[-1] = -1
    torch.manual_seed(0)
    classifier = nn.Linear(encoder.num_features, NUM_CLASSES)
    return encoder, replace(data, query=replace(data.query, labels=labels)), classifier


def test_it_is_counted_as_by_hand(problem: tuple[Encoder, Data, nn.Linear]) -> None:
    encoder, data, classifier = problem
    metrics = evaluate_encoder(encoder, data, [Accuracy(k=(1, 3, 8))], classifier=classifier).metrics
    with eval_mode(encoder), torch.no_grad():
        scores = classifier(encoder.features(data.query.images.fetch(torch.arange(len(data.query)))))
    labels = data.query.labels[:-1]
    top3 = scores[:-1].topk(3).indices
    assert set(metrics) == {"accuracy", "accuracy@3"}  # among all 8 classes, every query is right
    assert metrics["accuracy"] == pytest.approx((top3[:, 0] == labels).double().mean().item())
    assert metrics["accuracy@3"] == pytest.approx((top3 == labels[:, None]).any(1).double().mean().item())
    assert torch.equal(metrics["accuracy"].values, (top3[:, 0] == labels).float())


def test_a_classifier_that_cannot_decide_is_not_always_right(problem: tuple[Encoder, Data, nn.Linear]) -> None:
    encoder, data, _ = problem
    undecided = nn.Linear(encoder.num_features, NUM_CLASSES)
    nn.init.zeros_(undecided.weight)
    nn.init.zeros_(undecided.bias)
    accuracy = evaluate_encoder(encoder, data, [Accuracy()], classifier=undecided).metrics["accuracy"]
    assert accuracy == pytest.approx((data.query.labels[:-1] == 0).double().mean().item())


def test_scores_that_are_not_finite_are_an_error(problem: tuple[Encoder, Data, nn.Linear]) -> None:
    encoder, data, _ = problem
    broken = nn.Linear(encoder.num_features, NUM_CLASSES)
    nn.init.constant_(broken.bias, torch.nan)
    with pytest.raises(NumericalError, match="Accuracy: scores of the classifier hold NaN"):
        evaluate_encoder(encoder, data, [Accuracy()], classifier=broken)


def test_baselines_without_a_classifier_have_no_accuracy(problem: tuple[Encoder, Data, nn.Linear]) -> None:
    encoder, data, classifier = problem
    evaluators = [Accuracy(), Knn(k=(1, 5))]
    pixels = evaluate_pixels(data, evaluators)
    trained = evaluate_encoder(encoder, data, evaluators, classifier=classifier)
    assert "accuracy" not in pixels.metrics
    results = build_results({"raw pixels": pixels, "trained": trained}, data, {})
    assert results["headline"] == "accuracy"
    low, high = results["intervals"]["trained"]["accuracy"]
    assert low <= trained.metrics["accuracy"] <= high
    assert "accuracy" not in results["gains"]["raw pixels"]
    assert all("accuracy" in row for row in results["classes"])
    # Where kNN comes first, it is the headline, and the sentence names the accuracy as well.
    trained = evaluate_encoder(encoder, data, evaluators[::-1], classifier=classifier)
    results = build_results({"raw pixels": evaluate_pixels(data, evaluators[::-1]), "trained": trained}, data, {})
    assert results["headline"] == "knn@5"
    assert (
        f"Its classifier has an accuracy of {100 * trained.metrics['accuracy']:.1f} %" in results["verdict"]["sentence"]
    )


def test_headline_is_the_accuracy_if_it_is_first() -> None:
    assert headline({"accuracy": 0.5, "accuracy@5": 0.9, "knn@20": 0.4}) == "accuracy"
    assert headline({"knn@20": 0.4, "accuracy": 0.5}) == "knn@20"


def test_the_share_of_the_most_frequent_class_is_noted(problem: tuple[Encoder, Data, nn.Linear]) -> None:
    encoder, data, classifier = problem
    notes = evaluate_encoder(encoder, data, [Accuracy()], classifier=classifier).notes
    known = data.query.labels[data.query.labels >= 0]
    expected = max(known.tolist().count(label) for label in range(NUM_CLASSES)) / len(known)
    assert notes["accuracy"] == {"most_frequent_class": pytest.approx(expected, abs=1e-6)}


def test_an_encoder_with_a_classifier_gets_the_evaluator(problem: tuple[Encoder, Data, nn.Linear]) -> None:
    _, data, _ = problem
    tables = {"knn": {"name": "knn", "every_epochs": 4}, "linear": {"name": "linear", "every_epochs": 0}}
    evaluators, every_epochs = build_evaluators(tables, data, has_classifier=True)
    assert list(evaluators) == ["knn", "linear", "accuracy"]
    assert every_epochs["accuracy"] == 4
    assert "accuracy" not in build_evaluators(tables, data)[0]
    named = {"top": {"name": "accuracy", "every_epochs": 1, "k": [1, 2]}, **tables}
    assert list(build_evaluators(named, data, has_classifier=True)[0]) == ["top", "knn", "linear"]
    with pytest.raises(UsageError, match=r"eval\.top measures a classifier that was trained with the encoder"):
        build_evaluators(named, data)


def test_it_meets_the_requirements() -> None:
    check_evaluator(Accuracy())
