"""Checkpoints written in the background: from a copy, after every interval, and with a few failures at most."""

import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from reptk.core.errors import EnvironmentProblem, NumericalError
from reptk.training import checkpoint, checkpoint_writer
from reptk.training.checkpoint import load_newest
from reptk.training.checkpoint_writer import CheckpointInterval, CheckpointWriter

EVERY_EPOCH = CheckpointInterval()


class Written:
    """A writer, with what it reports."""

    def __init__(self, folder: Path, interval: CheckpointInterval = EVERY_EPOCH, keep: int = 2) -> None:
        self.lines: list[str] = []
        self.steps: list[int] = []
        self.writer = CheckpointWriter(
            folder, interval, keep=keep, details={}, warn=self.lines.append, written=self.steps.append
        )


def state(value: float = 1.0) -> dict[str, Any]:
    return {"method": {"weight": torch.full((4,), value)}, "optimizer": [{"lr": 0.1}, (torch.zeros(2),)]}


@pytest.mark.parametrize(
    ("interval", "steps"),
    [
        (CheckpointInterval(1, 0), [3, 6, 9, 12]),
        (CheckpointInterval(2, 0), [6, 12]),
        (CheckpointInterval(0, 5), [5, 10]),
        (CheckpointInterval(2, 4), [4, 6, 8, 12]),
        (CheckpointInterval(0, 0), []),
    ],
)
def test_checkpoints_are_due_after_epochs_or_steps(interval: CheckpointInterval, steps: list[int]) -> None:
    assert [step for step in range(1, 13) if interval.is_due(step, steps_per_epoch=3)] == steps


def test_checkpoints_are_due_after_minutes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(checkpoint_writer.time, "monotonic", lambda: now[0])
    never, often = Written(tmp_path).writer, Written(tmp_path, CheckpointInterval(minutes=2)).writer
    for seconds, is_due in ((0, False), (119, False), (120, True)):
        now[0] = 1000.0 + seconds
        assert often.is_time_due() is is_due
    assert not never.is_time_due()
    often.save(1, state())
    assert not often.is_time_due()
    often.close()


def test_a_checkpoint_holds_the_state_at_the_time_of_the_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training changes the weights while the thread writes."""
    may_write = threading.Event()
    save = checkpoint.save

    def wait_and_save(*args: Any, **kwargs: Any) -> Path:
        assert may_write.wait(60)
        return save(*args, **kwargs)

    monkeypatch.setattr(checkpoint, "save", wait_and_save)
    written = Written(tmp_path)
    live = state(1.0)
    written.writer.save(1, live)
    live["method"]["weight"].fill_(2.0)
    live["optimizer"][1][0].fill_(2.0)
    assert written.steps == []
    may_write.set()
    written.writer.wait()
    assert written.steps == [1]
    saved = load_newest(tmp_path).state
    assert saved["method"]["weight"].tolist() == [1.0] * 4
    assert saved["optimizer"][1][0].tolist() == [0.0, 0.0]
    written.writer.close()


def test_training_goes_on_without_a_few_checkpoints_and_stops_without_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = Written(tmp_path)
    written.writer.save(1, state())
    written.writer.wait()
    save = checkpoint.save

    def fail(*_: Any, **__: Any) -> Path:
        raise EnvironmentProblem("the disk is full")

    monkeypatch.setattr(checkpoint, "save", fail)
    for step in (2, 3, 4):
        written.writer.save(step, state())
    assert len(written.lines) == 2
    assert written.lines[0] == (
        f"cannot save a checkpoint in {tmp_path}: the disk is full. Training continues, and the checkpoint before it remains; "
        "the next one is tried as usual"
    )
    assert load_newest(tmp_path).manifest["step"] == 1
    with pytest.raises(EnvironmentProblem, match="the disk is full"):
        written.writer.save(5, state())
    # One that can be written begins the count anew.
    recovered = Written(tmp_path)
    for step, replacement in ((6, fail), (7, fail), (8, save), (9, fail), (10, fail)):
        monkeypatch.setattr(checkpoint, "save", replacement)
        recovered.writer.save(step, state())
        recovered.writer._collect()
    assert recovered.steps == [8]
    for writer in (written.writer, recovered.writer):
        writer.close()


def test_a_checkpoint_that_has_to_be_there_is_not_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> Path:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(checkpoint, "save", fail)
    written = Written(tmp_path)
    written.writer.save(1, state())
    with pytest.raises(EnvironmentProblem, match="Input/output error"):
        written.writer.wait()
    written.writer.close()


def test_weights_that_are_not_finite_are_not_written(tmp_path: Path) -> None:
    written = Written(tmp_path)
    written.writer.save(7, state(float("nan")))
    with pytest.raises(NumericalError, match="after step 7, NaN or infinity"):
        written.writer.wait()
    assert load_newest(tmp_path) is None
    written.writer.close()
