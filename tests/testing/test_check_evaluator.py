"""check_evaluator: shipped evaluators pass, and every requirement is violated by one written for it."""

import pytest
import torch

from reptk.config.registry import EVALUATORS
from reptk.evaluate import EvalResult
from reptk.testing import EVALUATOR_REQUIREMENTS, check_evaluator
from violations import assert_each_is_violated, assert_rng_untouched, assert_violates, shipped


@pytest.mark.parametrize("name", shipped(EVALUATORS))
def test_every_shipped_evaluator_meets_the_requirements(name):
    check_evaluator(EVALUATORS.get(name)())


def spread(features, data):
    """How far apart the features of the training images are."""
    return EvalResult({"spread": features.features(data.train).var(0).sum().item()})


def unseeded(features, data):
    some = features.features(data.train)[torch.randperm(len(data.train))[:10]]
    return EvalResult({"spread": some.var(0).sum().item()})


def seeds_global_stream(features, data):
    torch.manual_seed(0)
    return unseeded(features, data)


def finds_the_query_itself(features, data):
    nearest = (features.features(data.query) @ features.features(data.bank).T).argmax(1)
    farthest = (nearest - torch.arange(len(nearest))).abs().max()
    return EvalResult({"distance": (1 / farthest).item()})


class NeedsNoLabels:
    needs_labels = False

    def __call__(self, features, data):
        return spread(features, data)


class NeedsABank(NeedsNoLabels):
    def __call__(self, features, data):
        return EvalResult({"spread": features.features(data.bank).var(0).sum().item()})


class SilentDuringTraining(NeedsNoLabels):
    def during_training(self, features, data):
        return EvalResult({})


def returns(value):
    return lambda features, data: value


BROKEN_EVALUATORS = {
    "nothing": (returns(EvalResult({})), ["evaluator(features, data)", ...]),
    "None": (returns(None), ["evaluator(features, data)", ...]),
    "a dictionary": (returns({"x": 0.5}), ["evaluator(features, data)", ...]),
    "pairs": (returns([("x", 0.5)]), ["evaluator(features, data)", ...]),
    "a tensor": (returns(EvalResult({"x": torch.tensor(1.0)})), ["evaluator(features, data)", ...]),
    "NaN": (returns(EvalResult({"x": float("nan")})), ["evaluator(features, data)", ...]),
    "a name that is not a string": (returns(EvalResult({5: 0.5})), ["evaluator(features, data)", ...]),
    "unseeded": (unseeded, ["the same features and data", "the random states"]),
    "seeds the global stream": (seeds_global_stream, ["the random states"]),
    "finds the query itself": (finds_the_query_itself, ["the same split as bank"]),
    "needs a bank": (NeedsABank(), ["with needs_labels"]),
    "silent during training": (SilentDuringTraining(), ["during_training"]),
}


@pytest.mark.parametrize("evaluator", [spread, NeedsNoLabels()], ids=["function", "object"])
def test_spread_meets_the_requirements(evaluator):
    check_evaluator(evaluator)


@pytest.mark.parametrize(("evaluator", "expected"), BROKEN_EVALUATORS.values(), ids=BROKEN_EVALUATORS)
def test_a_broken_evaluator_is_detected(evaluator, expected):
    assert_violates(expected, EVALUATOR_REQUIREMENTS, check_evaluator, evaluator)


def test_every_requirement_is_violated_by_a_broken_evaluator():
    assert_each_is_violated(EVALUATOR_REQUIREMENTS, BROKEN_EVALUATORS)


def test_a_failing_check_leaves_the_random_state() -> None:
    assert_rng_untouched(check_evaluator, unseeded)
