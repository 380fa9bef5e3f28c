"""The verdict: its level, its sentence and its advice follow from intervals, health and copies."""

from typing import Any

import pytest

from reptk.evaluate.diagnostics import COLLAPSE_ADVICE
from reptk.evaluate.verdict import ADVICE_IF_EVEN, ADVICE_IF_MIXED, ADVICE_WITHOUT_BASELINE, baseline_name, verdict

Gain = tuple[float, float, float]
UP: Gain = (0.1, 0.05, 0.15)
DOWN: Gain = (-0.1, -0.15, -0.05)
EVEN: Gain = (0.01, -0.01, 0.03)


def verdict_of(
    gain: Gain | None,
    *,
    copies: float = 0.0,
    std: float = 0.8,
    weights: str = "random weights",
    pixels: bool = True,
    **families: Gain,
) -> dict[str, Any]:
    """Of a trained encoder with this gain over the encoder before training, and with gains of other metrics."""
    others = {name.replace("_at_", "@"): value for name, value in families.items()}
    gains = {**({"knn@20": gain} if gain else {}), **others}
    rows = {"raw pixels": {"knn@20": 0.5}, "untrained": {"knn@20": 0.6}, "trained": {"knn@20": 0.7}}
    for name, (value, _, _) in others.items():
        rows["untrained"][name] = 0.4
        rows["trained"][name] = 0.4 + value
    if not pixels:
        del rows["raw pixels"]
    return verdict(
        {
            "headline": "knn@20",
            "metrics": rows,
            "intervals": {"trained": {"knn@20": (0.68, 0.72)}},
            "gains": {"raw pixels": {"knn@20": (0.2, 0.1, 0.3)}, "untrained": gains},
            "health": {"trained": {"rank": 80.0, "dimensions": 128.0, "std": std}},
            "copies": copies,
            "protocol": {"untrained": f"the encoder before training ({weights})"},
        }
    )


def test_the_verdict_follows_from_the_intervals() -> None:
    good = verdict_of(UP)
    assert (good["level"], good["advice"]) == ("good", [])
    assert good["sentence"] == (
        "kNN@20 70.0 % (95 % interval 68.0 to 72.0): above raw pixels, 50.0 %; above the encoder before training (random "
        "weights), 60.0 %"
    )
    fair = verdict_of(EVEN)
    assert (fair["level"], fair["advice"]) == ("fair", [ADVICE_IF_EVEN])
    assert "no different from the encoder before training (random weights), 60.0 %" in fair["sentence"]
    worse = verdict_of(DOWN)
    assert worse["level"] == "poor"
    assert "lower optim.lr" in worse["advice"][0]


def test_a_fine_tuning_that_ends_worse_than_it_began_says_so_first() -> None:
    worse = verdict_of(DOWN, weights="pretrained weights")
    assert worse["sentence"].startswith("Training made it worse: kNN@20 70.0 %")
    assert "below the encoder before training (pretrained weights), 60.0 %" in worse["sentence"]
    # Also if only another metric shows it.
    hidden = verdict_of(EVEN, **{"map@r": (-0.024, -0.03, -0.01)})
    assert hidden["level"] == "poor"
    assert hidden["sentence"].startswith("Training made it worse: ")
    assert hidden["sentence"].endswith("60.0 %, but mAP@R is down from 40.0 to 37.6 %")
    assert ADVICE_IF_EVEN not in hidden["advice"]


def test_a_family_that_rose_is_named_where_the_headline_shows_nothing() -> None:
    risen = verdict_of(EVEN, **{"map@r": (0.07, 0.05, 0.09), "recall@1": EVEN})
    assert risen["level"] == "fair"
    assert risen["sentence"].endswith("60.0 %, but mAP@R is up from 40.0 to 47.0 %")
    assert risen["advice"] == []


@pytest.mark.parametrize(
    ("metric", "name"),
    [
        ("recall@1", "Recall@1"),
        ("map@r", "mAP@R"),
        ("linear", "Linear"),
        ("linear_stage", "Linear stage"),
        ("few_shot@1", "Few-shot@1"),
        ("view_recall@1", "View recall@1"),
    ],
)
@pytest.mark.parametrize("gain", [UP, DOWN, EVEN], ids=["up", "down", "even"])
def test_every_family_that_moved_is_named(metric: str, name: str, gain: Gain) -> None:
    for headline in (UP, DOWN, EVEN):
        sentence = verdict_of(headline, **{metric: gain})["sentence"]
        assert (name in sentence) == (gain != EVEN)


def test_families_on_the_side_of_the_headline_are_enumerated() -> None:
    sentence = verdict_of(UP, **{"recall@1": UP, "map@r": UP, "linear": UP})["sentence"]
    assert sentence.endswith("60.0 % (Recall@1, mAP@R and Linear too)")


def test_metrics_that_disagree_are_not_good() -> None:
    mixed = verdict_of(UP, linear=DOWN)
    assert (mixed["level"], mixed["advice"]) == ("fair", [ADVICE_IF_MIXED])
    assert mixed["sentence"].endswith("but Linear is down from 40.0 to 30.0 %")


def test_copies_are_a_remark_and_change_nothing_else() -> None:
    for gain in (UP, DOWN, EVEN):
        without = verdict_of(gain)
        with_copies = verdict_of(gain, copies=0.034)
        assert with_copies["level"] == without["level"]
        assert with_copies["sentence"] == without["sentence"]
        assert with_copies["advice"][:-1] == without["advice"]
        assert "3.4 % of the queries have a copy" in with_copies["advice"][-1]


def test_a_collapse_is_reported_alone() -> None:
    # Collapsed features are all alike: every query seems to have a copy.
    collapsed = verdict_of(UP, std=0.01, copies=1.0, pixels=False)
    assert collapsed["level"] == "poor"
    assert len(collapsed["advice"]) == 1
    assert "collapsed" in collapsed["advice"][0]


def test_no_advice_raises_the_temperature() -> None:
    # A temperature that is too high is reported in the same run as a collapse.
    assert "temperature" not in COLLAPSE_ADVICE


def test_without_a_gain_over_a_baseline_nothing_is_said_of_it() -> None:
    unknown = verdict_of(None)
    assert unknown["level"] == "fair"
    assert "training" not in unknown["sentence"]


def test_without_a_gain_in_the_headline_the_other_families_count() -> None:
    risen = verdict_of(None, **{"map@r": UP})
    assert "against the encoder before training (random weights), mAP@R is up from 40.0 to 50.0 %" in risen["sentence"]


def test_without_baselines_there_is_no_level() -> None:
    alone = {
        "headline": "x",
        "metrics": {"encoder": {"x": 0.5}},
        "intervals": {"encoder": {}},
        "gains": {},
        "health": {},
    }
    assert verdict(alone) == {"level": "", "sentence": "x 50.0 %", "advice": [ADVICE_WITHOUT_BASELINE]}
    # A baseline without an interval cannot be compared with either.
    compared = {**alone, "metrics": {"untrained": {"x": 0.1}, **alone["metrics"]}}
    assert verdict(compared) == {"level": "", "sentence": "x 50.0 %", "advice": []}


def test_the_baseline_before_training_has_a_name_in_old_files() -> None:
    assert baseline_name("untrained", {}) == "the encoder before training"
    assert baseline_name("raw pixels", {}) == "raw pixels"
