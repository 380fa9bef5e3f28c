"""results.json: classes, confusions and gains as counted; predictions that are saved next to it."""

import json
from pathlib import Path

import pytest
import torch

from reptk.core.errors import DataError
from reptk.data import Data
from reptk.data.sources.generated import generated
from reptk.evaluate import Evaluation, ImageFeatures, Knn, Predictions, pixels, run_evaluators
from reptk.evaluate.predictions import sample_queries
from reptk.evaluate.results import build_results, confusions, write_results


@pytest.fixture(scope="module")
def data() -> Data:
    return generated(train=40, bank=40, query=24, classes=4, size=8)


@pytest.fixture(scope="module")
def rows(data: Data) -> dict[str, Evaluation]:
    evaluators = [Knn(k=(1, 5), recall=(1,), precision=(3,))]
    few_pixels = ImageFeatures(lambda images: images[:, 0, :2, ::3].flatten(1), size_px=8)
    all_pixels = ImageFeatures(pixels(data.train), size_px=8)
    return {
        "raw pixels": run_evaluators(all_pixels, data, evaluators),
        "encoder": run_evaluators(few_pixels, data, evaluators),
    }


def test_classes_and_confusions_are_as_counted(rows: dict[str, Evaluation], data: Data) -> None:
    results = build_results(rows, data, {})
    predictions = rows["encoder"].predictions
    assert json.loads(json.dumps(results)) == json.loads(json.dumps(results))
    assert results["headline"] == "knn@5"
    correct = (predictions.predicted == predictions.labels).double()
    assert results["metrics"]["encoder"]["knn@5"] == pytest.approx(correct.mean().item())
    for row in results["classes"]:
        of_class = predictions.labels == data.classes.index(row["name"])
        assert row["queries"] == int(of_class.sum())
        assert row["knn@5"] == pytest.approx(correct[of_class].mean().item(), abs=1e-6)
    assert sum(pair["count"] for pair in confusions(rows["encoder"], data.classes)) == int((correct == 0).sum())
    for pair in results["confusions"]:
        label, taken_for = data.classes.index(pair["class"]), data.classes.index(pair["taken_for"])
        is_pair = (predictions.labels == label) & (predictions.predicted == taken_for)
        assert pair["count"] == int(is_pair.sum())
    assert set(results["gains"]) == {"raw pixels"}


def test_predictions_are_saved_next_to_the_results(rows: dict[str, Evaluation], data: Data, tmp_path: Path) -> None:
    write_results(tmp_path, build_results(rows, data, {}), rows["encoder"])
    saved, predictions = Predictions.load(tmp_path), rows["encoder"].predictions
    assert (saved.row, saved.vote, saved.query_split, saved.bank_split) == ("encoder", "knn@5", "query", "bank")
    assert saved.classes == data.classes
    assert torch.equal(saved.predicted, predictions.predicted)
    assert torch.equal(saved.neighbor_labels, data.bank.labels[saved.neighbors])
    assert torch.equal(saved.features, predictions.features.half())
    assert ((saved.confidence > 0) & (saved.confidence <= 1)).all()
    assert json.loads((tmp_path / "results.json").read_text())["headline"] == "knn@5"
    (tmp_path / "evaluation.safetensors").write_bytes(b"not this")
    with pytest.raises(DataError, match="is damaged"):
        Predictions.load(tmp_path)
    assert Predictions.load(tmp_path / "elsewhere") is None


def test_a_sample_of_queries_is_always_the_same() -> None:
    assert torch.equal(sample_queries(5, 10), torch.arange(5))
    chosen = sample_queries(1000, 10)
    assert torch.equal(chosen, sample_queries(1000, 10))
    assert len(chosen.unique()) == 10
    assert torch.equal(chosen, chosen.sort().values)


def test_a_sample_holds_the_same_queries_of_every_tensor(rows: dict[str, Evaluation]) -> None:
    predictions = rows["encoder"].predictions
    sample = predictions.sampled("encoder", max_queries=7)
    assert len(sample) == 7
    assert torch.equal(sample.features, predictions.features[sample.index])
    assert torch.equal(sample.neighbors, predictions.neighbors[sample.index])
