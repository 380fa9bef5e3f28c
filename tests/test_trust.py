"""How far numbers are to be trusted: intervals, gains, health, concerns, the verdict, and results.json around them."""

import importlib
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from reptk.core.errors import DataError
from reptk.data.sources.generated import generated
from reptk.evaluate import (
    ImageFeatures,
    Knn,
    Predictions,
    QueryMean,
    concerns,
    gains,
    health,
    intervals,
    pixels,
    run_evaluators,
)
from reptk.evaluate.diagnostics import softmax_flatness
from reptk.evaluate.predictions import sample_queries
from reptk.evaluate.results import build_results, confusions
from reptk.evaluate.verdict import verdict


@pytest.fixture(autouse=True, scope="module")
def _quick(one_thread):
    """Tiny work throughout."""


def coins(count: int, share: float, seed: int = 0) -> Tensor:
    return (torch.rand(count, generator=torch.Generator().manual_seed(seed)) < share).float()


# Intervals


def test_a_mean_is_a_float_that_knows_its_queries() -> None:
    made = QueryMean(torch.tensor([1.0, 0.0, math.nan, 1.0]))
    assert made == pytest.approx(2 / 3)
    assert json.dumps({"x": made}) == json.dumps({"x": float(made)})
    assert len(made.values) == 4


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_the_interval_is_that_of_the_binomial(share: float) -> None:
    made = QueryMean(coins(2000, share))
    half = 1.96 * math.sqrt(made * (1 - made) / 2000)
    low, high = made.interval()
    assert low == pytest.approx(made - half, abs=0.1 * half)
    assert high == pytest.approx(made + half, abs=0.1 * half)


def test_it_holds_the_truth_in_nineteen_of_twenty_cases() -> None:
    held = 0
    for seed in range(200):
        low, high = QueryMean(coins(150, 0.7, seed)).interval()
        held += low <= 0.7 <= high
    assert 0.90 <= held / 200 <= 0.985


def test_all_right_is_not_certainty() -> None:
    assert QueryMean(torch.ones(300)).interval() == (0.99, 1.0)
    assert QueryMean(torch.zeros(300)).interval() == (0.0, 0.01)


def test_passed_over_queries_neither_count_nor_move_the_interval() -> None:
    values = coins(500, 0.4)
    with_gaps = torch.cat([values, torch.full((500,), math.nan)])
    low, high = QueryMean(values).interval()
    low_gaps, high_gaps = QueryMean(with_gaps).interval()
    assert QueryMean(with_gaps) == QueryMean(values)
    assert high_gaps - low_gaps == pytest.approx(high - low, rel=0.15)


def test_many_at_once_are_each_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = {
        "a": QueryMean(coins(100, 0.5)),
        "b": 0.3,
        "c": QueryMean(coins(100, 0.2, 1)),
        "d": QueryMean(coins(60, 0.2, 2)),
    }
    together = intervals(numbers)
    assert list(together) == ["a", "c", "d"]
    assert together == {name: pytest.approx(numbers[name].interval()) for name in together}
    monkeypatch.setattr(importlib.import_module("reptk.evaluate.intervals"), "MAX_COUNTS", 250)
    assert intervals(numbers) == {name: pytest.approx(ends) for name, ends in together.items()}


def test_a_gain_is_paired() -> None:
    """Two encoders that differ in few answers: the gain is far surer than either number."""
    before = coins(1000, 0.6)
    after = before.clone()
    after[before.eq(0).nonzero()[:20, 0]] = 1
    value, low, high = QueryMean(after).gain_over(QueryMean(before))
    assert value == pytest.approx(0.02)
    assert low > 0.01
    assert high < 0.03
    assert gains({"x": QueryMean(after), "y": 0.5}, {"x": QueryMean(before), "y": 0.4}) == {
        "x": pytest.approx((value, low, high))
    }
    with pytest.raises(ValueError, match="1000 queries here, 5 there"):
        QueryMean(after).gain_over(QueryMean(torch.ones(5)))


# Health and concerns


def test_health_is_its_definitions() -> None:
    z = torch.randn(30, 7, generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([0, 1, 2] * 8 + [-1] * 6)
    found = health(3 * z, ids)
    unit = torch.nn.functional.normalize(z, dim=1).double().numpy()
    squared = ((unit[:, None] - unit[None]) ** 2).sum(2)
    pairs = [(i, j) for i in range(30) for j in range(30) if i != j]
    same = [pair for pair in pairs if ids[pair[0]] == ids[pair[1]] >= 0]
    assert found["alignment"] == pytest.approx(np.mean([squared[pair] for pair in same]), rel=1e-4)
    assert found["uniformity"] == pytest.approx(
        np.log(np.mean([np.exp(-2 * squared[pair]) for pair in pairs])), rel=1e-4
    )
    assert found["std"] == pytest.approx(unit.std(0).mean() * math.sqrt(7), rel=1e-4)
    assert "alignment" not in health(z)
    assert "alignment" not in health(z, torch.arange(30))


def test_concerns_are_silent_about_good_embeddings_and_name_each_ill() -> None:
    z = torch.nn.functional.normalize(torch.randn(256, 32, generator=torch.Generator().manual_seed(0)), dim=1)
    ids = torch.arange(128).repeat(2)
    assert concerns(z, ids, 4.0, temperature=0.1)[1] == {}
    point = 1 + 0.01 * z
    assert set(concerns(point, ids, 4.0, temperature=0.1)[1]) == {"collapse"}
    line = torch.nn.functional.pad(torch.where(ids[:, None] % 2 == 0, 1.0, -1.0), (0, 31))
    assert set(concerns(line, ids, 4.0)[1]) == {"collapse"}
    assert set(concerns(z, ids, 4.0, temperature=100.0)[1]) == {"temperature"}
    assert set(concerns(z, ids, 0.01, accuracy=0.3, untrained=0.4)[1]) == {"shortcut"}
    assert concerns(z, ids, 0.01, accuracy=0.5, untrained=0.4)[1] == {}


def test_weighing_alike_is_the_entropy_written_out() -> None:
    z = torch.nn.functional.normalize(torch.randn(9, 4, generator=torch.Generator().manual_seed(0)), dim=1).double()
    scores = np.exp((z @ z.T).numpy() / 0.5)
    np.fill_diagonal(scores, 0)
    shares = scores / scores.sum(1, keepdims=True)
    entropy = [-sum(p * math.log(p) for p in row if p > 0) for row in shares]
    assert softmax_flatness(z, 0.5) == pytest.approx(np.mean(np.exp(entropy)) / 8, rel=1e-5)


# The verdict


def told(gain: tuple[float, float, float] | None, copies: float = 0.0, std: float = 0.8) -> dict:
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


def test_the_verdict_says_what_the_intervals_allow() -> None:
    good = told((0.1, 0.05, 0.15))
    assert (good["level"], good["advice"]) == ("good", [])
    assert good["sentence"] == (
        "kNN@20 70.0 % (95 % interval 68.0 to 72.0): above raw pixels, 50.0 %; above untrained, 60.0 %"
    )
    fair = told((0.01, -0.01, 0.03))
    assert fair["level"] == "fair"
    assert "no different from untrained" in fair["sentence"]
    assert "within the error" in fair["advice"][0]
    worse = told((-0.1, -0.15, -0.05))
    assert worse["level"] == "poor"
    assert "lower optim.lr" in worse["advice"][0]
    assert "collapsed" in told((0.1, 0.05, 0.15), std=0.01)["advice"][0]
    assert "2.0 % of the queries have a copy" in told((0.1, 0.05, 0.15), copies=0.02)["advice"][0]


# results.json


def measured() -> tuple:
    data = generated(train=40, bank=40, query=24, classes=4, size=8)
    rows = {
        name: run_evaluators(ImageFeatures(embed, size_px=8), data, [Knn(k=(1, 5), recall=(1,), precision=(3,))])
        for name, embed in (
            ("raw pixels", pixels(data.train)),
            ("encoder", lambda images: images[:, 0, :2, ::3].flatten(1)),
        )
    }
    return rows, data


def test_results_tell_classes_and_confusions_as_counted() -> None:
    rows, data = measured()
    found = build_results(rows, data, {})
    answers = rows["encoder"].predictions
    assert json.loads(json.dumps(found)) == json.loads(json.dumps(found))
    assert found["headline"] == "knn@5"
    right = (answers.predicted == answers.labels).double()
    assert found["metrics"]["encoder"]["knn@5"] == pytest.approx(right.mean().item())
    for row in found["classes"]:
        of_class = answers.labels == data.classes.index(row["name"])
        assert row["queries"] == int(of_class.sum())
        assert row["knn@5"] == pytest.approx(right[of_class].mean().item(), abs=1e-6)
    assert sum(pair["count"] for pair in confusions(rows["encoder"], data.classes)) == int((right == 0).sum())
    for pair in found["confusions"]:
        true, taken = data.classes.index(pair["class"]), data.classes.index(pair["taken_for"])
        assert pair["count"] == int(((answers.labels == true) & (answers.predicted == taken)).sum())
    assert set(found["gains"]) == {"raw pixels"}


def test_evidence_is_what_was_answered(tmp_path: Path) -> None:
    rows, data = measured()
    answers = rows["encoder"].predictions
    answers.sampled("encoder").save(tmp_path)
    kept = Predictions.load(tmp_path)
    assert (kept.row, kept.vote, kept.query_split, kept.bank_split) == ("encoder", "knn@5", "query", "bank")
    assert torch.equal(kept.predicted, answers.predicted)
    assert torch.equal(kept.neighbor_labels, data.bank.labels[kept.neighbors])
    assert ((kept.confidence > 0) & (kept.confidence <= 1)).all()
    (tmp_path / "evaluation.safetensors").write_bytes(b"not this")
    with pytest.raises(DataError, match="is damaged"):
        Predictions.load(tmp_path)
    assert Predictions.load(tmp_path / "elsewhere") is None


def test_a_sample_is_drawn_once_for_all() -> None:
    assert torch.equal(sample_queries(5, 10), torch.arange(5))
    chosen = sample_queries(1000, 10)
    assert torch.equal(chosen, sample_queries(1000, 10))
    assert len(chosen.unique()) == 10
    assert torch.equal(chosen, chosen.sort().values)
