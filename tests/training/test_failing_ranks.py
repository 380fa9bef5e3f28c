"""Runs under torchrun: ranks that fail, die, hang or are stopped, and a launcher that is killed."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rank_processes import run_recipe_on_ranks

from reptk.training.run_status import read_status
from tiny_runs import are_equal, exported_weights, metric_rows

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

FAULTY_LOSS = '''
import os, signal, time
import torch
from reptk import LOSSES
from reptk.losses.simclr import SimCLR

@LOSSES.register("faulty")
class Faulty(torch.nn.Module):
    """Rank 1 does something in its seventh step, or every step takes a twentieth of a second."""

    def __init__(self, what: str = "nothing"):
        super().__init__()
        self.what = what
        self.calls = 0
        self.simclr = SimCLR()

    def forward(self, z, ids):
        self.calls += 1
        if self.what == "slow":
            time.sleep(0.05)
        if self.calls == 7 and os.environ.get("RANK") == "1":
            if self.what == "raise":
                raise ValueError("a bug on this rank")
            if self.what == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.what == "hang":
                time.sleep(1000)
        return self.simclr(z, ids)
'''

RECIPE = """
data = {name = "generated", train = 64, bank = 20, query = 10, classes = 4, size = 16}
views = {name = "simclr_small", size = 16}
encoder = {backbone = "test_vit"}
method = {name = "contrastive"}
loss = {name = "faulty"}
optim = {name = "adamw", lr = 1e-3}
train = {epochs = 15, batch_size = 16, log_every_steps = 1, baselines = false, report = false}
eval = {knn = {k = [1]}}
"""
"""Steps 1 to 60, four to an epoch."""


@pytest.fixture
def working_folder(tmp_path: Path) -> Path:
    (tmp_path / "faulty.py").write_text(FAULTY_LOSS)
    (tmp_path / "ranks.toml").write_text(RECIPE)
    return tmp_path


@pytest.fixture
def start(working_folder: Path) -> Iterator[Callable[..., subprocess.Popen]]:
    """Starts the recipe under torchrun; what is still there after the test is killed."""
    processes = []

    def run(*overrides: str) -> subprocess.Popen:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
        command = ["-m", "reptk.recipe", "ranks.toml", "--plugin", "faulty.py", "--out", "run", *overrides]
        process = subprocess.Popen(
            [*launcher, *command],
            cwd=working_folder,
            # A rank that hangs in the system does not end by SIGTERM; by default torchrun waits 30 s for it.
            env=os.environ | {"OMP_NUM_THREADS": "1", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "12"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        processes.append(process)
        return process

    yield run
    for process in processes:
        for pid in [*children_of(process.pid), process.pid]:
            if is_alive(pid):
                os.kill(pid, signal.SIGKILL)
        if process.returncode is None:
            process.communicate()


def finish(process: subprocess.Popen) -> tuple[int, str]:
    """Wait for the launcher, and return its exit code and all output."""
    output, _ = process.communicate()
    return process.returncode, output


def children_of(pid: int) -> list[int]:
    path = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in path.read_text().split()] if path.exists() else []


def is_alive(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until(is_true: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def has_trained(folder: Path, steps: int) -> bool:
    path = folder / "metrics.jsonl"
    return path.is_file() and path.read_text().count('"lr"') >= steps


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("raise", "ValueError: a bug on this rank"),
        ("kill", "ended without a message: it was killed, e.g. for want of memory, or it hangs"),
        ("hang", "ended without a message: it was killed, e.g. for want of memory, or it hangs"),
    ],
)
def test_the_rank_that_fails_is_named(what: str, reason: str, start: Callable, working_folder: Path) -> None:
    exit_code, output = finish(start(f"loss.what={what}", "train.rank_timeout_seconds=5"))
    assert exit_code != 0
    status = read_status(working_folder / "run")
    assert (status["status"], status["rank"], status["reason"]) == ("failed", 1, reason)
    assert f"error: rank 1: {reason}" in output
    assert status["step"] == 4


def test_stopped_and_killed_runs_end_in_the_weights_of_an_undisturbed_one(
    start: Callable, working_folder: Path
) -> None:
    """SIGTERM to the launcher saves the step; SIGKILL to it leaves no rank that trains on."""
    run = working_folder / "run"
    plugin, reference = working_folder / "faulty.py", working_folder / "reference"
    command = [str(working_folder / "ranks.toml"), "--plugin", str(plugin), "--out", str(reference)]
    run_recipe_on_ranks(command, 2, working_folder)
    # The run must not end before the signal arrives.
    slow = "loss.what=slow"
    for number, signal_number in ((5, signal.SIGTERM), (20, signal.SIGKILL)):
        process = start(slow)
        wait_until(lambda steps=number: has_trained(run, steps))
        ranks = children_of(process.pid)
        assert len(ranks) == 2
        process.send_signal(signal_number)
        finish(process)
        wait_until(lambda pids=ranks: not any(map(is_alive, pids)), seconds=60)
        status = read_status(run)
        assert status["status"] == "preempted", status
        assert status["signal"] == "SIGTERM"
        assert status["step"] == max(row["step"] for row in metric_rows(run))
    exit_code, output = finish(start(slow))
    assert f"resumed after step {status['step']}" in output
    assert exit_code == 0
    assert are_equal(exported_weights(run), exported_weights(reference))
    losses = [[row["loss"] for row in metric_rows(folder) if "loss" in row] for folder in (run, reference)]
    assert losses[0] == losses[1]
    assert not (run / ".ranks").exists()
