"""Checkpoints of every format that a release has written can be continued.

A new format needs a new sample: PYTHONPATH=tests/training python tests/training/test_checkpoint_formats.py EMPTY_FOLDER
"""

import gzip
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from reptk.core.console import Logger
from reptk.training.checkpoint import FORMAT, load_newest, save
from reptk.training.loop import train
from reptk.training.run_status import read_status
from tiny_runs import exported_weights, metric_rows, run_silently, tiny

SAMPLES = Path(__file__).parent / "checkpoint_formats"
STEP = 3
"""After which the samples were saved: the end of the first of two epochs, before its evaluation."""


def unpack(sample: Path, checkpoints: Path) -> None:
    folder = checkpoints / f"step_{STEP:08d}"
    folder.mkdir(parents=True)
    shutil.copy(sample / "manifest.json", folder)
    with gzip.open(sample / "state.pt.gz") as packed, (folder / "state.pt").open("wb") as file:
        shutil.copyfileobj(packed, file)


def test_there_is_a_sample_of_every_format() -> None:
    assert sorted(path.name for path in SAMPLES.iterdir()) == [str(number) for number in range(1, FORMAT + 1)]


@pytest.mark.parametrize("number", range(1, FORMAT + 1))
def test_a_checkpoint_of_each_format_is_continued(number: int, tmp_path: Path) -> None:
    unpack(SAMPLES / str(number), tmp_path / "checkpoints")
    checkpoint = load_newest(tmp_path / "checkpoints")
    assert checkpoint is not None
    assert checkpoint.damaged == []
    assert checkpoint.manifest["format"] == number
    assert checkpoint.state["step"] == STEP
    # A run of the recipe that has just begun, in whose place the sample is.
    run = tmp_path / "run"
    run_silently(tiny("train.epochs=1"), run)
    shutil.rmtree(run / "checkpoints")
    unpack(SAMPLES / str(number), run / "checkpoints")
    run_silently(tiny(), run)
    assert read_status(run)["status"] == "finished"
    assert [row["step"] for row in metric_rows(run) if "loss" in row][-3:] == [4, 5, 6]
    assert all(value.isfinite().all() for value in exported_weights(run).values())


def patterned(value: Any) -> Any:
    """The same state with weights that follow a pattern, so that the sample is small when it is compressed."""
    if isinstance(value, torch.Tensor) and value.is_floating_point() and value.numel() > 1:
        pattern = (torch.arange(value.numel()) % 7 + 1) / 64
        return pattern.reshape(value.shape).to(value.dtype)
    if isinstance(value, dict):
        return {key: patterned(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(patterned, value))
    return value


def write_sample(folder: Path) -> None:
    """Train one epoch, and write its checkpoint with patterned weights into `folder`."""
    run = folder / "run"
    train(tiny(), run, logger=Logger(prints=False, writes=True))
    source = run / "checkpoints" / f"step_{STEP:08d}"
    state = torch.load(source / "state.pt", weights_only=True)
    state |= {"method": patterned(state["method"]), "optimizer": patterned(state["optimizer"])}
    details = {"ranks": json.loads((source / "manifest.json").read_text())["ranks"]}
    saved = save(folder / "checkpoints", STEP, state, details=details)
    sample = SAMPLES / str(FORMAT)
    sample.mkdir(parents=True)
    shutil.copy(saved / "manifest.json", sample)
    (sample / "state.pt.gz").write_bytes(gzip.compress((saved / "state.pt").read_bytes(), mtime=0))


if __name__ == "__main__":
    write_sample(Path(sys.argv[1]))
