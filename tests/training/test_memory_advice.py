"""A step that does not fit into memory ends a run with what to change, and other commands say it in one message, too."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from reptk import LOSSES
from reptk.core.command_line import run_command
from reptk.core.errors import EnvironmentProblem
from reptk.training.memory_advice import explain_out_of_memory
from tiny_runs import run_silently, tiny

pytestmark = pytest.mark.usefixtures("one_thread", "restored_registries")

ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has"),
    MemoryError(),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried to allocate"
    ),
]


def test_a_run_says_what_to_change_and_records_it(tmp_path: Path) -> None:
    @LOSSES.register("greedy")
    class Greedy(nn.Module):
        def forward(self, z: Tensor, ids: Tensor) -> Tensor:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has")

    message = (
        r"not enough memory \(CUDA out of memory\. Tried to allocate 2\.00 GiB\)\. test_resnet encodes 16 images in 2 views at "
        r"once on each rank; train\.micro_batch_size=8 encodes half as many"
    )
    with pytest.raises(EnvironmentProblem, match=message):
        run_silently(tiny(loss={"name": "greedy"}), tmp_path / "run")
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert status["status"] == "failed"
    assert status["reason"].startswith("EnvironmentProblem: not enough memory")


@pytest.mark.parametrize("error", ERRORS, ids=repr)
def test_the_advice_keeps_the_batch(error: Exception) -> None:
    recipe = tiny("train.batch_size=64", "train.micro_batch_size=32")
    with (
        pytest.raises(
            EnvironmentProblem,
            match=r"encodes 8 images in 3 views.*train\.micro_batch_size=16.*changes a contrastive loss",
        ),
        explain_out_of_memory(recipe, num_views=3, num_ranks=4),
    ):
        raise error


def test_the_smallest_batch_is_not_divided() -> None:
    with (
        pytest.raises(EnvironmentProblem) as raised,
        explain_out_of_memory(tiny("train.batch_size=4"), num_views=2, num_ranks=4),
    ):
        raise MemoryError
    assert "micro_batch_size" not in str(raised.value)


def test_other_errors_remain() -> None:
    with pytest.raises(RuntimeError, match="out of luck"), explain_out_of_memory(tiny(), num_views=2, num_ranks=1):
        raise RuntimeError("out of luck")


@pytest.mark.parametrize("error", ERRORS, ids=repr)
def test_other_commands_end_with_one_message(error: Exception, capsys: pytest.CaptureFixture) -> None:
    def command() -> int:
        raise error

    assert run_command(command) == 4
    message = capsys.readouterr().err
    assert message.startswith("error: not enough memory (")
    assert message.count("\n") == 1
    assert "--batch-size" in message
