"""Run folders as evaluation leaves them, made without training: for the tests of the report."""

import json
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


def make_run(
    folder: Path,
    *,
    seed: int = 0,
    noise: float = 1.4,
    classes: tuple[str, ...] = (),
    data: dict[str, Any] | None = None,
    **changed: Any,
) -> Path:
    """A run's folder with all its files but the model.

    Args:
        seed: of the features.
        noise: how far features lie from the middle of their class; the larger, the more answers are wrong.
        classes: names instead of the data set's.
        data: what differs in the data set's arguments; another `name` replaces them all.
        changed: sections of the recipe.
    """
    folder.mkdir(parents=True, exist_ok=True)
    part = data or {}
    part = part if part.get("name", "generated") != "generated" else RECIPE["data"] | part
    table = {
        key: {**value, **changed.pop(key, {})} if isinstance(value, dict) else value for key, value in RECIPE.items()
    }
    recipe = validate({**table, **changed, "data": part})
    opened = build(DATASETS, recipe.data)
    features = [
        _features(opened.bank.labels, "bank", seed, noise),
        _features(opened.query.labels, "query", seed, noise),
    ]
    (folder / "recipe.toml").write_text(recipe.dump())
    evidence = evidence_of(opened, *features, classes=classes or opened.classes)
    evidence.save(folder)
    (folder / "results.json").write_text(json.dumps(results_of(evidence, recipe.data, recipe.name)))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows_of(seed)))
    (folder / "status.json").write_text('{"status": "finished"}')
    return folder


def evidence_of(data: Data, bank: Tensor, queries: Tensor, classes: tuple[str, ...], k: int = 5) -> Predictions:
    """What stands behind kNN with k neighbours, each with one vote."""
    found = list(search(bank, queries, max(k, 10)))
    similarities, rows = (torch.cat(part) for part in zip(*found, strict=True))
    votes = torch.zeros(len(queries), len(classes)).scatter_add_(
        1, data.bank.labels[rows[:, :k]], torch.ones(len(queries), k)
    )
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
        neighbor_labels=data.bank.labels[rows[:, :10]],
        features=queries.half(),
    )


def results_of(evidence: Predictions, part: dict[str, Any], name: str) -> dict[str, Any]:
    """results.json: the trained row from the evidence, the others below it."""
    right = {
        evidence.vote: evidence.predicted == evidence.labels,
        "recall@1": evidence.neighbor_labels[:, 0] == evidence.labels,
    }
    trained = {metric: hits.double().mean().item() for metric, hits in right.items()}
    rows = {row: {metric: value * share for metric, value in trained.items()} for row, share in SHARES.items()}
    return {
        "schema": 1,
        "headline": evidence.vote,
        "metrics": rows,
        "intervals": {
            row: {m: [v - 0.06, min(v + 0.06, 1.0)] for m, v in values.items()} for row, values in rows.items()
        },
        "gains": {
            row: {m: [trained[m] - v, trained[m] - v - 0.08, trained[m] - v + 0.08] for m, v in rows[row].items()}
            for row in rows
            if row != "trained"
        },
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
            "recipe": name,
            "data": part,
            "splits": "generated",
            "versions": {"reptk": "0.1.0", "torch": torch.__version__},
            "commit": "0123456789ab",
            "device": "cpu",
        },
    }


SHARES = {"raw pixels": 0.6, "untrained": 0.8, "trained": 1.0}


def rows_of(seed: int) -> list[dict[str, Any]]:
    """metrics.jsonl of three epochs of four steps."""
    steps = [
        {
            "step": step,
            "epoch": step / 4,
            "loss": 4 - step / 5 + seed / 10,
            "lr": 1e-3,
            "views_per_second": 900.0 + step,
        }
        for step in range(1, 13)
    ]
    epochs = [
        {"step": 4 * at, "epoch": at, "rank": 20.0 + at, "waiting": 0.0, "knn@5": 0.5 + at / 20} for at in (1, 2, 3)
    ]
    return sorted([*steps, *epochs], key=lambda row: row["step"])


def _features(labels: Tensor, what: str, seed: int, noise: float) -> Tensor:
    middles = torch.randn(int(labels.max()) + 1, 32, generator=rng.generator("middles"))
    draws = torch.randn(len(labels), 32, generator=rng.generator("features", what, seed))
    return functional.normalize(middles[labels.clamp_min(0)] + noise * draws, dim=1)
