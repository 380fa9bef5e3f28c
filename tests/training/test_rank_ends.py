"""How the ranks of a run ended, as files of its folder tell."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from reptk.training.rank_ends import FAILED, STOPPED, RankEnds, first_failure

SILENT = "ended without a message: it was killed, e.g. for want of memory, or it hangs"

WAITING_RANK = """
import sys, time
from pathlib import Path
from reptk.training.rank_ends import RankEnds

RankEnds(Path(sys.argv[1]), 1, 2).begin()
print("waits", flush=True)
time.sleep(1000)
"""


@pytest.fixture
def waiting_rank(tmp_path: Path) -> Iterator[subprocess.Popen]:
    """The process of rank 1, which has not ended."""
    process = subprocess.Popen([sys.executable, "-c", WAITING_RANK, tmp_path], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "waits\n"
    yield process
    process.kill()
    process.communicate()


def test_a_rank_that_waits_for_a_stopped_one_has_not_failed(tmp_path: Path, waiting_rank: subprocess.Popen) -> None:
    """A rank in a collective handles no signal until the other rank has ended."""
    ends = RankEnds(tmp_path, 0, 2)
    ends.begin()
    assert ends.running() == {0, 1}
    ends.record(STOPPED, "SIGTERM")
    assert ends.running() == {1}
    assert first_failure(ends.read(), 2, ends.running()) is None

    waiting_rank.kill()
    while ends.running():  # until the signal has arrived; the process remains a zombie
        time.sleep(0.01)
    assert first_failure(ends.read(), 2, ends.running()) == (1, SILENT)


def test_a_rank_that_hangs_is_named(tmp_path: Path, waiting_rank: subprocess.Popen) -> None:
    ends = RankEnds(tmp_path, 0, 2)
    ends.record("lost", "a collective timed out")
    assert first_failure(ends.read(), 2, ends.running()) == (1, SILENT)


def test_a_rank_that_failed_is_named_although_another_was_stopped(tmp_path: Path) -> None:
    ends = RankEnds(tmp_path, 0, 2)
    ends.record(STOPPED, "SIGTERM")
    RankEnds(tmp_path, 1, 2).record(FAILED, "ValueError: a bug")
    assert first_failure(ends.read(), 2, ends.running()) == (1, "ValueError: a bug")


@pytest.mark.parametrize("pid", [0, -1, "1", None])
def test_a_file_that_names_no_process_names_no_rank_that_runs(pid: object, tmp_path: Path) -> None:
    ends = RankEnds(tmp_path, 0, 1)
    ends.record("running", "")
    (file,) = (tmp_path / ".ranks").iterdir()
    content = json.loads(file.read_text()) | {"pid": pid}
    file.write_text(json.dumps(content))
    assert ends.running() == set()
