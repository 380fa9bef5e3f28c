"""docs/slurm.md on a cluster of this machine: its batch script trains, is stopped by SIGUSR1, requeued, and goes on."""

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from rank_processes import run_recipe_on_ranks

import reptk
from embedding_inputs import draw_image
from reptk.core import rng
from reptk.embeddings import Embeddings
from reptk.training.run_status import read_status
from slurm_cluster import command, missing_program, slurm_cluster, wait_for_state
from tiny_runs import are_equal, exported_weights, logged_losses

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(
        missing_program() is not None, reason=f"SLURM is not installed: there is no {missing_program()}"
    ),
]

DOCUMENT = Path(__file__).parents[2] / "docs" / "slurm.md"

SLOW_LOSS = """
import os, pathlib, time
import torch
from reptk import LOSSES
from reptk.losses.simclr import SimCLR

@LOSSES.register("slow")
class Slow(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.simclr = SimCLR()

    def forward(self, z, ids):
        if pathlib.Path("be_slow").exists():
            time.sleep(0.2)
        return self.simclr(z, ids)
"""

RECIPE = """
name = "tiny"
data = {name = "generated", train = 64, bank = 20, query = 10, classes = 4, size = 16}
views = {name = "simclr_small", size = 16}
encoder = {backbone = "test_vit"}
method = {name = "contrastive"}
loss = {name = "slow"}
optim = {name = "adamw", lr = 1e-3}
train = {epochs = 10, batch_size = 16, log_every_steps = 1, baselines = false, report = false, device = "cpu"}
eval = {knn = {k = [1]}}
"""
"""Steps 1 to 40, four to an epoch."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[dict[str, str]]:
    # Short, since the names of sockets are limited.
    with tempfile.TemporaryDirectory(prefix="slurm-") as folder, slurm_cluster(Path(folder)) as environment:
        python = Path(sys.executable).parent
        yield {**environment, "OMP_NUM_THREADS": "1", "PATH": f"{python}{os.pathsep}{environment['PATH']}"}


def batch_script(num_tasks: int, program: str | None = None) -> str:
    """Return the script of the document for a machine without GPUs, or the same with another command."""
    [script] = re.findall(r"```bash\n(#!/bin/bash\n.*?)```", DOCUMENT.read_text(), re.DOTALL)
    for line in ("--nodes=2", "--gpus-per-node=8", "--cpus-per-task=8"):
        assert f"#SBATCH {line}\n" in script
        script = script.replace(f"#SBATCH {line}\n", "")
    script = script.replace("--ntasks-per-node=8", f"--ntasks-per-node={num_tasks}")
    if program is not None:
        assert 'python -m reptk.recipe "$@"' in script
        script = script.replace('python -m reptk.recipe "$@"', program)
    return script


def submit(script: str, arguments: list[str], folder: Path, environment: dict[str, str]) -> str:
    """Submit a script and return the number of the job."""
    (folder / "job.sbatch").write_text(script)
    result = subprocess.run(
        ["sbatch", "--parsable", "--output=job.log", "job.sbatch", *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return result.stdout.strip()


def wait_until_it_trains(folder: Path, steps: int, log: Path) -> None:
    deadline = time.monotonic() + 600
    path = folder / "metrics.jsonl"
    while not path.is_file() or path.read_text().count('"lr"') < steps:
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)


def test_a_run_that_is_stopped_and_requeued_ends_as_if_nothing_had_happened(
    cluster: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "slow.py").write_text(SLOW_LOSS)
    (tmp_path / "tiny.toml").write_text(RECIPE)
    (tmp_path / "be_slow").touch()
    arguments = ["tiny.toml", "--plugin", "slow.py"]
    job = submit(batch_script(2), [*arguments, "--out", "run"], tmp_path, cluster)
    wait_until_it_trains(tmp_path / "run", 5, tmp_path / "job.log")
    command(["scancel", "--signal=USR1", job], cluster)
    (tmp_path / "be_slow").unlink()
    state = wait_for_state(job, ("COMPLETED", "FAILED", "TIMEOUT"), cluster)
    log = (tmp_path / "job.log").read_text()
    assert "JobState=COMPLETED" in state, log
    assert "Restarts=1" in state
    assert "stopped by SIGUSR1; step" in log
    assert "Exited with exit code 143" in log
    assert read_status(tmp_path / "run")["status"] == "finished"
    run_recipe_on_ranks([*arguments, "--out", "undisturbed"], 2, tmp_path)
    assert logged_losses(tmp_path / "run") == logged_losses(tmp_path / "undisturbed")
    assert are_equal(exported_weights(tmp_path / "run"), exported_weights(tmp_path / "undisturbed"))


def test_two_tasks_embed_into_one_folder(cluster: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for number in range(6):
        draw_image(number).save(tmp_path / "photos" / f"{number}.png")
    with rng.seeded(7, "weights"):
        reptk.Encoder("test_vit", size=32).save(tmp_path / "run" / "model")
    program = "python -m reptk embed run --data photos --out emb --images-per-part 1 --device cpu"
    job = submit(batch_script(2, program), [], tmp_path, cluster)
    state = wait_for_state(job, ("COMPLETED", "FAILED"), cluster)
    log = (tmp_path / "job.log").read_text()
    assert "JobState=COMPLETED" in state, log
    assert log.count("6 parts to write") == 1  # rank 0 alone prints
    expected = reptk.embed(tmp_path / "run", tmp_path / "photos", batch_size=1)
    actual = Embeddings.load(tmp_path / "emb")
    assert list(actual.ids) == list(expected.ids)
    assert torch.equal(actual.vectors[:], expected.vectors)
