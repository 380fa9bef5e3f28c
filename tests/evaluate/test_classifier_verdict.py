"""The verdict on a classifier: chance, divergence, and a frozen backbone, whose features no training changes."""

from typing import Any

import pytest

from reptk.evaluate.classifier_verdict import (
    ADVICE_AT_CHANCE,
    ADVICE_BELOW_NEIGHBORS,
    ADVICE_IF_CLASSIFIER_WORSE,
    ADVICE_WITHOUT_CLASSIFIER,
)
from reptk.evaluate.diagnostics import DIVERGENCE_ADVICE, divergence_message
from reptk.evaluate.verdict import verdict

Interval = tuple[float, float]


def verdict_of(
    interval: Interval | None,
    *,
    chance: float = 0.1,
    knn: Interval = (0.58, 0.62),
    frozen: bool = True,
    diverged: list[int] | None = None,
    gain: tuple[float, float, float] | None = None,
) -> dict[str, Any]:
    """Of a stage that starts from a run: its kNN is below that of raw pixels, and the same as before training.

    Args:
        interval: of the accuracy; None for a run without a classifier.
        chance: share of the most frequent class.
        knn: interval of kNN@20.
        frozen: whether the backbone was.
        diverged: epochs of 10 that warned of divergence.
        gain: of the accuracy over that of the classifier before training.
    """
    features = {"knn@20": sum(knn) / 2, "map@r": 0.4}
    trained, before = dict(features), dict(features)
    intervals = {"knn@20": knn}
    gains = {"knn@20": (0.0, 0.0, 0.0), "map@r": (0.0, 0.0, 0.0)}
    notes = {}
    if interval is not None:
        trained = {"accuracy": sum(interval) / 2, **features}
        intervals["accuracy"] = interval
        notes = {"accuracy": {"most_frequent_class": chance}}
    if gain is not None:
        before["accuracy"] = 0.5
        gains["accuracy"] = gain
    training: dict[str, Any] = {"epochs": 10, "warnings": {"divergence": diverged or []}}
    if frozen:
        training["frozen_backbone"] = True
    return verdict(
        {
            "headline": next(iter(trained)),
            "metrics": {"raw pixels": {"knn@20": 0.9, "map@r": 0.8}, "untrained": before, "trained": trained},
            "intervals": {"raw pixels": {}, "untrained": {}, "trained": intervals},
            "gains": {"raw pixels": {"knn@20": (-0.3, -0.4, -0.2), "map@r": (-0.4, -0.5, -0.3)}, "untrained": gains},
            "health": {},
            "notes": {"trained": notes},
            "training": training,
            "protocol": {"recipe": "linear", "untrained": "the encoder before training (that of runs/a/1)"},
        }
    )


def test_a_frozen_backbone_is_judged_by_its_classifier() -> None:
    """Neither the features, which are those of another run, nor raw pixels say anything about the stage."""
    good = verdict_of((0.7, 0.8))
    assert good == {
        "level": "good",
        "sentence": "Accuracy 75.0 % (95 % interval 70.0 to 80.0). The backbone was not trained, so the features are those of "
        "the encoder before training (that of runs/a/1): kNN@20 60.0 % and mAP@R 40.0 %",
        "advice": [],
    }
    below = verdict_of((0.4, 0.5))
    assert (below["level"], below["advice"]) == ("fair", [ADVICE_BELOW_NEIGHBORS])
    assert verdict_of((0.5, 0.6))["level"] == "good", "not below kNN beyond chance"


@pytest.mark.parametrize(
    ("gain", "relation", "level", "advice"),
    [
        ((0.1, 0.05, 0.15), "above", "good", []),
        ((0.0, -0.05, 0.05), "no different from", "fair", []),
        ((-0.1, -0.15, -0.05), "below", "poor", [ADVICE_IF_CLASSIFIER_WORSE]),
    ],
)
def test_a_classifier_is_compared_with_the_one_it_began_with(
    gain: tuple[float, float, float], relation: str, level: str, advice: list[str]
) -> None:
    judged = verdict_of((0.7, 0.8), gain=gain)
    assert f"80.0): {relation} the classifier before training, 50.0 %. The backbone" in judged["sentence"]
    assert (judged["level"], judged["advice"]) == (level, advice)


def test_without_a_classifier_a_frozen_backbone_has_nothing_to_compare() -> None:
    judged = verdict_of(None)
    assert judged == {
        "level": "",
        "sentence": "kNN@20 60.0 % (95 % interval 58.0 to 62.0), that of the encoder before training (that of runs/a/1): the "
        "backbone was not trained",
        "advice": [ADVICE_WITHOUT_CLASSIFIER],
    }


@pytest.mark.parametrize("frozen", [True, False])
def test_chance_comes_first(frozen: bool) -> None:
    at_chance = verdict_of((0.29, 0.35), chance=0.3, frozen=frozen)
    assert at_chance["level"] == "poor"
    assert at_chance["sentence"].startswith(
        "The classifier is no better than chance, 30.0 %, the share of the most frequent class. Accuracy 32.0 %"
    )
    assert at_chance["advice"][0] == ADVICE_AT_CHANCE
    # An accuracy of 32 % is worse than chance if there is a class of most images, and good if there are many classes.
    assert verdict_of((0.29, 0.35), chance=0.7, frozen=frozen)["sentence"].startswith("The classifier is no better")
    assert "chance" not in verdict_of((0.29, 0.35), chance=0.1, frozen=frozen)["sentence"]


@pytest.mark.parametrize("frozen", [True, False])
def test_divergence_that_lasted_comes_first(frozen: bool) -> None:
    diverged = verdict_of((0.7, 0.8), diverged=[9, 10], frozen=frozen)
    assert diverged["level"] == "poor"
    assert diverged["sentence"].startswith(
        "The training of the classifier has diverged: its loss is far above that of "
    )
    assert diverged["advice"][-1] == f"Training warned of divergence after epochs 9 and 10 of 10. {DIVERGENCE_ADVICE}"
    at_chance = verdict_of((0.09, 0.12), diverged=[10], frozen=frozen)
    assert "class: its training has diverged. Accuracy" in at_chance["sentence"]
    assert ADVICE_AT_CHANCE not in at_chance["advice"]
    # The learning rate has fallen since.
    passed = verdict_of((0.7, 0.8), diverged=[1, 2], frozen=True)
    assert passed["level"] == "good"
    assert passed["advice"] == ["Training warned of divergence after epochs 1 and 2 of 10"]


def test_a_loss_that_is_far_above_that_of_equal_scores_is_a_divergence() -> None:
    assert divergence_message(2.4, 10) is None
    assert divergence_message(3.5, 10).startswith(
        "divergence: the cross-entropy is 3.5, and equal scores for all 10 cl"
    )
    assert divergence_message(3.5, 100) is None
