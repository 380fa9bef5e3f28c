"""Recipes whose runs take a second, with what is hard to resume: momentum encoders, queues, BatchNorm, stochastic depth."""

from pathlib import Path
from typing import Any

import tomli_w
from PIL import Image

from reptk.config import override

SHARED: dict[str, Any] = {
    "data": {"name": "generated", "train": 48, "bank": 40, "query": 20, "classes": 4, "size": 16},
    "views": {"name": "simclr_small", "size": 16, "count": 2},
    "optim": {"name": "adamw", "lr": 1e-3},
    "train": {"epochs": 4, "batch_size": 16, "log_every_steps": 1, "device": "cpu"},
    "eval": {"knn": {"k": [1, 5], "every_epochs": 1}},
}
"""Twelve steps: four epochs of three."""

CONTRASTIVE = {
    "method": {"name": "contrastive", "positives": "instance"},
    "loss": {"name": "tcl", "k1": 10.0},
    # AdamW would turn the rounding of a gradient near zero into a whole step.
    "optim": {"name": "sgd", "lr": 0.05},
}

RECIPES: dict[str, dict[str, Any]] = {
    "byol_batchnorm": {
        "encoder": {"backbone": "test_resnet", "head_norm": True},
        "method": {"name": "byol", "momentum": 0.9, "predictor_width": 32},
    },
    "moco_stochastic_depth": {
        "encoder": {"backbone": "test_vit", "drop_path": 0.2},
        "method": {"name": "moco", "queue_size": 64, "momentum": 0.9},
        "loss": {"name": "simclr", "temperature": 0.2},
        "train": SHARED["train"] | {"workers": 2, "checkpoint_every_steps": 2},
    },
    "contrastive_batchnorm": {"encoder": {"backbone": "test_resnet"}, **CONTRASTIVE},
    "contrastive_vit": {"encoder": {"backbone": "test_vit"}, **CONTRASTIVE},
}


def write_recipe(name: str, folder: Path, *overrides: str, file: str | None = None) -> str:
    """Write a recipe into a folder, and return the name of its file there.

    Args:
        name: one of `RECIPES`.
        overrides: `key=value`.
        file: its name without the suffix, if other than that of the recipe.
    """
    stem = file or name
    table = {"name": stem, **SHARED, **RECIPES[name]}
    target = folder / f"{stem}.toml"
    target.write_text(tomli_w.dumps(override(table, list(overrides))))
    return target.name


def write_images(folder: Path, classes: int = 2, per_class: int = 12) -> None:
    """Write a folder of small PNG files with a folder for each class; the same ones in every call."""
    for label in range(classes):
        (folder / f"class{label}").mkdir(parents=True)
        for number in range(per_class):
            write_image(folder / f"class{label}" / f"{number:02d}.png", 40 * label + number)


def write_image(path: Path, number: int) -> None:
    """Write one image, which another number makes another one."""
    pixels = bytes((number * 37 + position * (number % 7 + 1)) % 256 for position in range(3 * 24 * 24))
    Image.frombytes("RGB", (24, 24), pixels).save(path)
