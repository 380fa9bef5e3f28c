"""Runs of VICReg, Barlow Twins and LeJEPA: two ranks, resumption, views of several sizes, and what is warned of."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rank_processes import run_recipe_on_ranks
from torch import Tensor

from method_runs import interrupt_run
from reptk.config import Recipe, load, override, validate
from reptk.core.console import Logger
from reptk.methods import Batch, Step
from reptk.training import epoch, loop
from reptk.training.build import build
from reptk.training.checkpoint import load_newest
from reptk.training.load_data import load_data

TINY = {
    "name": "tiny",
    "data": {"name": "generated", "train": 32, "bank": 20, "query": 10, "classes": 4, "size": 16},
    "views": {"name": "simclr_small", "size": 16},
    "encoder": {"backbone": "test_vit", "head_width": 32, "head_out": 24},
    # SGD, since AdamW divides by the size of the gradient and so turns rounding errors of small gradients into whole steps.
    "optim": {"name": "sgd", "lr": 0.01},
    "train": {"epochs": 2, "batch_size": 16, "log_every_steps": 1, "report": False},
    "eval": {"knn": {"k": [1], "every_epochs": 1}},
}
"""Four steps: two epochs of two."""

METHODS: dict[str, dict[str, Any]] = {
    "vicreg": {"name": "vicreg"},
    "barlow_twins": {"name": "barlow_twins"},
    "lejepa": {"name": "lejepa", "num_slices": 32},
}
every_method = pytest.mark.parametrize("name", METHODS)


def tiny(name: str, *overrides: str) -> Recipe:
    return validate(override({**TINY, "method": METHODS[name]}, overrides))


def run(recipe: Recipe, folder: Path, **options: bool) -> None:
    loop.train(recipe, folder, logger=Logger(prints=False, writes=True), **options)


def weights(folder: Path) -> dict[str, Tensor]:
    """The method's state of the last checkpoint."""
    checkpoint = load_newest(folder / "checkpoints")
    assert checkpoint is not None
    return checkpoint.state["method"]


def logged(folder: Path, name: str) -> list[float]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row[name] for row in rows if name in row]


@pytest.mark.slow
def test_two_ranks_train_what_one_does(tmp_path: Path) -> None:
    """With directions that are equal on both; the gradients of the other methods are compared in test_published_methods.py."""
    recipe = tiny("lejepa")
    run(recipe, tmp_path / "one")
    recipe_file = tmp_path / "tiny.toml"
    recipe_file.write_text(recipe.dump())
    run_recipe_on_ranks([str(recipe_file), "--out", str(tmp_path / "two")], 2, tmp_path)
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, rtol=0, atol=1e-5, msg=key)
    assert logged(tmp_path / "two", "loss") == pytest.approx(logged(tmp_path / "one", "loss"), rel=1e-4)


@pytest.mark.slow
@every_method
def test_an_interrupted_run_ends_in_the_same_bits(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = tiny(name, "encoder.backbone=test_resnet", "encoder.head_norm=true", "train.baselines=false")
    run(recipe, tmp_path / "whole")
    interrupt_run(recipe, tmp_path / "interrupted", monkeypatch, step=4)
    run(load(tmp_path / "interrupted"), tmp_path / "interrupted", resume=True)
    whole, resumed = weights(tmp_path / "whole"), weights(tmp_path / "interrupted")
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


def test_large_views_of_multi_crop_are_the_center_of_lejepa() -> None:
    views = {"name": "multi_crop", "count": 2, "size": 32, "small_count": 3, "small_size": 16}
    recipe = validate({**TINY, "method": METHODS["lejepa"], "views": views, "encoder": {"backbone": "test_resnet"}})
    method = build(recipe, load_data(recipe), torch.device("cpu")).method.eval()
    images = torch.randint(256, (6, 3, 24, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    outputs = method(Batch(images, torch.zeros(6, dtype=torch.long), torch.arange(6)), Step(0, 1, 5))
    large, small = method.views(images, 5)
    z = torch.stack([method.encoder(view) for view in (*large, *small)])
    expected = (z - z[:2].mean(0)).square().mean()
    torch.testing.assert_close(outputs["invariance"], expected)
    assert outputs["z"].shape == (5 * 6, z.shape[2])


@every_method
def test_a_low_loss_is_no_leak(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The warning compares the loss with that of random embeddings under a contrastive loss."""
    calls = []
    monkeypatch.setattr(epoch, "shortcut_message", lambda *arguments, **options: calls.append(arguments))
    run(tiny(name), tmp_path / "run")
    assert not calls
    assert logged(tmp_path / "run", "alignment"), "alignment is measured, and needs ids"
    table = {**TINY, "method": {"name": "contrastive"}, "loss": {"name": "simclr"}}
    run(validate(table), tmp_path / "contrastive")
    assert calls
