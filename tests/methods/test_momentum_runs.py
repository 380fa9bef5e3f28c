"""Whole runs of methods with momentum encoders and predictors: resumption, two ranks, and what is exported."""

import json
import math
from pathlib import Path
from typing import NamedTuple

import pytest
import tomli_w
import torch

from method_runs import (
    WITHOUT_BATCHNORM,
    equal,
    exported_weights,
    interrupt_run,
    largest_difference,
    last_checkpoint,
    run,
    run_on_two_ranks,
    small,
)
from reptk import load
from reptk.config.toml import read

WITHOUT_NORMS = ["method.projector_norm=false", "method.predictor_norm=false"]


class Case(NamedTuple):
    """A recipe with overrides, those that leave BatchNorm out, and what checkpoints hold besides the encoder and the like."""

    recipe: str
    overrides: list[str]
    without_norms: list[str]
    holds: str


CASES = {
    "byol": Case("byol_photos", ["method.predictor_width=32"], ["method.predictor_norm=false"], "target.backbone"),
    # Neither queue is a multiple of the batch of 16, and the second is smaller.
    "moco with tcl": Case("moco_photos", ["method.queue_size=40", "loss.name=tcl"], [], "momentum_encoder.backbone"),
    "moco with supcon": Case("supcon_moco_photos", ["method.queue_size=12"], [], "queue.rows"),
    "moco_v3": Case(
        "moco_v3_photos", ["method.predictor_width=32"], WITHOUT_NORMS, "momentum_projector_norm.running_mean"
    ),
    "simsiam": Case("simsiam_photos", ["method.predictor_width=32"], WITHOUT_NORMS, "projector_norm.running_mean"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_an_interrupted_run_ends_in_the_same_state(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights, momentum copy and queue, bit for bit, with BatchNorm's running statistics; the trained encoder is exported."""
    case = CASES[name]
    recipe = small(case.recipe, "encoder.backbone=test_resnet", *case.overrides)
    run(recipe, tmp_path / "whole")
    interrupt_run(recipe, tmp_path / "interrupted", monkeypatch)
    run(load(tmp_path / "interrupted"), tmp_path / "interrupted", resume=True)
    whole, resumed = last_checkpoint(tmp_path / "whole"), last_checkpoint(tmp_path / "interrupted")
    assert any(key.startswith(case.holds) for key in whole)
    assert equal(whole, resumed)
    exported = exported_weights(tmp_path / "whole")
    assert equal(exported, exported_weights(tmp_path / "interrupted"))
    assert equal(
        exported, {key.removeprefix("encoder."): value for key, value in whole.items() if key.startswith("encoder.")}
    )


@pytest.mark.slow
def test_a_run_from_when_the_method_was_a_plugin_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = small("moco_photos", "encoder.backbone=test_resnet", "method.queue_size=12")
    interrupt_run(recipe, tmp_path / "run", monkeypatch)
    file = tmp_path / "run" / "recipe.toml"
    file.write_text(tomli_w.dumps(read(file) | {"plugins": ["reptk.plugins.moco"]}))
    resumed = load(tmp_path / "run")
    assert resumed.plugins == ()
    assert run(resumed, tmp_path / "run", resume=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_two_ranks_train_what_one_does(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    # SGD, since AdamW divides by the size of the gradient and so turns rounding errors of small gradients into whole steps.
    sgd = ["optim.name=sgd", "optim.lr=0.05"]
    recipe = small(case.recipe, *WITHOUT_BATCHNORM, *case.overrides, *case.without_norms, *sgd, "train.epochs=1")
    run(recipe, tmp_path / "one")
    run_on_two_ranks(recipe, tmp_path / "two")
    one, two = last_checkpoint(tmp_path / "one"), last_checkpoint(tmp_path / "two")
    assert largest_difference(one, two) < 1e-5
    for key in one:
        if key.endswith("ids"):
            assert torch.equal(one[key], two[key])


@pytest.mark.slow
def test_what_schedules_give_is_logged(tmp_path: Path) -> None:
    run(small("moco_v3_photos", "encoder.backbone=test_resnet", "method.predictor_width=32"), tmp_path / "run")
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if "loss" in row]
    assert [steps[0]["momentum"], steps[-1]["momentum"]] == pytest.approx([0.97, 1.0])
    assert all(math.isfinite(row["contrastive_loss"]) for row in steps)
