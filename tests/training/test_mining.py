"""Hard negatives: what is mined, that a stopped run goes on with the same batches, and that ranks mine the same."""

import os
import signal
from pathlib import Path

import pytest
import torch
from rank_processes import run_recipe_on_ranks

from reptk.core.stop_signals import Stopped
from reptk.training import loop
from reptk.training.checkpoint import load_newest
from reptk.training.mining import nearest_of_other_labels
from tiny_runs import are_equal, exported_weights, run_silently, tiny

MINED = (
    "encoder.backbone=test_vit",
    "method.positives=class",
    "train.epochs=3",
    "train.sampler.name=pk",
    "train.sampler.images_per_class=4",
    "train.sampler.hard_negatives=true",
    "train.batch_size=8",
    "train.baselines=false",
    "train.report=false",
    "eval.knn.every_epochs=0",
)
"""Three epochs of six steps, of two classes each."""


def test_neighbors_of_the_own_label_and_without_one_are_left_out() -> None:
    labels = torch.tensor([0, 0, 1, -1, 2, 1])
    rows = torch.tensor([[1, 3, 2, 4, 5], [1, 2, 4, 5, 3], [5, 3, 1, 0, 4]])
    nearest = nearest_of_other_labels(rows, labels, torch.tensor([0, -1, 1]), 2)
    assert nearest.tolist() == [[2, 4], [-1, -1], [1, 0]]
    assert nearest_of_other_labels(rows, labels, torch.tensor([0, -1, 1]), 7).shape == (3, 7)


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mined") / "run"
    run_silently(tiny(*MINED), folder)
    return folder


def test_mined_batches_are_others_than_random_ones(whole_run: Path, tmp_path: Path) -> None:
    run_silently(tiny(*MINED, "train.sampler.hard_negatives=false"), tmp_path / "random")
    assert not are_equal(exported_weights(whole_run), exported_weights(tmp_path / "random"))


@pytest.mark.parametrize("steps_before", [6, 9])
def test_a_stopped_run_goes_on_with_the_same_batches(
    steps_before: int, whole_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the end of an epoch, before it has mined, and in the middle of the one after."""
    train_step, calls = loop.train_step, []

    def stopping_step(*arguments):
        calls.append(arguments)
        if len(calls) == steps_before:
            os.kill(os.getpid(), signal.SIGTERM)
        return train_step(*arguments)

    monkeypatch.setattr(loop, "train_step", stopping_step)
    with pytest.raises(Stopped):
        run_silently(tiny(*MINED), tmp_path / "run")
    state = load_newest(tmp_path / "run" / "checkpoints").state
    assert state["step"] == steps_before
    assert ("neighbors" in state["hard_negatives"]) == (steps_before > 6)
    run_silently(tiny(*MINED), tmp_path / "run")
    assert are_equal(exported_weights(whole_run), exported_weights(tmp_path / "run"))


@pytest.mark.slow
def test_two_ranks_mine_what_one_process_mines(tmp_path: Path) -> None:
    # Not AdamW, which turns rounding of small gradients into steps.
    recipe = tiny(*MINED, "train.epochs=2", "train.device=cpu", "optim.name=sgd", "optim.lr=0.01")
    run_silently(recipe, tmp_path / "one")
    recipe_file = tmp_path / "recipe.toml"
    recipe_file.write_text(recipe.dump())
    run_recipe_on_ranks([str(recipe_file), "--out", str(tmp_path / "two")], 2, tmp_path)
    states = [load_newest(tmp_path / name / "checkpoints").state for name in ("one", "two")]
    one, two = (state["hard_negatives"]["neighbors"] for state in states)
    # The weights differ by rounding, and so may the order of a few neighbors.
    assert (one == two).float().mean() > 0.95
    for name, value in states[0]["method"].items():
        torch.testing.assert_close(states[1]["method"][name], value, rtol=1e-3, atol=1e-5, msg=name)
