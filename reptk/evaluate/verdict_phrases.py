"""Parts of the verdict's sentence: a metric with its interval, lists of metrics, names of baselines."""

from collections.abc import Mapping, Sequence
from typing import Any

from reptk.core.metric_names import display_name
from reptk.evaluate.comparison import MetricDifference


def enumerate_words(words: Sequence[str]) -> str:
    """Return `a`, `a and b` or `a, b and c`."""
    if len(words) == 1:
        return words[0]
    return f"{', '.join(words[:-1])} and {words[-1]}"


def with_interval(results: Mapping[str, Any], metric: str) -> str:
    """Return a metric of the last row, e.g. `kNN@20 70.0 % (95 % interval 68.0 to 72.0)`."""
    last = list(results["metrics"])[-1]
    phrase = f"{display_name(metric)} {100 * results['metrics'][last][metric]:.1f} %"
    interval = results["intervals"][last].get(metric)
    if interval is None:
        return phrase
    low, high = interval
    return f"{phrase} (95 % interval {100 * low:.1f} to {100 * high:.1f})"


def list_moves(differences: Sequence[MetricDifference]) -> str:
    """Return e.g. `mAP@R is up from 40.0 to 47.0 % and Linear is down from 80.0 to 77.0 %`."""
    phrases = []
    for difference in differences:
        direction = "up" if difference.side == "better" else "down"
        name = display_name(difference.metric)
        phrases.append(f"{name} is {direction} from {100 * difference.before:.1f} to {100 * difference.after:.1f} %")
    return enumerate_words(phrases)


def list_changes(differences: Sequence[MetricDifference]) -> str:
    """Return e.g. `kNN@20 (60.0 to 58.0 %) and mAP@R (40.0 to 37.6 %)`."""
    phrases = []
    for difference in differences:
        name = display_name(difference.metric)
        phrases.append(f"{name} ({100 * difference.before:.1f} to {100 * difference.after:.1f} %)")
    return enumerate_words(phrases)
