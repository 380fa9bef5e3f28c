"""The verdict: what the metrics and their intervals mean, in a sentence, and what to change."""

from collections.abc import Mapping, Sequence
from typing import Any

from reptk.core.metric_names import display_name
from reptk.evaluate.classifier_verdict import classifier_failure, has_unchanged_features, judge_unchanged_features
from reptk.evaluate.comparison import Comparison, MetricDifference, Side, compare
from reptk.evaluate.diagnostics import (
    COLLAPSE_ADVICE,
    COLLAPSED_FEATURES_STD,
    DIVERGENCE_ADVICE,
    PROTOTYPES_ADVICE,
    SHORTCUT_ADVICE,
    is_collapsed,
    temperature_advice,
)
from reptk.evaluate.verdict_phrases import enumerate_words, list_changes, list_moves, with_interval

MAX_COPIES = 0.01
"""Share of queries with a pixel-identical image in the bank from which on the verdict remarks on it."""

RAW_PIXELS = "raw pixels"
UNTRAINED = "untrained"
"""The rows of the baselines."""

BEFORE_TRAINING = "the encoder before training"
"""What the row "untrained" is called in a sentence; `protocol["untrained"]` says with which weights."""

PRETRAINED = "pretrained"
PRETRAINED_ENCODER = "the pretrained encoder"
"""What the same row is called in a table, and in a sentence, if training began with pretrained weights."""

WARNING_NAMES = {
    "collapse": "collapse",
    "prototypes": "collapse of the prototypes",
    "divergence": "divergence",
    "temperature": "dead temperature",
    "shortcut": "leak",
}
"""What the warnings of a run (`training["warnings"]` of results.json) are called; see `reptk.evaluate.diagnostics`."""

MAX_NAMED_EPOCHS = 4
"""Epochs of a warning that are listed one by one."""

PHRASES: dict[Side, str] = {
    "better": "above {}, {}",
    "worse": "below {}, {}",
    "even": "no different from {}, {}",
}
ADVICE_IF_WORSE = {
    RAW_PIXELS: (
        "Raw pixels do better: the images may be so much alike that pixels suffice. Train longer, use a stem or a size that "
        "keeps more of small images (encoder.stem=small, views.size), or milder views (views.scale, views.strength)"
    ),
    UNTRAINED: (
        "The features were better before training: lower optim.lr, look at the views (reptk views), and see whether they take "
        "away what tells the classes apart"
    ),
}
ADVICE_IF_PRETRAINED_WORSE = (
    "The pretrained weights were better: lower optim.lr, train fewer layers (encoder.freeze) or the first ones less "
    "(optim.layer_decay), and look at the views (reptk views)"
)
ADVICE_IF_EVEN = "The difference is within the error of this many queries: train longer, or evaluate on more queries"
ADVICE_IF_MIXED = (
    "The metrics disagree: decide by the one whose use is yours (neighbors: kNN, Recall, mAP@R; a classifier on the features: "
    "Linear, Few-shot)"
)
ADVICE_WITHOUT_BASELINE = (
    "There is no baseline to compare with, and the number alone does not tell whether it is a good one"
)


WARNING_ADVICE = {
    "collapse": COLLAPSE_ADVICE,
    "prototypes": PROTOTYPES_ADVICE,
    "divergence": DIVERGENCE_ADVICE,
    "temperature": temperature_advice(),
    "shortcut": SHORTCUT_ADVICE,
}
"""By kind of warning, unless `training["advice"]` of results.json names the keys of the method."""


def verdict(results: Mapping[str, Any]) -> dict[str, Any]:
    """Return `level`, `sentence` and `advice` from the rest of results.json; see `reptk.evaluate.results`.

    The level is empty if there is nothing to compare with.
    """
    if has_unchanged_features(results):
        before = baseline_name(UNTRAINED, results.get("protocol", {}))
        level, sentence, advice = judge_unchanged_features(results, before, UNTRAINED)
    else:
        level, sentence, advice = _judge_encoder(results)
    failure = classifier_failure(results)
    if failure is not None:
        level = "poor"
        sentence = f"{failure.sentence}. {sentence}"
        advice = [*failure.advice, *advice]
    last = list(results["metrics"])[-1]
    collapse = _collapse(results["health"].get(last, {}))
    model = _model(results)
    warnings = _training_warnings(results, advises=not collapse)
    if collapse:
        # It makes every comparison meaningless. Collapsed features are all alike, so copies cannot be told from others.
        return {"level": "poor", "sentence": sentence, "advice": [*model, *collapse, *warnings]}
    return {"level": level, "sentence": sentence, "advice": [*model, *advice, *warnings, *_copies(results)]}


def _judge_encoder(results: Mapping[str, Any]) -> tuple[str, str, list[str]]:
    """Return level, sentence and advice from the comparison with the baselines."""
    *baselines, last = results["metrics"]
    comparisons = [compare(results, row) for row in baselines]
    comparisons = [comparison for comparison in comparisons if comparison.side is not None or comparison.differences]
    level, advice = _judge(comparisons, len(baselines), began_pretrained(results.get("protocol", {})))
    return level, _sentence(results, last, comparisons), advice


def is_clearly_worse(results: Mapping[str, Any], row: str = UNTRAINED) -> bool:
    """Return whether the last row is worse than a baseline, and in no family of metrics better.

    Worse means: beyond the paired 95 % interval, in the headline metric; or, where that does not differ, in another family
    (retrieval, linear, few-shot). If families disagree, neither encoder is the better one; nor if the last row has a metric
    that the baseline lacks, e.g. the accuracy of a classifier that was trained with the encoder.
    """
    if row not in results["gains"]:
        return False
    last = list(results["metrics"])[-1]
    if not results["metrics"][last].keys() <= results["metrics"][row].keys():
        return False
    comparison = compare(results, row)
    return comparison.is_worse and not comparison.is_mixed


def began_pretrained(protocol: Mapping[str, Any]) -> bool:
    """Return whether training began with pretrained weights, by the protocol of results.json."""
    if "initial_weights" in protocol:
        return protocol["initial_weights"] == PRETRAINED
    # Older files say it in the text alone.
    return PRETRAINED in str(protocol.get(UNTRAINED, ""))


def row_label(row: str, protocol: Mapping[str, Any]) -> str:
    """Return what a row of the results is called in a table: "pretrained" or "before training" for "untrained" of a run."""
    if row != UNTRAINED or "recipe" not in protocol:
        return row
    if began_pretrained(protocol):
        return PRETRAINED
    return "before training"


def baseline_name(row: str, protocol: Mapping[str, Any]) -> str:
    """Return what a row of the results is called in a sentence.

    Args:
        row: e.g. "untrained".
        protocol: of results.json; older ones do not say with which weights training began.
    """
    if row != UNTRAINED:
        return row
    return str(protocol.get(UNTRAINED, BEFORE_TRAINING))


def _judge(comparisons: Sequence[Comparison], num_baselines: int, is_pretrained: bool) -> tuple[str, list[str]]:
    """Return level and advice. With pretrained weights the advice is another one."""
    if not comparisons:
        if num_baselines:
            return "", []  # its metrics have no intervals, so nothing can be said of them
        return "", [ADVICE_WITHOUT_BASELINE]
    advice = []
    # Baselines of other names have no advice of their own.
    for comparison in comparisons:
        # Where metrics disagree, neither encoder is the better one.
        if not comparison.is_worse or comparison.is_mixed or comparison.row not in ADVICE_IF_WORSE:
            continue
        if comparison.row == UNTRAINED and is_pretrained:
            advice.append(ADVICE_IF_PRETRAINED_WORSE)
        else:
            advice.append(ADVICE_IF_WORSE[comparison.row])
    if any(comparison.is_mixed for comparison in comparisons):
        advice.append(ADVICE_IF_MIXED)
    if any(comparison.is_worse for comparison in comparisons):
        return "poor", advice
    if any(comparison.side == "even" and not comparison.differences for comparison in comparisons):
        advice.append(ADVICE_IF_EVEN)
    if len(comparisons) == num_baselines and all(comparison.is_better for comparison in comparisons):
        return "good", advice
    return "fair", advice


def _sentence(results: Mapping[str, Any], last: str, comparisons: Sequence[Comparison]) -> str:
    """The headline metric with its interval, and what is above and below the baselines; first, what training made worse."""
    sentence = with_interval(results, results["headline"])
    phrases = []
    for comparison in comparisons:
        if comparison.row == UNTRAINED and comparison.is_worse:
            sentence = f"{_training_phrase(results, comparison)}. {sentence}"
            comparison = comparison._replace(differences=[])  # named already
        if comparison.side is not None or comparison.differences:
            phrases.append(_comparison_phrase(results, comparison))
    if phrases:
        sentence += ": " + "; ".join(phrases)
    return sentence + _accuracy_phrase(results, last)


def _training_phrase(results: Mapping[str, Any], comparison: Comparison) -> str:
    """Name every metric that training made worse, and those that it made better, as one statement about all of them."""
    headline = results["headline"]
    differences = list(comparison.differences)
    if comparison.side == "worse":
        last = list(results["metrics"])[-1]
        before, after = results["metrics"][comparison.row][headline], results["metrics"][last][headline]
        differences.insert(0, MetricDifference(headline, "worse", before, after))
    worse = [difference for difference in differences if difference.side == "worse"]
    better = [difference for difference in differences if difference.side == "better"]
    phrase = f"Training made {list_changes(worse)} worse"
    if better:
        phrase += f", and {list_changes(better)} better"
    if comparison.side == "even":
        phrase += f", and {display_name(headline)} no different"
    return phrase


def _accuracy_phrase(results: Mapping[str, Any], last: str) -> str:
    """Name the accuracy of the trained classifier, unless it is the headline. It has no baseline: an untrained one guesses."""
    accuracy = results["metrics"][last].get("accuracy")
    if accuracy is None or results["headline"] == "accuracy":
        return ""
    phrase = f". Its classifier has an accuracy of {100 * accuracy:.1f} %"
    interval = results["intervals"][last].get("accuracy")
    if interval is not None:
        low, high = interval
        phrase += f" ({100 * low:.1f} to {100 * high:.1f})"
    return phrase


def _comparison_phrase(results: Mapping[str, Any], comparison: Comparison) -> str:
    """Say on which side of a baseline the headline is, and name every other family that moved."""
    row, side, differences = comparison
    baseline = baseline_name(row, results.get("protocol", {}))
    if side is None:
        return f"against {baseline}, {list_moves(differences)}"
    value = f"{100 * results['metrics'][row][results['headline']]:.1f} %"
    phrase = PHRASES[side].format(baseline, value)
    alike = [display_name(difference.metric) for difference in differences if difference.side == side]
    other = [difference for difference in differences if difference.side != side]
    if alike:
        phrase += f" ({enumerate_words(alike)} too)"
    if other:
        phrase += f", but {list_moves(other)}"
    return phrase


def _collapse(state: Mapping[str, float]) -> list[str]:
    if not state or not is_collapsed(state, COLLAPSED_FEATURES_STD):
        return []
    used = f"{state['rank']:.1f} of {state['dimensions']:.0f} dimensions, and their spread is {state['std']:.2f} of an even one"
    return [f"The features have collapsed: they use {used}. {COLLAPSE_ADVICE}"]


def _model(results: Mapping[str, Any]) -> list[str]:
    """Say which weights are in model/ if they are not the last ones, as a list of at most one line."""
    sentence = results.get("model", {}).get("sentence")
    if not sentence:
        return []
    return [sentence]


def _training_warnings(results: Mapping[str, Any], *, advises: bool) -> list[str]:
    """Name what training warned of, and advise about one of the warnings that lasted until the end, as at most one line.

    Args:
        results: with `training`, if they are of a run.
        advises: False: leave the advice out.
    """
    training = results.get("training", {})
    warnings: Mapping[str, Sequence[int]] = training.get("warnings", {})
    phrases = []
    for kind, name in WARNING_NAMES.items():
        if warnings.get(kind):
            phrases.append(f"{name} {_epochs(warnings[kind])}")
    if not phrases:
        return []
    line = f"Training warned of {enumerate_words(phrases)} of {training['epochs']}"
    lasting = [kind for kind in WARNING_NAMES if training["epochs"] in warnings.get(kind, ())]
    if not advises or not lasting:
        return [line]
    # A collapse explains the others, so its advice comes alone.
    advice = {**WARNING_ADVICE, **training.get("advice", {})}
    return [f"{line}. {advice[lasting[0]]}"]


def _epochs(epochs: Sequence[int]) -> str:
    """Return e.g. `after epoch 3` or `after 12 epochs from 3 to 20`."""
    if len(epochs) == 1:
        return f"after epoch {epochs[0]}"
    if len(epochs) <= MAX_NAMED_EPOCHS:
        return f"after epochs {enumerate_words([str(epoch) for epoch in epochs])}"
    return f"after {len(epochs)} epochs from {epochs[0]} to {epochs[-1]}"


def _copies(results: Mapping[str, Any]) -> list[str]:
    """Remark on copies: they raise every row alike, so the comparisons hold."""
    share = results.get("copies", 0.0)
    if share < MAX_COPIES:
        return []
    return [
        f"{100 * share:.1f} % of the queries have a copy of themselves in the bank, which any encoder finds: all rows are that "
        "much too high. Remove them from one of the two (reptk search --duplicates lists them)"
    ]
