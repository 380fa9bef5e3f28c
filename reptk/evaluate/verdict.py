"""The verdict: what the metrics and their intervals mean, in a sentence, and what to change."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from reptk.core.metric_names import display_name
from reptk.evaluate.diagnostics import (
    COLLAPSE_ADVICE,
    COLLAPSED_FEATURES_STD,
    SHORTCUT_ADVICE,
    TEMPERATURE_ADVICE,
    is_collapsed,
)

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

WARNING_NAMES = {"collapse": "collapse", "temperature": "dead temperature", "shortcut": "leak"}
"""What the warnings of a run (`training["warnings"]` of results.json) are called; see `reptk.evaluate.diagnostics`."""

MAX_NAMED_EPOCHS = 4
"""Epochs of a warning that are listed one by one."""

Side = Literal["better", "worse", "even"]

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
        "It was better before training: lower optim.lr, look at the views (reptk views), and see whether they take away what "
        "tells the classes apart"
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


WARNING_ADVICE = {"collapse": COLLAPSE_ADVICE, "temperature": TEMPERATURE_ADVICE, "shortcut": SHORTCUT_ADVICE}


class MetricDifference(NamedTuple):
    """A metric that differs from a baseline's beyond the paired interval."""

    metric: str
    side: Side
    before: float
    after: float


class Comparison(NamedTuple):
    """The last row against one baseline.

    side: of the headline metric; None if it has no interval.
    differences: of the other families that differ beyond chance.
    """

    row: str
    side: Side | None
    differences: list[MetricDifference]

    @property
    def is_worse(self) -> bool:
        """The headline is worse; or it is no better, and another family is worse while none is better."""
        if self.side == "worse":
            return True
        sides = {difference.side for difference in self.differences}
        return self.side != "better" and sides == {"worse"}

    @property
    def is_better(self) -> bool:
        """The headline is better, and no family is worse."""
        return self.side == "better" and all(difference.side == "better" for difference in self.differences)

    @property
    def is_mixed(self) -> bool:
        """One family is better and another one is worse."""
        sides = {self.side, *(difference.side for difference in self.differences)}
        return {"better", "worse"} <= sides


def verdict(results: Mapping[str, Any]) -> dict[str, Any]:
    """Return `level`, `sentence` and `advice` from the rest of results.json; see `reptk.evaluate.results`.

    The level is empty if there is nothing to compare with.
    """
    *baselines, last = results["metrics"]
    comparisons = [_compare(results, row) for row in baselines]
    comparisons = [comparison for comparison in comparisons if comparison.side is not None or comparison.differences]
    sentence = _sentence(results, last, comparisons)
    collapse = _collapse(results["health"].get(last, {}))
    model = _model(results)
    warnings = _training_warnings(results, advises=not collapse)
    if collapse:
        # It makes every comparison meaningless. Collapsed features are all alike, so copies cannot be told from others.
        return {"level": "poor", "sentence": sentence, "advice": [*model, *collapse, *warnings]}
    level, advice = _judge(comparisons, len(baselines), began_pretrained(results.get("protocol", {})))
    return {"level": level, "sentence": sentence, "advice": [*model, *advice, *warnings, *_copies(results)]}


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
    comparison = _compare(results, row)
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
        if not comparison.is_worse or comparison.row not in ADVICE_IF_WORSE:
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


def _compare(results: Mapping[str, Any], row: str) -> Comparison:
    """Compare the last row with a baseline in the headline and in one metric of every other family."""
    last = list(results["metrics"])[-1]
    gains = results["gains"].get(row, {})
    headline = results["headline"]
    side = None
    if headline in gains:
        side = _side(gains[headline])
    differences = []
    for metric in _family_metrics(gains, headline):
        metric_side = _side(gains[metric])
        if metric_side != "even":
            before = results["metrics"][row][metric]
            after = results["metrics"][last][metric]
            differences.append(MetricDifference(metric, metric_side, before, after))
    return Comparison(row, side, differences)


def _family_metrics(metrics: Iterable[str], headline: str) -> list[str]:
    """Return one metric of every family, apart from the headline: the usual one, or that of the fewest labels."""
    names = list(metrics)
    few_shot = [name for name in names if name.startswith("few_shot@")]
    usual = ["recall@1", "map@r", "linear", "linear_stage", *few_shot[:1], "view_recall@1"]
    return [name for name in usual if name in names and name != headline]


def _sentence(results: Mapping[str, Any], last: str, comparisons: Sequence[Comparison]) -> str:
    """The headline metric with its interval, and what is above and below the baselines."""
    name = results["headline"]
    sentence = f"{display_name(name)} {100 * results['metrics'][last][name]:.1f} %"
    if any(comparison.row == UNTRAINED and comparison.is_worse for comparison in comparisons):
        sentence = f"Training made it worse: {sentence}"
    interval = results["intervals"][last].get(name)
    if interval is not None:
        low, high = interval
        sentence += f" (95 % interval {100 * low:.1f} to {100 * high:.1f})"
    phrases = [_comparison_phrase(results, comparison) for comparison in comparisons]
    if phrases:
        sentence += ": " + "; ".join(phrases)
    return sentence + _accuracy_phrase(results, last)


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
        return f"against {baseline}, {_list_differences(differences)}"
    value = f"{100 * results['metrics'][row][results['headline']]:.1f} %"
    phrase = PHRASES[side].format(baseline, value)
    alike = [display_name(difference.metric) for difference in differences if difference.side == side]
    other = [difference for difference in differences if difference.side != side]
    if alike:
        phrase += f" ({_enumerate(alike)} too)"
    if other:
        phrase += f", but {_list_differences(other)}"
    return phrase


def _list_differences(differences: Sequence[MetricDifference]) -> str:
    phrases = []
    for difference in differences:
        direction = "up" if difference.side == "better" else "down"
        name = display_name(difference.metric)
        phrases.append(f"{name} is {direction} from {100 * difference.before:.1f} to {100 * difference.after:.1f} %")
    return _enumerate(phrases)


def _enumerate(words: Sequence[str]) -> str:
    if len(words) == 1:
        return words[0]
    return f"{', '.join(words[:-1])} and {words[-1]}"


def _side(gain: tuple[float, float, float]) -> Side:
    """On which side of 0 the interval of a gain is."""
    _, low, high = gain
    if low > 0:
        return "better"
    if high < 0:
        return "worse"
    return "even"


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
    line = f"Training warned of {_enumerate(phrases)} of {training['epochs']}"
    lasting = [kind for kind in WARNING_NAMES if training["epochs"] in warnings.get(kind, ())]
    if not advises or not lasting:
        return [line]
    # A collapse explains the others, so its advice comes alone.
    return [f"{line}. {WARNING_ADVICE[lasting[0]]}"]


def _epochs(epochs: Sequence[int]) -> str:
    """Return e.g. `after epoch 3` or `after 12 epochs from 3 to 20`."""
    if len(epochs) == 1:
        return f"after epoch {epochs[0]}"
    if len(epochs) <= MAX_NAMED_EPOCHS:
        return f"after epochs {_enumerate([str(epoch) for epoch in epochs])}"
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
