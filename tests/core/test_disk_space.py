"""A full disk is called that, whatever the library that noticed it raises."""

import errno
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from embedding_inputs import make_embeddings, needs_pyarrow
from killed_processes import run_with_full_disk
from reptk.core.disk_space import (
    check_free_space,
    disk_problem,
    explain_full_disk,
    explain_write_errors,
    is_disk_full,
)
from reptk.core.errors import DataError, EnvironmentProblem

WEIGHTS = {"weight": torch.zeros(100_000)}


def save_by_torch_to_a_file(path: Path) -> None:
    with path.open("wb") as file:
        torch.save(WEIGHTS, file)


def save_table(path: Path) -> None:
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table({"vector": torch.randn(50_000).numpy()}), path)


WRITERS = {
    "bytes": lambda path: path.write_bytes(bytes(100_000)),
    "torch": lambda path: torch.save(WEIGHTS, path),
    "torch to a file": save_by_torch_to_a_file,
    "safetensors": lambda path: save_file(WEIGHTS, path),
    "pyarrow": pytest.param(save_table, marks=needs_pyarrow),
}


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_every_librarys_error_is_recognized(write: Callable[[Path], object], tmp_path: Path) -> None:
    def write_and_explain() -> None:
        with explain_full_disk(tmp_path / "file", needed_bytes=2_000_000_000):
            write(tmp_path / "file")

    message = run_with_full_disk(write_and_explain, 10_000)
    number = r"\d+\.\d [kMGT]?B"
    pattern = (
        f"error: the disk of {tmp_path}/file is full [(].+[)]: 2.0 GB needed, {number} free. Free some space, or .*\n"
    )
    assert re.fullmatch(pattern, message), message


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_errors_that_say_that_a_disk_is_full(code: int) -> None:
    assert is_disk_full(OSError(code, "x"))
    wrapped = RuntimeError("something else")
    wrapped.__context__ = OSError(code, "x")
    assert is_disk_full(wrapped)


@pytest.mark.parametrize("error", [OSError(errno.EACCES, "x"), OSError("no number"), ValueError("full"), KeyError(28)])
def test_other_errors_pass(error: Exception, tmp_path: Path) -> None:
    assert not is_disk_full(error)
    with pytest.raises(type(error)), explain_full_disk(tmp_path):
        raise error


def test_an_error_that_has_its_message_passes(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No space"), explain_write_errors(tmp_path):
        raise DataError("No space left on device")


def test_other_errors_of_writing_name_the_path_and_the_advice(tmp_path: Path) -> None:
    with (
        pytest.raises(EnvironmentProblem, match=f"cannot write {tmp_path}: Permission denied. Choose another --png"),
        explain_write_errors(tmp_path, advice="Choose another --png"),
    ):
        raise PermissionError(errno.EACCES, "Permission denied")


def test_a_closed_pipe_is_not_explained(tmp_path: Path) -> None:
    with pytest.raises(BrokenPipeError), explain_write_errors(tmp_path):
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")


def test_the_path_is_the_one_that_the_user_knows() -> None:
    hidden = Path("/data/.e.index.0123abcd.writing/e.index/embeddings.safetensors")
    message = str(disk_problem(hidden, OSError(errno.ENOSPC, "x"), needed_bytes=500))
    assert message.startswith(
        "the disk of /data/e.index/embeddings.safetensors is full (No space left on device): 500 bytes"
    )


def test_missing_space_is_noticed_before(tmp_path: Path) -> None:
    check_free_space(tmp_path / "no" / "folder", 1, "Advice")
    with pytest.raises(EnvironmentProblem, match=r"folder needs 1000000000\.0 GB, and .* free on its disk\. Advice"):
        check_free_space(tmp_path / "no" / "folder", 10**18, "Advice")


def test_embeddings_name_what_they_need(tmp_path: Path) -> None:
    embeddings = make_embeddings([str(row) for row in range(100)])
    message = run_with_full_disk(lambda: embeddings.save(tmp_path / "e.safetensors"), 1000)
    assert ": 2.0 kB needed, " in message, "100 vectors of 5 numbers of 4 bytes"
