"""The verdict on a classifier: is it better than chance, has it diverged, was it trained on features that stay the same?"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from reptk.core.metric_names import display_name
from reptk.evaluate.comparison import family_metrics, knn_metric, side_of
from reptk.evaluate.diagnostics import SCALE_REASON
from reptk.evaluate.metrics.accuracy import CHANCE
from reptk.evaluate.verdict_phrases import enumerate_words, with_interval

ACCURACY = "accuracy"

ADVICE_AT_CHANCE = (
    f"Try optim.lr a tenth and ten times as high ({SCALE_REASON}), and more train.epochs; and see whether the labels are "
    "those of the images (reptk views)"
)
ADVICE_BELOW_NEIGHBORS = (
    "The nearest neighbors on the same features do better than the classifier: train it longer (train.epochs), or with "
    f"another optim.lr ({SCALE_REASON})"
)
ADVICE_IF_CLASSIFIER_WORSE = (
    "The classifier was better before training: lower optim.lr, and look at the views (reptk views)"
)
ADVICE_WITHOUT_CLASSIFIER = (
    "Only the head was trained, and the numbers are those of the backbone: freeze fewer of its layers (encoder.freeze), or "
    "train a classifier (method.name=classify)"
)

MAX_NAMED_METRICS = 3
"""Metrics of unchanged features that the sentence names."""


class Failure(NamedTuple):
    """What is wrong with the training of a classifier, as the beginning of the verdict, and lines of advice."""

    sentence: str
    advice: list[str]


def classifier_failure(results: Mapping[str, Any]) -> Failure | None:
    """Return what is wrong if the classifier of the last row guesses, or if its loss was far too high in the end; else None.

    Chance is the share of the most frequent class: what a classifier achieves that always names it.
    """
    training = results.get("training", {})
    has_diverged = training.get("epochs") in training.get("warnings", {}).get("divergence", ())
    last = list(results["metrics"])[-1]
    chance = results.get("notes", {}).get(last, {}).get(ACCURACY, {}).get(CHANCE)
    interval = results["intervals"].get(last, {}).get(ACCURACY)
    if chance is not None and interval is not None and interval[0] <= chance:
        sentence = (
            f"The classifier is no better than chance, {100 * chance:.1f} %, the share of the most frequent class"
        )
        if has_diverged:
            return Failure(f"{sentence}: its training has diverged", [])  # which has an advice, that of the warning
        return Failure(sentence, [ADVICE_AT_CHANCE])
    if has_diverged:
        sentence = (
            "The training of the classifier has diverged: its loss is far above that of equal scores for all classes"
        )
        return Failure(sentence, [])
    return None


def has_unchanged_features(results: Mapping[str, Any]) -> bool:
    """Return whether the results are those of a run that trained nothing of its backbone."""
    return results.get("training", {}).get("frozen_backbone") is True


def judge_unchanged_features(results: Mapping[str, Any], before: str, row: str) -> tuple[str, str, list[str]]:
    """Return level, sentence and advice for a run that trained nothing of its backbone.

    kNN and retrieval are those before training by construction, so the accuracy of the classifier is what it is judged by.

    Args:
        results: of a run.
        before: what the encoder before training is called in a sentence.
        row: the row of that encoder, which has an accuracy if the run began with a classifier.
    """
    last = list(results["metrics"])[-1]
    metrics = results["metrics"][last]
    if ACCURACY not in metrics:
        sentence = f"{with_interval(results, results['headline'])}, that of {before}: the backbone was not trained"
        return "", sentence, [ADVICE_WITHOUT_CLASSIFIER]
    sentence = with_interval(results, ACCURACY)
    level, advice = "good", []
    gain = results["gains"].get(row, {}).get(ACCURACY)
    if gain is not None:
        side = side_of(gain)
        relation = {"better": "above", "worse": "below", "even": "no different from"}[side]
        sentence += f": {relation} the classifier before training, {100 * results['metrics'][row][ACCURACY]:.1f} %"
        if side == "worse":
            level, advice = "poor", [ADVICE_IF_CLASSIFIER_WORSE]
        elif side == "even":
            level = "fair"
    sentence += f". The backbone was not trained, so the features are those of {before}"
    neighbors = knn_metric(metrics)
    names = [*neighbors, *family_metrics(metrics, neighbors[0] if neighbors else ACCURACY)][:MAX_NAMED_METRICS]
    if names:
        values = [f"{display_name(name)} {100 * metrics[name]:.1f} %" for name in names]
        sentence += f": {enumerate_words(values)}"
    if neighbors and _is_below(results["intervals"][last], ACCURACY, neighbors[0]):
        advice = [*advice, ADVICE_BELOW_NEIGHBORS]
        if level == "good":
            level = "fair"
    return level, sentence, advice


def _is_below(intervals: Mapping[str, tuple[float, float]], metric: str, other: str) -> bool:
    """Return whether the interval of a metric ends below that of another one."""
    if metric not in intervals or other not in intervals:
        return False
    return intervals[metric][1] < intervals[other][0]
