"""Short runs of methods, in this process or on two ranks."""

from pathlib import Path

import pytest
import torch
from rank_processes import run_recipe_on_ranks
from saved_models import model_state

from reptk.config import Recipe, load
from reptk.core.console import Logger
from reptk.training import loop
from reptk.training.checkpoint import load_newest
from reptk.training.loop import train

SMALL = [
    "data.name=generated",
    "data.size=16",
    "data.train=48",
    "data.bank=40",
    "data.query=20",
    "views.size=16",
    "train.epochs=2",
    "train.batch_size=16",
    "train.log_every_steps=1",
    "train.baselines=false",
    "train.report=false",
    "eval.knn.k=[1]",
    "optim.warmup_epochs=0",
]
"""Overrides that make a shipped recipe take a second or two."""

WITHOUT_BATCHNORM = ["encoder.backbone=test_vit", "encoder.head_norm=false"]
"""BatchNorm normalizes over the images of a rank, so that two ranks differ from one."""


def small(name: str, *overrides: str) -> Recipe:
    return load(name, [*SMALL, *overrides])


def run(recipe: Recipe, folder: Path, **options: bool) -> dict[str, float]:
    return train(recipe, folder, logger=Logger(prints=False, writes=True), **options)


def interrupt_run(recipe: Recipe, folder: Path, monkeypatch: pytest.MonkeyPatch, *, step: int = 5) -> None:
    """Start a run, and interrupt it in this step, counted from 1. With `SMALL`, the fifth is in the second epoch."""
    real, calls = loop.train_step, []

    def step_or_interrupt(*arguments: object) -> object:
        calls.append(1)
        if len(calls) == step:
            raise KeyboardInterrupt
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", step_or_interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(recipe, folder)


def run_on_two_ranks(recipe: Recipe, folder: Path) -> None:
    """Run the recipe in two processes, as torchrun does."""
    recipe_file = folder.with_suffix(".toml")
    recipe_file.write_text(recipe.dump())
    run_recipe_on_ranks([str(recipe_file), "--out", str(folder)], 2, folder.parent)


def exported_weights(folder: Path) -> dict[str, torch.Tensor]:
    return model_state(folder / "model")


def last_checkpoint(folder: Path) -> dict[str, torch.Tensor]:
    """The method's state of the last checkpoint."""
    checkpoint = load_newest(folder / "checkpoints")
    assert checkpoint is not None
    return checkpoint.state["method"]


def equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def largest_difference(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    assert first.keys() == second.keys()
    return max((first[name].float() - second[name].float()).abs().max().item() for name in first)
