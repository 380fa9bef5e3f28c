"""What the numbers say, in a sentence, and what to change."""

from collections.abc import Mapping
from typing import Any

from reptk.core.metric_names import display_name
from reptk.evaluate.concerns import COLLAPSE, COLLAPSED_FEATURES_STD, collapsed

COPIES = 0.01
"""Share of queries that are in the bank, pixel for pixel, from which on a number means little."""

Table = dict[str, Any]


def verdict(results: Mapping[str, Any]) -> Table:
    """`level`, `sentence` and `advice` for results.json; see `reptk.evaluate.results`."""
    name, rows = results["headline"], list(results["metrics"])
    main, others = rows[-1], rows[:-1]
    advice = [*_collapse(results["health"].get(main, {})), *_copies(results)]
    behind = {row: _side(results["gains"].get(row, {}).get(name)) for row in others}
    said = _held_against(results, main, others, behind)
    if advice:
        return {"level": "poor", "sentence": said, "advice": advice}
    losses = [row for row, side in behind.items() if side == "worse"]
    if losses:
        return {"level": "poor", "sentence": said, "advice": [_ADVICE[row] for row in losses if row in _ADVICE]}
    level = "good" if all(side == "better" for side in behind.values()) else "fair"
    return {"level": level, "sentence": said, "advice": [] if level == "good" or not others else [_UNDECIDED]}


_ADVICE = {
    "raw pixels": (
        "Raw pixels do better: the images may be so much alike that pixels suffice. Train longer, use a stem or a size that "
        "keeps more of small images (encoder.stem=small, views.size), or milder views (views.scale, views.strength)"
    ),
    "untrained": (
        "Training made it worse than the untrained encoder: lower optim.lr, look at the views (reptk views), and see whether "
        "they take away what tells the classes apart"
    ),
}
_UNDECIDED = "The difference is within the error of this many queries: train longer, or evaluate on more queries"


def _held_against(results: Mapping[str, Any], main: str, others: list[str], behind: Mapping[str, str]) -> str:
    name = results["headline"]
    value, (low, high) = results["metrics"][main][name], results["intervals"][main].get(name, (None, None))
    said = f"{display_name(name)} {100 * value:.1f} %"
    if low is not None:
        said += f" (95 % interval {100 * low:.1f} to {100 * high:.1f})"
    words = {
        "better": "above {}, {}",
        "worse": "below {}, {}",
        "even": "no different from {}, {}",
    }
    parts = [
        words[behind[row]].format(row, f"{100 * results['metrics'][row][name]:.1f} %") for row in others if behind[row]
    ]
    return said + (": " + "; ".join(parts) if parts else "")


def _side(gain: Any) -> str:
    if gain is None:
        return ""
    _, low, high = gain
    return "better" if low > 0 else "worse" if high < 0 else "even"


def _collapse(state: Mapping[str, float]) -> list[str]:
    if not state or not collapsed(state, COLLAPSED_FEATURES_STD):
        return []
    used = f"{state['rank']:.1f} of {state['dimensions']:.0f} dimensions, and their spread is {state['std']:.2f} of an even one"
    return [f"The features have collapsed: they use {used}. {COLLAPSE}"]


def _copies(results: Mapping[str, Any]) -> list[str]:
    share = results.get("copies", 0.0)
    if share < COPIES:
        return []
    return [
        f"{100 * share:.1f} % of the queries have a copy of themselves in the bank, so they are found whatever the encoder: "
        "remove them from one of the two (reptk search --duplicates lists them)"
    ]
