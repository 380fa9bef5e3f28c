"""benchmarks/chaos.py in small: disturbed runs end as undisturbed ones, and what is broken on purpose is noticed.

It runs in a process of its own, which forks: this one has threads.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "chaos.py"

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def chaos(folder: Path, arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(SCRIPT), "--folder", str(folder), *arguments.split()]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=900, env=environment, check=False)


def test_killed_runs_end_as_undisturbed_ones(tmp_path: Path) -> None:
    process = chaos(tmp_path, "--only kills training --kills 2 --executed 0 --stride 41 --seed 1")
    assert process.returncode == 0, process.stdout + process.stderr
    assert "| SIGKILL at a random moment, one process | 2 | 0 |" in process.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_faults_in_resuming_are_noticed(tmp_path: Path) -> None:
    process = chaos(tmp_path, "--self-test --faults 6")  # all of them take three minutes
    assert process.returncode == 0, process.stdout + process.stderr
    assert process.stdout.count("\nquiet ") == 2
    assert process.stdout.count("\nnoticed ") == 6


@pytest.mark.slow
def test_starved_and_changed_runs_killed_commands_and_ranks_end_as_undisturbed_ones(tmp_path: Path) -> None:
    """In one start: what is imported and the reference runs are needed once."""
    rows = "commands disk starts workers data ranks world"
    process = chaos(tmp_path, f"--only {rows} --kills 2 --torchruns 0 --executed 0 --pairs 1 --stride 16")
    assert process.returncode == 0, process.stdout + process.stderr


def test_an_unknown_row_is_refused() -> None:
    process = subprocess.run([sys.executable, str(SCRIPT), "--only", "nothing"], capture_output=True, check=False)
    assert process.returncode == 2
