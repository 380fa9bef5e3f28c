"""The verdict: what the metrics and their intervals mean, in a sentence, and what to change."""

from collections.abc import Mapping
from typing import Any, Literal

from reptk.core.metric_names import display_name
from reptk.evaluate.diagnostics import COLLAPSE_ADVICE, COLLAPSED_FEATURES_STD, is_collapsed

MAX_COPIES = 0.01
"""Share of queries with a pixel-identical image in the bank from which on the metrics mean little."""

Side = Literal["better", "worse", "even"]

PHRASES: dict[Side, str] = {
    "better": "above {}, {}",
    "worse": "below {}, {}",
    "even": "no different from {}, {}",
}
ADVICE_IF_WORSE = {
    "raw pixels": (
        "Raw pixels do better: the images may be so much alike that pixels suffice. Train longer, use a stem or a size that "
        "keeps more of small images (encoder.stem=small, views.size), or milder views (views.scale, views.strength)"
    ),
    "untrained": (
        "Training made it worse than the untrained encoder: lower optim.lr, look at the views (reptk views), and see whether "
        "they take away what tells the classes apart"
    ),
}
ADVICE_IF_EVEN = "The difference is within the error of this many queries: train longer, or evaluate on more queries"


def verdict(results: Mapping[str, Any]) -> dict[str, Any]:
    """Return `level`, `sentence` and `advice` from the rest of results.json; see `reptk.evaluate.results`."""
    *baselines, last = results["metrics"]
    sides: dict[str, Side] = {}
    for row in baselines:
        gain = results["gains"].get(row, {}).get(results["headline"])
        if gain is not None:
            sides[row] = _side(gain)
    sentence = _sentence(results, last, sides)
    # A collapse or copies make every comparison meaningless, so they are reported alone.
    problems = [*_collapse(results["health"].get(last, {})), *_copies(results)]
    if problems:
        return {"level": "poor", "sentence": sentence, "advice": problems}
    worse_than = [row for row, side in sides.items() if side == "worse"]
    if worse_than:
        # Baselines of other names have no advice of their own.
        advice = [ADVICE_IF_WORSE[row] for row in worse_than if row in ADVICE_IF_WORSE]
        return {"level": "poor", "sentence": sentence, "advice": advice}
    if all(sides.get(row) == "better" for row in baselines):
        return {"level": "good", "sentence": sentence, "advice": []}
    return {"level": "fair", "sentence": sentence, "advice": [ADVICE_IF_EVEN]}


def _sentence(results: Mapping[str, Any], last: str, sides: Mapping[str, Side]) -> str:
    """The headline metric with its interval, and on which side of the baselines it is."""
    name = results["headline"]
    sentence = f"{display_name(name)} {100 * results['metrics'][last][name]:.1f} %"
    interval = results["intervals"][last].get(name)
    if interval is not None:
        low, high = interval
        sentence += f" (95 % interval {100 * low:.1f} to {100 * high:.1f})"
    comparisons = []
    for row, side in sides.items():
        value = f"{100 * results['metrics'][row][name]:.1f} %"
        comparisons.append(PHRASES[side].format(row, value))
    if comparisons:
        sentence += ": " + "; ".join(comparisons)
    return sentence


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


def _copies(results: Mapping[str, Any]) -> list[str]:
    share = results.get("copies", 0.0)
    if share < MAX_COPIES:
        return []
    return [
        f"{100 * share:.1f} % of the queries have a copy of themselves in the bank, so they are found whatever the encoder: "
        "remove them from one of the two (reptk search --duplicates lists them)"
    ]
