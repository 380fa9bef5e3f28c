"""The check of evaluators."""

import math
from collections.abc import Callable

import torch
from torch import nn

from reptk.config.registry import with_defaults
from reptk.core import rng
from reptk.data import Data, Split
from reptk.data.sources.generated import generated
from reptk.evaluate import EvalResult, Evaluator, FeatureStore, ImageFeatures
from reptk.testing.requirements import (
    Outcome,
    Requirement,
    global_rng_moved,
    qualified_name,
    raise_violations,
    try_requirements,
)
from reptk.views.sets import crop_flip

SIZE_PX = 8
NUM_CLASSES = 10


def check_evaluator(evaluator: Callable[[FeatureStore, Data], EvalResult]) -> None:
    """Check an evaluator against `EVALUATOR_REQUIREMENTS`, on generated images encoded by their pixels.

    Its optional members are checked as well: `during_training`, and `needs_labels = False`.

    Raises:
        AssertionError: one line for each violated requirement.

    Example:
        >>> from reptk.evaluate import Knn
        >>> check_evaluator(Knn())
    """
    raise_violations(try_evaluator(evaluator), "an evaluator", qualified_name(evaluator))


def try_evaluator(evaluator: Callable[[FeatureStore, Data], EvalResult]) -> list[Outcome]:
    """Try `EVALUATOR_REQUIREMENTS`, and return what came of each."""
    # Enough images of each class for the defaults of reptk's evaluators, e.g. k = 20.
    data = generated(classes=NUM_CLASSES, size=SIZE_PX, train=250, bank=250, query=50)
    with rng.seeded("check_evaluator"):
        return try_requirements(with_defaults(evaluator, Evaluator), EVALUATOR_REQUIREMENTS, data)


def _feature_store(evaluator: Evaluator) -> FeatureStore:
    # A new one each time: features are computed once per store.
    features = ImageFeatures(lambda images: images.flatten(1), size_px=SIZE_PX, views=crop_flip(count=1, size=SIZE_PX))
    if evaluator.needs_classifier:
        with rng.seeded("check_evaluator", "classifier"):
            features.classifier = nn.Linear(3 * SIZE_PX**2, NUM_CLASSES)
    return features


def _not_a_result(evaluator: Evaluator, data: Data) -> str | None:
    return _invalid_result(evaluator(_feature_store(evaluator), data))


def _invalid_result(result: object) -> str | None:
    if not isinstance(result, EvalResult):
        return f"it gave {type(result).__name__}"
    if not result.metrics:
        return "it gave no metrics"
    for name, value in result.metrics.items():
        if not isinstance(name, str) or not isinstance(value, float) or not math.isfinite(value):
            return f"it gave {(name, value)!r}"
    return None


def _depends_on_random_state(evaluator: Evaluator, data: Data) -> str | None:
    with rng.seeded("one state"):
        first = evaluator(_feature_store(evaluator), data).metrics
    with rng.seeded("another state"):
        second = evaluator(_feature_store(evaluator), data).metrics
    if first != second:
        return f"it gave {first}, then {second}"
    return None


def _moves_global_rng(evaluator: Evaluator, data: Data) -> str | None:
    return global_rng_moved(lambda: evaluator(_feature_store(evaluator), data))


def _fails_leave_one_out(evaluator: Evaluator, data: Data) -> str | None:
    # The bank is the query split, too: that is how evaluators recognize leave one out.
    return _not_a_result(evaluator, Data(data.train, data.bank, data.bank, data.classes, data.protocol))


def _fails_without_labels(evaluator: Evaluator, data: Data) -> str | None:
    if evaluator.needs_labels:
        return None
    unlabeled = Split(data.train.images, torch.full_like(data.train.labels, -1))
    return _not_a_result(evaluator, Data(unlabeled, None, None, (), data.protocol))


def _fails_during_training(evaluator: Evaluator, data: Data) -> str | None:
    return _invalid_result(evaluator.during_training(_feature_store(evaluator), data))


EVALUATOR_REQUIREMENTS = (
    Requirement(
        "evaluator(features, data) returns an EvalResult with metrics that are finite floats",
        _not_a_result,
        "The evaluation of a run fails after hours of training, or results.json cannot be written.",
    ),
    Requirement(
        "the same features and data give the same metrics, whatever the random state",
        _depends_on_random_state,
        "Two evaluations of one run differ, and a comparison shows chance.",
    ),
    Requirement(
        "the random states of torch, NumPy and Python are left as they were",
        _moves_global_rng,
        "An evaluation during training changes the training after it.",
    ),
    Requirement(
        "the same split as bank and query (leave one out) gives such a result",
        _fails_leave_one_out,
        "It cannot be used with data sets that have no bank of their own, e.g. most folders.",
    ),
    Requirement(
        "with needs_labels = False, data without labels, bank and query give such a result",
        _fails_without_labels,
        "The evaluation of data without labels fails after training.",
    ),
    Requirement(
        "during_training gives such a result",
        _fails_during_training,
        "A recipe with eval.NAME.every_epochs fails after its first epochs.",
    ),
)
"""What an evaluator must do."""
