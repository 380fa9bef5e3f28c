"""Whole runs of DINO and SwAV: resumption, two ranks, the encoder that is exported, and the line about a collapse."""

import json
from pathlib import Path
from typing import NamedTuple

import pytest
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
from reptk.recipe import main

MULTI_CROP = ["views.name=multi_crop", "views.size=32", "views.small_count=2", "views.small_size=16"]


class Case(NamedTuple):
    """A recipe with overrides, what its checkpoints hold besides the trained encoder, and the name of that encoder."""

    recipe: str
    overrides: list[str]
    holds: tuple[str, ...]
    trained: str


CASES = {
    "dino": Case("dino_photos", [], ("center", "encoder.backbone", "teacher_prototypes.weight"), "student"),
    "swav": Case(
        "swav_photos", ["method.queue_size=40", "method.queue_start_epochs=1"], ("queue.rows", "prototypes"), "encoder"
    ),
}
SMALL_HEAD = ["encoder.head_width=32", "encoder.head_out=16", "method.num_prototypes=24"]


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_an_interrupted_run_ends_in_the_same_state(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit, with multi-crop and BatchNorm. The teacher of DINO is exported, the trained encoder of SwAV."""
    case = CASES[name]
    recipe = small(case.recipe, "encoder.backbone=test_resnet", *MULTI_CROP, *SMALL_HEAD, *case.overrides)
    run(recipe, tmp_path / "whole")
    interrupt_run(recipe, tmp_path / "interrupted", monkeypatch)
    run(load(tmp_path / "interrupted"), tmp_path / "interrupted", resume=True)
    whole, resumed = last_checkpoint(tmp_path / "whole"), last_checkpoint(tmp_path / "interrupted")
    for held in case.holds:
        assert any(key.startswith(held) for key in whole)
    assert equal(whole, resumed)
    exported = exported_weights(tmp_path / "whole")
    assert equal(exported, exported_weights(tmp_path / "interrupted"))
    assert equal(exported, part_of(whole, "encoder"))
    if case.trained != "encoder":
        assert not equal(exported, part_of(whole, case.trained))


def part_of(state: dict[str, torch.Tensor], name: str) -> dict[str, torch.Tensor]:
    """The state dict of a module of the method."""
    return {key.removeprefix(f"{name}."): value for key, value in state.items() if key.startswith(f"{name}.")}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_two_ranks_train_what_one_does(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    # SGD, since AdamW divides by the size of the gradient and so turns rounding errors of small gradients into whole steps.
    options = [*WITHOUT_BATCHNORM, *MULTI_CROP, *SMALL_HEAD, "optim.name=sgd", "optim.lr=0.05"]
    recipe = small(case.recipe, *options, *case.overrides)
    run(recipe, tmp_path / "one")
    run_on_two_ranks(recipe, tmp_path / "two")
    assert largest_difference(last_checkpoint(tmp_path / "one"), last_checkpoint(tmp_path / "two")) < 1e-5


@pytest.mark.slow
def test_a_collapse_of_the_prototypes_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """At a high temperature, the teacher assigns each image to all prototypes alike. What is printed, logged and recorded."""
    recipe = small("dino_photos", "encoder.backbone=test_resnet", *SMALL_HEAD, "method.teacher_temperature=100")
    recipe_file = tmp_path / "collapse.toml"
    recipe_file.write_text(recipe.dump())
    assert main([str(recipe_file), "--out", str(tmp_path / "run")]) == 0
    printed = capsys.readouterr().out
    assert "collapse of the prototypes: each image is assigned to 24 of them in effect, and all images to 24" in printed
    assert "dead temperature" not in printed
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["training"]["warnings"]["prototypes"] == [1, 2]
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    logged = [row for row in rows if "assignment_entropy" in row]
    assert len(logged) == 6
    assert all(row["mean_assignment_entropy"] == pytest.approx(3.178, abs=1e-2) for row in logged)


def test_check_measures_the_memory_of_the_encoder_that_is_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """The teacher, which is evaluated, stores nothing for a backward pass."""
    lines = []
    for name in ("dino_photos", "simclr_photos"):
        overrides = ["encoder.head_layers=2", "encoder.head_width=32", "encoder.head_out=16", "encoder.head_norm=false"]
        recipe_file = tmp_path / f"{name}.toml"
        recipe_file.write_text(small(name, "encoder.backbone=test_vit", *overrides).dump())
        assert main([str(recipe_file), "--check"]) == 0
        lines.append(next(line for line in capsys.readouterr().out.splitlines() if "for the backward pass" in line))
    assert lines[0].partition(" for the")[0] == lines[1].partition(" for the")[0]
