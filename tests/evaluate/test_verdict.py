"""The verdict: its level, its sentence and its advice follow from intervals, health and copies."""

from reptk.evaluate.verdict import verdict


def verdict_of(gain: tuple[float, float, float] | None, copies: float = 0.0, std: float = 0.8) -> dict:
    """Of a trained encoder with this gain over the untrained one."""
    return verdict(
        {
            "headline": "knn@20",
            "metrics": {"raw pixels": {"knn@20": 0.5}, "untrained": {"knn@20": 0.6}, "trained": {"knn@20": 0.7}},
            "intervals": {"trained": {"knn@20": (0.68, 0.72)}},
            "gains": {"raw pixels": {"knn@20": (0.2, 0.1, 0.3)}, "untrained": {"knn@20": gain} if gain else {}},
            "health": {"trained": {"rank": 80.0, "dimensions": 128.0, "std": std}},
            "copies": copies,
        }
    )


def test_the_verdict_follows_from_the_intervals() -> None:
    good = verdict_of((0.1, 0.05, 0.15))
    assert (good["level"], good["advice"]) == ("good", [])
    assert good["sentence"] == (
        "kNN@20 70.0 % (95 % interval 68.0 to 72.0): above raw pixels, 50.0 %; above untrained, 60.0 %"
    )
    fair = verdict_of((0.01, -0.01, 0.03))
    assert fair["level"] == "fair"
    assert "no different from untrained" in fair["sentence"]
    assert "within the error" in fair["advice"][0]
    worse = verdict_of((-0.1, -0.15, -0.05))
    assert worse["level"] == "poor"
    assert "lower optim.lr" in worse["advice"][0]
    assert "collapsed" in verdict_of((0.1, 0.05, 0.15), std=0.01)["advice"][0]
    assert "2.0 % of the queries have a copy" in verdict_of((0.1, 0.05, 0.15), copies=0.02)["advice"][0]


def test_without_a_gain_over_a_baseline_nothing_is_said_of_it() -> None:
    unknown = verdict_of(None)
    assert unknown["level"] == "fair"
    assert "untrained" not in unknown["sentence"]


def test_without_baselines_and_intervals_only_the_value_counts() -> None:
    alone = {
        "headline": "x",
        "metrics": {"encoder": {"x": 0.5}},
        "intervals": {"encoder": {}},
        "gains": {},
        "health": {},
    }
    assert verdict(alone) == {"level": "good", "sentence": "x 50.0 %", "advice": []}
