"""Write run folders as evaluation leaves them, without training, for the tests of the report."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from reptk.config import build, validate
from reptk.config.registry import DATASETS
from reptk.core import rng
from reptk.data import Data
from reptk.evaluate.predictions import Predictions
from reptk.neighbors import search

RECIPE: dict[str, Any] = {
    "name": "tiny",
    "data": {"name": "generated", "train": 32, "bank": 60, "query": 40, "classes": 4, "size": 16},
    "views": {"name": "simclr_small", "size": 16},
    "encoder": {"backbone": "test_resnet"},
    "method": {"name": "contrastive"},
    "loss": {"name": "simclr"},
    "optim": {"name": "adamw", "lr": 1e-3},
    "train": {"epochs": 3, "batch_size": 16},
    "eval": {"knn": {"k": [1, 5]}},
}

ROW_SHARES = {"raw pixels": 0.6, "untrained": 0.8, "trained": 1.0}
"""The metrics of each row, as a share of those of the trained row."""


def make_run(
    folder: Path,
    *,
    seed: int = 0,
    noise: float = 1.4,
    classes: tuple[str, ...] = (),
    data: dict[str, Any] | None = None,
    **changes: Any,
) -> Path:
    """Write a run's folder with all its files but the model.

    Args:
        seed: of the features.
        noise: distance of the features from the center of their class; the larger, the more predictions are wrong.
        classes: class names instead of the data set's.
        data: arguments of the data set that differ; a different `name` replaces them all.
        changes: tables of the recipe, or keys of them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    data_part = dict(data or {})
    if data_part.get("name", "generated") == "generated":
        data_part = RECIPE["data"] | data_part
    recipe_table: dict[str, Any] = {}
    for key, value in RECIPE.items():
        recipe_table[key] = value
        if isinstance(value, dict):
            recipe_table[key] = value | changes.pop(key, {})
    recipe = validate({**recipe_table, **changes, "data": data_part})
    dataset = build(DATASETS, recipe.data)
    bank_features = _draw_features(dataset.bank.labels, "bank", seed, noise)
    query_features = _draw_features(dataset.query.labels, "query", seed, noise)
    predictions = make_predictions(dataset, bank_features, query_features, classes or dataset.classes)
    predictions.save(folder)
    results = make_results(predictions, recipe.data, recipe.name)
    (folder / "recipe.toml").write_text(recipe.dump())
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in make_log(seed)))
    (folder / "status.json").write_text('{"status": "finished"}')
    return folder


def copy_files(run: Path, folder: Path, *names: str) -> Path:
    """Make a run's folder with some of the files of another."""
    folder.mkdir()
    for name in names:
        shutil.copy(run / name, folder / name)
    return folder


def make_predictions(data: Data, bank: Tensor, queries: Tensor, classes: tuple[str, ...], k: int = 5) -> Predictions:
    """Return the predictions of kNN with k neighbors, one vote each."""
    blocks = list(search(bank, queries, max(k, 10)))
    similarities, rows = (torch.cat(parts) for parts in zip(*blocks, strict=True))
    neighbor_labels = data.bank.labels[rows]
    votes = torch.zeros(len(queries), len(classes))
    votes.scatter_add_(1, neighbor_labels[:, :k], torch.ones(len(queries), k))
    return Predictions(
        row="trained",
        vote=f"knn@{k}",
        query_split="query",
        bank_split="bank",
        classes=classes,
        index=torch.arange(len(queries)),
        labels=data.query.labels,
        predicted=votes.argmax(1),
        confidence=votes.amax(1) / k,
        neighbors=rows[:, :10],
        similarities=similarities[:, :10],
        neighbor_labels=neighbor_labels[:, :10],
        features=queries.half(),
    )


def make_results(predictions: Predictions, data_part: dict[str, Any], recipe_name: str) -> dict[str, Any]:
    """Return results.json: the trained row as the predictions have it, the others below it."""
    hits = {
        predictions.vote: predictions.predicted == predictions.labels,
        "recall@1": predictions.neighbor_labels[:, 0] == predictions.labels,
    }
    trained = {metric: hit.double().mean().item() for metric, hit in hits.items()}
    metrics = {}
    intervals = {}
    gains = {}
    for row, share in ROW_SHARES.items():
        metrics[row] = {metric: value * share for metric, value in trained.items()}
        intervals[row] = {metric: [value - 0.06, min(value + 0.06, 1.0)] for metric, value in metrics[row].items()}
        if row != "trained":
            gains[row] = {}
            for metric, value in metrics[row].items():
                gain = trained[metric] - value
                gains[row][metric] = [gain, gain - 0.08, gain + 0.08]
    return {
        "schema": 1,
        "headline": predictions.vote,
        "metrics": metrics,
        "intervals": intervals,
        "gains": gains,
        "health": {
            "untrained": {"alignment": 0.21, "uniformity": -1.4, "rank": 12.5, "dimensions": 64, "std": 0.03},
            "trained": {"alignment": 0.32, "uniformity": -2.9, "rank": 41.0, "dimensions": 64, "std": 0.11},
        },
        "verdict": {
            "level": "good",
            "sentence": "The features separate the classes well.",
            "advice": ["Train longer."],
        },
        "protocol": {
            "recipe": recipe_name,
            "data": data_part,
            "splits": "generated",
            "versions": {"reptk": "0.1.0", "torch": torch.__version__},
            "commit": "0123456789ab",
            "device": "cpu",
        },
    }


def make_log(seed: int) -> list[dict[str, Any]]:
    """Return metrics.jsonl of three epochs of four steps."""
    rows: list[dict[str, Any]] = []
    for step in range(1, 13):
        loss = 4 - step / 5 + seed / 10
        rows.append({"step": step, "epoch": step / 4, "loss": loss, "lr": 1e-3, "views_per_second": 900.0 + step})
    for epoch in (1, 2, 3):
        row = {"step": 4 * epoch, "epoch": epoch, "rank": 20.0 + epoch, "waiting": 0.0, "knn@5": 0.5 + epoch / 20}
        rows.append(row)
    return sorted(rows, key=lambda row: row["step"])


def _draw_features(labels: Tensor, split: str, seed: int, noise: float) -> Tensor:
    centers = torch.randn(int(labels.max()) + 1, 32, generator=rng.generator("middles"))
    offsets = torch.randn(len(labels), 32, generator=rng.generator("features", split, seed))
    return functional.normalize(centers[labels.clamp_min(0)] + noise * offsets, dim=1)
