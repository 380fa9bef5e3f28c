"""A recipe that trains in a second, and what its runs leave behind."""

import json
from pathlib import Path
from typing import Any

import torch
from saved_models import model_state

from reptk.config import Recipe, override, validate
from reptk.core.console import Logger
from reptk.training.loop import train

TINY = {
    "name": "tiny",
    "data": {"name": "generated", "train": 48, "bank": 40, "query": 20, "classes": 4, "size": 16},
    "views": {"name": "simclr_small", "size": 16},
    "encoder": {"backbone": "test_resnet"},
    "method": {"name": "contrastive", "positives": "instance"},
    "loss": {"name": "tcl", "k1": 10.0},
    "optim": {"name": "adamw", "lr": 1e-3},
    "train": {"epochs": 2, "batch_size": 16, "log_every_steps": 1},
    "eval": {"knn": {"k": [1, 5], "every_epochs": 1}},
}
"""Six steps: two epochs of three."""


def tiny(*overrides: str, **tables: dict | None) -> Recipe:
    """The recipe with `key=value` overrides and other tables; None leaves a table out."""
    table = {key: value for key, value in (TINY | tables).items() if value is not None}
    return validate(override(table, overrides))


def run_silently(recipe: Recipe, folder: Path, **options: bool) -> dict[str, float]:
    """Train without printing; metrics are logged."""
    return train(recipe, folder, logger=Logger(prints=False, writes=True), **options)


def exported_weights(folder: Path) -> dict[str, torch.Tensor]:
    return model_state(folder / "model")


def are_equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    """Whether two state dicts are bit for bit the same."""
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def metric_rows(folder: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def logged_losses(folder: Path) -> list[float]:
    return [row["loss"] for row in metric_rows(folder) if "loss" in row]


def result_metrics(folder: Path) -> dict[str, dict[str, float]]:
    """The metrics of results.json by row: raw pixels, untrained, trained."""
    return json.loads((folder / "results.json").read_text())["metrics"]
