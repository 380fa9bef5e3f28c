"""Folders of finished runs without training, and a program that stands for the training process of a sweep."""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from reptk.config import Recipe, override, validate
from reptk.evaluate.predictions import Predictions

TINY = {
    "name": "tiny",
    "data": {"name": "generated", "train": 48, "bank": 40, "query": 20, "classes": 4, "size": 16},
    "views": {"name": "none", "size": 16},
    "encoder": {"backbone": "test_resnet"},
    "method": {"name": "contrastive", "positives": "class"},
    "loss": {"name": "supcon"},
    "optim": {"name": "adamw", "lr": 1e-3},
    "train": {"epochs": 2, "batch_size": 16, "baselines": False, "report": False, "device": "cpu"},
    "eval": {"knn": {"k": [1, 5]}},
}

TINY_TOML = """
data = {name = "generated", train = 48, bank = 40, query = 20, classes = 4, size = 16}
views = {name = "none", size = 16}
encoder = {backbone = "test_resnet"}
method = {name = "contrastive", positives = "class"}
loss = {name = "supcon"}
optim = {name = "adamw", lr = 1e-3}
train = {epochs = 2, batch_size = 16, baselines = false, report = false, device = "cpu"}
eval = {knn = {k = [1, 5]}}
"""
"""The same as a file, without its name."""

FAKE_PROCESS = """#!{python} -SE
import os, pathlib, shutil, sys, time
out = pathlib.Path(sys.argv[sys.argv.index("--out") + 1])
prepared = pathlib.Path(__file__).parent
with open(prepared / "started.txt", "a") as file:
    file.write(out.name + " " + os.environ.get("OMP_NUM_THREADS", "") + chr(10))
gpu = os.environ.get("CUDA_VISIBLE_DEVICES", "")
if gpu:
    with open(prepared / "gpus.txt", "a") as file:
        file.write(gpu + chr(10))
    try:
        (prepared / ("used_" + gpu)).touch(exist_ok=False)
    except FileExistsError:
        print("error: two runs at a time on " + gpu)
        sys.exit(4)
    time.sleep(0.3)
failure = prepared / (out.name + ".failure")
if failure.exists():
    print(failure.read_text())
    sys.exit(3)
shutil.copytree(prepared / out.name, out, dirs_exist_ok=True)
if gpu:
    (prepared / ("used_" + gpu)).unlink()
"""
"""Copies the run that was prepared under the name of the folder --out, or fails with a prepared message.

With a GPU to use, it takes some time and notes which one; it fails if another process uses it at that moment.
"""


def tiny(*overrides: str) -> Recipe:
    """The recipe with `key=value` overrides, as its run records it."""
    return validate({**override(TINY, overrides), "overrides": overrides})


def write_run(
    folder: Path,
    metrics: Mapping[str, float],
    recipe: Recipe,
    *,
    hits: Sequence[bool] | None = None,
    protocol: Mapping[str, Any] | None = None,
) -> Path:
    """Write what a finished run leaves of its recipe, results and predictions.

    Args:
        folder: the run's.
        metrics: of the trained encoder; each gets the interval +- 0.1.
        recipe: of the run.
        hits: which of the queries are predicted correctly; None writes no predictions.
        protocol: entries besides those of the recipe.
    """
    folder.mkdir(parents=True)
    (folder / "recipe.toml").write_text(recipe.dump())
    (folder / "status.json").write_text('{"status": "finished"}')
    results = {
        "schema": 1,
        "headline": next(iter(metrics)),
        "metrics": {"trained": dict(metrics)},
        "intervals": {"trained": {name: [value - 0.1, value + 0.1] for name, value in metrics.items()}},
        "protocol": {
            "recipe": recipe.name,
            "data": recipe.data,
            "images": {"train": 48, "bank": 40, "query": 20},
            "seed": recipe.seed,
            "train_seconds": 10.0 + recipe.seed,
            **(protocol or {}),
        },
    }
    (folder / "results.json").write_text(json.dumps(results))
    if hits is not None:
        _predictions(hits, next(iter(metrics))).save(folder)
    return folder


def _predictions(hits: Sequence[bool], vote: str) -> Predictions:
    count = len(hits)
    labels = torch.arange(count) % 4
    predicted = torch.where(torch.tensor(hits), labels, (labels + 1) % 4)
    return Predictions(
        row="trained",
        vote=vote,
        query_split="query",
        bank_split="bank",
        classes=("a", "b", "c", "d"),
        index=torch.arange(count),
        labels=labels,
        predicted=predicted,
        confidence=torch.ones(count),
        neighbors=torch.zeros(count, 1, dtype=torch.int64),
        similarities=torch.ones(count, 1),
        neighbor_labels=predicted[:, None],
        features=torch.ones(count, 2),
    )


def write_fake_process(prepared: Path) -> Path:
    """Write the program that copies prepared runs, and return its path."""
    path = prepared / "fake_python"
    path.write_text(FAKE_PROCESS.format(python=sys.executable))
    path.chmod(0o755)
    return path
