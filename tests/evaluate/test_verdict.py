"""The verdict: its level, its sentence and its advice follow from intervals, health and copies."""

from typing import Any

import pytest

from reptk.evaluate.diagnostics import COLLAPSE_ADVICE, SHORTCUT_ADVICE, temperature_advice
from reptk.evaluate.verdict import (
    ADVICE_IF_EVEN,
    ADVICE_IF_MIXED,
    ADVICE_IF_PRETRAINED_WORSE,
    ADVICE_WITHOUT_BASELINE,
    PRETRAINED_ENCODER,
    baseline_name,
    is_clearly_worse,
    row_label,
    verdict,
)

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
    warnings: dict[str, list[int]] | None = None,
    model: str = "",
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
    return verdict(results_of(gains, rows, std, copies, weights, warnings, model))


def results_of(
    gains: dict[str, Gain],
    rows: dict[str, dict[str, float]],
    std: float = 0.8,
    copies: float = 0.0,
    weights: str = "random weights",
    warnings: dict[str, list[int]] | None = None,
    model: str = "",
) -> dict[str, Any]:
    before_training = f"the encoder before training ({weights})"
    if weights == "pretrained weights":
        before_training = PRETRAINED_ENCODER
    return {
        "headline": "knn@20",
        "metrics": rows,
        "intervals": {"trained": {"knn@20": (0.68, 0.72)}},
        "gains": {"raw pixels": {"knn@20": (0.2, 0.1, 0.3)}, "untrained": gains},
        "health": {"trained": {"rank": 80.0, "dimensions": 128.0, "std": std}},
        "copies": copies,
        "training": {"epochs": 10, "warnings": warnings or {}},
        "model": {"sentence": model},
        "protocol": {"recipe": "x", "untrained": before_training},
    }


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
    assert worse["sentence"].startswith("Training made kNN@20 (60.0 to 70.0 %) worse. kNN@20 70.0 % (95 % interval ")
    assert "below the pretrained encoder, 60.0 %" in worse["sentence"]
    assert worse["advice"] == [ADVICE_IF_PRETRAINED_WORSE]
    # What is exported comes before the advice.
    assert verdict_of(DOWN, weights="pretrained weights", model="model/ holds x")["advice"][0] == "model/ holds x"
    # Also if only another metric shows it.
    hidden = verdict_of(EVEN, **{"map@r": (-0.024, -0.03, -0.01)})
    assert hidden["level"] == "poor"
    assert hidden["sentence"].startswith(
        "Training made mAP@R (40.0 to 37.6 %) worse, and kNN@20 no different. kNN@20 70.0 %"
    )
    assert hidden["sentence"].endswith("no different from the encoder before training (random weights), 60.0 %")
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


def test_metrics_that_disagree_are_named_as_one_statement() -> None:
    """What training made worse stands beside what it made better, and neither encoder is called the better one."""
    mixed = verdict_of(DOWN, **{"map@r": UP, "linear": DOWN})
    assert mixed["sentence"].startswith(
        "Training made kNN@20 (60.0 to 70.0 %) and Linear (40.0 to 30.0 %) worse, and mAP@R (40.0 to 50.0 %) better. kNN@20"
    )
    assert (mixed["level"], mixed["advice"]) == ("poor", [ADVICE_IF_MIXED])
    # Without an interval of the headline, the families are named once.
    hidden = verdict_of(None, **{"map@r": DOWN})
    assert hidden["sentence"].startswith("Training made mAP@R (40.0 to 30.0 %) worse. kNN@20 70.0 %")
    assert hidden["sentence"].endswith("above raw pixels, 50.0 %")


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


@pytest.mark.parametrize(
    ("headline", "other", "expected"),
    [
        (DOWN, EVEN, True),
        (DOWN, DOWN, True),
        (EVEN, DOWN, True),
        (EVEN, EVEN, False),
        (UP, EVEN, False),
        (UP, DOWN, False),
        (EVEN, UP, False),
        # Neither encoder is the better one.
        (DOWN, UP, False),
    ],
)
def test_an_encoder_is_clearly_worse_if_a_family_is_and_none_is_better(
    headline: Gain, other: Gain, expected: bool
) -> None:
    rows = {"untrained": {"knn@20": 0.6, "map@r": 0.4}, "trained": {"knn@20": 0.6, "map@r": 0.4}}
    results = results_of({"knn@20": headline, "map@r": other}, rows)
    assert is_clearly_worse(results) == expected
    assert not is_clearly_worse(results, "a row that was not measured")
    # What only the trained encoder has, such as a classifier, cannot be compared.
    rows["trained"]["accuracy"] = 0.9
    assert not is_clearly_worse(results)


def test_warnings_of_the_training_are_named() -> None:
    named = verdict_of(UP, warnings={"temperature": [2], "collapse": [3, 4]})
    assert named["level"] == "good"
    assert named["advice"] == [
        "Training warned of collapse after epochs 3 and 4 and dead temperature after epoch 2 of 10"
    ]
    many = verdict_of(UP, warnings={"temperature": [1, 2, 3, 5, 8]})
    assert many["advice"] == ["Training warned of dead temperature after 5 epochs from 1 to 8 of 10"]


@pytest.mark.parametrize(
    ("kind", "advice"),
    [("collapse", COLLAPSE_ADVICE), ("temperature", temperature_advice()), ("shortcut", SHORTCUT_ADVICE)],
)
def test_a_warning_that_lasted_until_the_end_comes_with_advice(kind: str, advice: str) -> None:
    assert verdict_of(UP, warnings={kind: [9, 10]})["advice"][0].endswith(f"of 10. {advice}")


def test_advice_with_the_keys_of_the_method_replaces_the_general_one() -> None:
    results = results_of({}, {"trained": {"knn@20": 0.7}}, warnings={"prototypes": [10], "temperature": [3]})
    results["gains"] = {}
    results["training"]["advice"] = {"prototypes": "Lower method.epsilon", "temperature": "Lower method.temperature"}
    assert verdict(results)["advice"][-1].endswith("of 10. Lower method.epsilon")


def test_no_two_warnings_are_advised_about_at_once() -> None:
    """A collapse explains the others, and its advice may contradict theirs."""
    everything = {"collapse": [10], "temperature": [10], "shortcut": [10]}
    [line] = verdict_of(UP, warnings=everything)["advice"]
    assert line.endswith(COLLAPSE_ADVICE)
    assert temperature_advice() not in line
    # Features that have collapsed are advised about already.
    advice = verdict_of(UP, std=0.01, warnings=everything)["advice"]
    assert sum(COLLAPSE_ADVICE in line for line in advice) == 1
    assert not any(temperature_advice() in line for line in advice)


def test_no_advice_raises_a_temperature() -> None:
    """Both warnings may be printed in one run."""
    assert "temperature" not in COLLAPSE_ADVICE
    assert temperature_advice().startswith("Lower")


@pytest.mark.parametrize(
    ("row", "protocol", "label"),
    [
        ("raw pixels", {"recipe": "x"}, "raw pixels"),
        ("trained", {"recipe": "x"}, "trained"),
        ("untrained", {"recipe": "x", "untrained": "the encoder before training (random weights)"}, "before training"),
        ("untrained", {"recipe": "x", "untrained": "the pretrained encoder"}, "pretrained"),
        ("untrained", {"recipe": "x", "untrained": "the encoder before training (pretrained weights)"}, "pretrained"),
        ("untrained", {"recipe": "x"}, "before training"),
        # A stage that starts from a folder of that name.
        (
            "untrained",
            {"recipe": "x", "untrained": "... (that of runs/pretrained/1)", "initial_weights": "starting"},
            "before training",
        ),
        ("untrained", {"recipe": "x", "untrained": "any text", "initial_weights": "pretrained"}, "pretrained"),
        # Of `reptk evaluate`: random weights.
        ("untrained", {}, "untrained"),
    ],
)
def test_rows_of_a_table_say_with_which_weights_training_began(row: str, protocol: dict[str, str], label: str) -> None:
    assert row_label(row, protocol) == label
