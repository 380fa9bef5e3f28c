"""A step that is not finite: the run stops at it, or goes back to the last checkpoint and leaves it out."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from reptk import LOSSES
from reptk.core.errors import NonFiniteStep
from reptk.core.stop_signals import Stopped
from reptk.losses import SimCLR
from reptk.training import loop, restore_run
from reptk.training.checkpoint import load_newest
from reptk.training.run_status import read_status
from reptk.training.state import RunState
from tiny_runs import are_equal, exported_weights, metric_rows, run_silently, tiny

pytestmark = pytest.mark.usefixtures("restored_registries")


@pytest.fixture(autouse=True)
def nan_at() -> list[int]:
    """Numbers of the steps, from 1, whose loss is NaN; the loss "brittle" is registered."""
    steps: list[int] = []

    @LOSSES.register("brittle")
    class Brittle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.simclr = SimCLR()

        def forward(self, z: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
            loss = self.simclr(z, ids)
            return loss * torch.nan if NUMBER[0] in steps else loss

    return steps


NUMBER = [0]
"""Number of the step that is computed, from 1."""


@pytest.fixture(autouse=True)
def numbered_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    train_step = loop.train_step

    def count(parts: Any, model: Any, batch: Any, step: Any) -> Any:
        NUMBER[0] = step.number + 1
        return train_step(parts, model, batch, step)

    monkeypatch.setattr(loop, "train_step", count)


def brittle(*overrides: str) -> Any:
    return tiny(*overrides, loss={"name": "brittle"})


def test_a_run_stops_at_the_step_and_says_where_to_go_on(nan_at: list[int], tmp_path: Path) -> None:
    nan_at.append(5)
    with pytest.raises(NonFiniteStep) as error:
        run_silently(brittle(), tmp_path / "run")
    assert str(error.value).startswith("the loss is nan at step 5 (epoch 2, optim.lr 0.001)")
    assert str(error.value).endswith(
        "The last checkpoint is that of step 3; train.max_omitted_steps=1 would go back to it and leave this step out"
    )
    assert read_status(tmp_path / "run")["step"] == 3
    assert load_newest(tmp_path / "run" / "checkpoints").manifest["step"] == 3


def test_a_step_is_left_out(nan_at: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of it remains: not in the weights, the optimizer, the metrics."""
    nan_at.append(5)
    recipe = brittle("train.max_omitted_steps=1")
    run_silently(recipe, tmp_path / "run")
    assert [row["step"] for row in metric_rows(tmp_path / "run") if "loss" in row] == [1, 2, 3, 4, 6]
    assert load_newest(tmp_path / "run" / "checkpoints").state["omitted_steps"] == [4]
    # As if the step had never been tried: a run that leaves it out from its beginning.
    nan_at.clear()
    with monkeypatch.context() as patch:
        patch.setattr(restore_run, "RunState", lambda: RunState(omitted_steps=[4]))
        run_silently(brittle("train.max_omitted_steps=1"), tmp_path / "other")
    assert are_equal(exported_weights(tmp_path / "run"), exported_weights(tmp_path / "other"))


def test_no_more_steps_are_left_out_than_permitted(nan_at: list[int], tmp_path: Path) -> None:
    nan_at += [2, 5]
    with pytest.raises(NonFiniteStep, match=r"at step 5 .*The last checkpoint is that of step 3$"):
        run_silently(brittle("train.max_omitted_steps=1"), tmp_path / "one")
    run_silently(brittle("train.max_omitted_steps=2"), tmp_path / "two")
    assert load_newest(tmp_path / "two" / "checkpoints").state["omitted_steps"] == [1, 4]


def test_a_run_that_left_a_step_out_goes_on_without_it(
    nan_at: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nan_at.append(2)
    recipe = brittle("train.max_omitted_steps=1")
    run_silently(recipe, tmp_path / "whole")
    train_step = loop.train_step

    def stop(parts: Any, model: Any, batch: Any, step: Any) -> Any:
        if step.number == 4:
            raise Stopped(15)
        return train_step(parts, model, batch, step)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", stop)
        with pytest.raises(Stopped):
            run_silently(recipe, tmp_path / "stopped")
    run_silently(recipe, tmp_path / "stopped")
    assert are_equal(exported_weights(tmp_path / "whole"), exported_weights(tmp_path / "stopped"))
