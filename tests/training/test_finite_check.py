"""Steps that are not finite change nothing, and their error names the step, the cause, the ranks and the images."""

import copy
import json
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch
from faulty_steps import (
    BAD_IMAGE,
    bad_step,
    built,
    change_of,
    inject,
    names_of_batch,
    recipe_of,
    run_cases_on_ranks,
    state_of,
    train_steps,
)

from reptk.core.errors import NonFiniteStep, NumericalError
from reptk.methods import Batch
from reptk.training.checkpoint_writer import CheckpointInterval, CheckpointWriter
from reptk.training.finite_check import allows_asynchronous_check
from reptk.training.loop import train_step
from reptk.training.state import RunState, checkpoint_content
from tiny_runs import tiny

pytestmark = pytest.mark.usefixtures("one_thread")

FAULTS = ["view", "loss", "infinite loss", "gradient"]


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("method", ["contrastive", "byol", "moco"])
def test_a_step_that_is_not_finite_changes_nothing(method: str, fault: str) -> None:
    """Weights, the optimizer's state, momentum copies and queues are bit for bit those of before."""
    parts = built(recipe_of(method))
    assert change_of(lambda: train_steps(parts, parts.method, 0, 2), parts)
    inject(parts, fault)
    assert change_of(lambda: bad_step(parts, parts.method, 2), parts) == []
    assert all(parameter.grad is None for parameter in parts.method.parameters())


@pytest.mark.parametrize("overrides", [["optim.name=sgd"], ["optim.name=lars", "train.clip_norm=1"]])
def test_other_optimizers_and_clipping_change_nothing_either(overrides: list[str]) -> None:
    parts = built(recipe_of("contrastive", *overrides))
    train_steps(parts, parts.method, 0, 1)
    inject(parts, "gradient")
    assert change_of(lambda: bad_step(parts, parts.method, 1), parts) == []


def test_the_image_whose_view_is_not_finite_is_named() -> None:
    for method in ("contrastive", "byol"):
        parts = built(recipe_of(method))
        inject(parts, "view")
        error = bad_step(parts, parts.method, 4)
        expected = names_of_batch(parts, 4)[BAD_IMAGE]
        assert (error.step, error.rank, error.samples) == (4, 0, [expected])
        assert str(error).startswith(
            "the loss is nan at step 5 (epoch 2, optim.lr 0.001); 1 of 32 embeddings hold NaN or infinity: the weights have "
            "diverged. Lower optim.lr"
        )
        assert str(error).endswith(f"The images whose embeddings are not finite: {expected}")


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (
            "loss",
            "the loss is nan at step 1 (epoch 1, optim.lr 0.001); the embeddings are finite, so it arose in the loss 'tcl'",
        ),
        (
            "infinite loss",
            "the loss is inf at step 1 (epoch 1, optim.lr 0.001); the embeddings are finite, so it arose in ",
        ),
        (
            "gradient",
            "the norm of the gradient is nan at step 1 (epoch 1, optim.lr 0.001); the loss is finite, so it arose in ",
        ),
    ],
)
def test_other_faults_name_the_batch(fault: str, message: str) -> None:
    parts = built(recipe_of("contrastive"))
    inject(parts, fault)
    error = bad_step(parts, parts.method, 0)
    assert error.samples == names_of_batch(parts, 0)
    assert str(error).startswith(message)
    first_five = ", ".join(error.samples[:5])
    assert str(error).endswith(f"The images of the batch: {first_five} and 11 more")


def test_weights_that_were_not_trained_yet_have_not_diverged() -> None:
    parts = built(recipe_of("byol"))
    inject(parts, "view")
    message = str(bad_step(parts, parts.method, 0))
    assert "1 of 32 embeddings hold NaN or infinity before any training: the views hold some, or the weights" in message
    assert "diverged" not in message


def test_embeddings_that_are_not_finite_count_even_if_the_loss_is() -> None:
    parts = built(recipe_of("contrastive"))
    forward = parts.method.forward

    def with_infinite_row(batch: Batch, step: object) -> dict[str, torch.Tensor]:
        outputs = forward(batch, step)
        outputs["z"][16 + BAD_IMAGE, 0] = torch.inf
        return outputs

    parts.method.forward = with_infinite_row
    error = bad_step(parts, parts.method, 0)
    assert str(error).startswith("the loss is finite, but embeddings are not, at step 1 ")
    assert error.samples == [names_of_batch(parts, 0)[BAD_IMAGE]]


def test_float16_skips_gradients_that_overflow_but_no_loss_that_is_not_finite() -> None:
    parts = built(recipe_of("contrastive", "train.precision=fp16", "loss.temperature=1.0"))
    train_steps(parts, parts.method, 0, 1)
    inject(parts, "gradient")
    assert change_of(lambda: train_steps(parts, parts.method, 1, 2), parts) == []
    assert parts.scaled_optimizer.skipped_steps == 1
    inject(parts, "infinite loss")
    assert change_of(lambda: bad_step(parts, parts.method, 2), parts) == []
    assert parts.scaled_optimizer.skipped_steps == 1


def test_poisoned_running_statistics_are_not_saved(tmp_path: Path) -> None:
    """The forward pass writes them, before anything can be checked."""
    parts = built(tiny("encoder.backbone=test_resnet"))
    inject(parts, "view")
    bad_step(parts, parts.method, 0)
    writer = CheckpointWriter(
        tmp_path, CheckpointInterval(), keep=2, details={}, warn=warnings.warn, written=lambda step: None
    )
    assert all(parameter.isfinite().all() for parameter in parts.method.parameters())
    writer.save(0, checkpoint_content(parts, RunState()))
    with pytest.raises(NumericalError, match=r"^after step 0, NaN .*running_mean first; nothing is saved"):
        writer.wait()
    writer.close()
    with pytest.raises(NumericalError, match=r"^the model is not saved: NaN .*running_mean first"):
        parts.encoder.save(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_training_goes_on_after_the_error() -> None:
    """As after a roll-back: nothing of the failed step is left in the check, the gradients or the optimizer."""
    parts, other = built(recipe_of("contrastive")), built(recipe_of("contrastive"))
    train_steps(other, other.method, 0, 3)
    train_steps(parts, parts.method, 0, 2)
    forward = parts.method.forward
    inject(parts, "gradient")
    bad_step(parts, parts.method, 2)
    parts.method.forward = forward
    train_steps(parts, parts.method, 2, 3)
    expected, state = state_of(other), state_of(parts)
    assert all(torch.equal(state[name], expected[name]) for name in expected)


def test_the_error_takes_a_sentence_and_can_be_sent_to_other_processes() -> None:
    error = NonFiniteStep("the loss is nan", step=3, ranks=[1], samples=["a.jpg"])
    sent = copy.copy(error.with_sentence("The last checkpoint is step_2"))  # by the functions that pickle calls
    assert str(sent) == "the loss is nan. The last checkpoint is step_2"
    assert (sent.step, sent.rank, sent.samples, sent.exit_code) == (3, 1, ["a.jpg"], 5)


# Without waiting for the device. The fused optimizers of the CPU read the flag as those of CUDA do.


@pytest.mark.parametrize("name", ["adamw", "sgd"])
@pytest.mark.parametrize("first_bad", [0, 2])
def test_a_fused_optimizer_changes_nothing_until_the_host_reads(name: str, first_bad: int) -> None:
    parts = built(recipe_of("contrastive", f"optim.name={name}"))
    check = parts.finite_check
    check.is_asynchronous = True
    check.reads_after_forward = False
    forward = parts.method.forward
    train_steps(parts, parts.method, 0, first_bad)
    inject(parts, "gradient")
    if first_bad == 0:
        assert change_of(lambda: bad_step(parts, parts.method, 0), parts) == []
        return
    assert change_of(lambda: train_steps(parts, parts.method, 2, 3), parts) == []
    parts.method.forward = forward
    assert change_of(lambda: train_steps(parts, parts.method, 3, 5), parts) == []
    with pytest.raises(NonFiniteStep, match=r"^the norm of the gradient is nan at step 3 ") as error:
        check.read()
    assert error.value.samples == names_of_batch(parts, 2)
    check.read()
    assert change_of(lambda: train_steps(parts, parts.method, 2, 4), parts)
    check.read()


@pytest.mark.parametrize(
    ("method", "overrides", "device", "is_allowed"),
    [
        ("contrastive", [], "cuda", True),
        ("contrastive", [], "cpu", False),
        ("contrastive", ["optim.name=lars"], "cuda", False),
        ("contrastive", ["train.precision=fp16"], "cuda", False),
        ("byol", [], "cuda", False),
        ("moco", [], "cuda", False),
    ],
)
def test_the_host_waits_where_the_device_cannot_decide(
    method: str, overrides: list[str], device: str, is_allowed: bool
) -> None:
    parts = built(recipe_of(method, *overrides))
    assert allows_asynchronous_check(parts.method, parts.optimizer, torch.device(device)) == is_allowed


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["adamw", "sgd"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_gpu_is_not_waited_for_and_changes_nothing(
    fault: str, name: str, nothing_waits: Callable[[], AbstractContextManager[None]]
) -> None:
    parts = built(recipe_of("contrastive", f"optim.name={name}"), "cuda")
    train_steps(parts, parts.method, 0, 2)
    inject(parts, fault)
    batches = []
    for batch in parts.loader.batches(2, 4):
        batches.append(Batch(*(tensor.to(parts.device) for tensor in batch)))
    before = state_of(parts)
    with nothing_waits():
        for number, batch in enumerate(batches, 2):
            train_step(parts, parts.method, batch, parts.step(number))
    after = state_of(parts)
    assert all(torch.equal(before[key], after[key]) for key in before)
    with pytest.raises(NonFiniteStep, match="at step 3 ") as error:
        parts.finite_check.read()
    if fault == "view":
        assert error.value.samples == [names_of_batch(parts, 2)[BAD_IMAGE]]
    else:
        assert error.value.samples == names_of_batch(parts, 2)


# Two ranks

CASES = [
    ("contrastive", "view"),
    ("contrastive", "infinite loss"),
    ("byol", "view"),
    ("byol", "loss"),
    ("byol", "gradient"),
    ("moco", "gradient"),
]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    run_cases_on_ranks(CASES, folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(("method", "fault"), CASES)
def test_every_rank_names_the_rank_where_it_began(method: str, fault: str, outcomes: Path) -> None:
    first, second = (json.loads((outcomes / f"{method} {fault} {rank}.json").read_text()) for rank in (0, 1))
    assert first["is_untouched"]
    assert second["is_untouched"]
    assert first["message"] == second["message"]
    assert ", optim.lr 0.001) on rank 1; " in first["message"]
    expected = second["batch"]
    if fault == "view":
        expected = [expected[BAD_IMAGE]]
    for outcome in (first, second):
        assert outcome["goes_on"]
        assert (outcome["step"], outcome["ranks"], outcome["samples"]) == (2, [1], expected)
