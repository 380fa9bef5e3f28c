"""Equal runs end in equal weights: whatever is logged, however often they are interrupted, however the loss is computed."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from reptk.config import load
from reptk.losses import implementation
from reptk.methods import Batch
from reptk.training import loop, run_folder
from reptk.training.build import build, load_data
from reptk.training.loop import train_step
from reptk.training.state import RunState, save
from tiny_runs import are_equal, exported_weights, logged_losses, run_silently, tiny


def test_same_recipe_gives_same_weights(reference_run: Path, tmp_path: Path) -> None:
    run_silently(tiny(), tmp_path / "second")
    assert are_equal(exported_weights(reference_run), exported_weights(tmp_path / "second"))


def test_other_seed_gives_other_weights(reference_run: Path, tmp_path: Path) -> None:
    run_silently(tiny("seed=1"), tmp_path / "other")
    assert not are_equal(exported_weights(reference_run), exported_weights(tmp_path / "other"))


def test_workers_do_not_change_the_weights(reference_run: Path, tmp_path: Path) -> None:
    run_silently(tiny("train.workers=2"), tmp_path / "workers")
    assert are_equal(exported_weights(reference_run), exported_weights(tmp_path / "workers"))


def test_global_random_state_does_not_change_the_weights(reference_run: Path, tmp_path: Path) -> None:
    torch.manual_seed(987)
    torch.rand(100)
    run_silently(tiny(), tmp_path / "drawn")
    assert are_equal(exported_weights(reference_run), exported_weights(tmp_path / "drawn"))


def test_evaluation_and_logging_do_not_change_the_weights(reference_run: Path, tmp_path: Path) -> None:
    overrides = ["eval.knn.every_epochs=0", "train.log_every_steps=3", "train.baselines=false"]
    run_silently(tiny(*overrides), tmp_path / "few")
    assert are_equal(exported_weights(reference_run), exported_weights(tmp_path / "few"))


# Resumption


class InterruptedAtFifthStep:
    """Stands in for `train_step`; calls `interrupt` before the fifth step, in the middle of the second epoch."""

    def __init__(self, interrupt: Callable[[], None]) -> None:
        self.interrupt = interrupt
        self.calls = 0
        self._train_step = loop.train_step

    def __call__(self, *args, **kwargs):
        self.calls += 1
        if self.calls == 5:
            self.interrupt()
        return self._train_step(*args, **kwargs)


def raise_keyboard_interrupt() -> None:
    raise KeyboardInterrupt


def send_sigint() -> None:
    os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("overrides", [(), ("encoder.drop_path=0.3", "encoder.backbone=test_vit", "optim.name=sgd")])
def test_interrupted_run_ends_in_the_same_weights(
    overrides: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny(*overrides)
    uninterrupted, interrupted = tmp_path / "uninterrupted", tmp_path / "interrupted"
    run_silently(recipe, uninterrupted)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", InterruptedAtFifthStep(raise_keyboard_interrupt))
        with pytest.raises(KeyboardInterrupt):
            run_silently(recipe, interrupted)
    assert run_folder.read_status(interrupted)["status"] == "interrupted"
    run_silently(load(interrupted), interrupted, resume=True)
    assert are_equal(exported_weights(uninterrupted), exported_weights(interrupted))
    assert run_folder.read_status(interrupted)["status"] == "finished"


def test_ctrl_c_finishes_the_step_and_saves_it(
    reference_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "interrupted"
    train_step = InterruptedAtFifthStep(send_sigint)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", train_step)
        with pytest.raises(KeyboardInterrupt):
            run_silently(tiny(), folder)
    assert train_step.calls == 5
    assert (folder / "checkpoints" / "last").read_text() == "step_00000005\n"
    run_silently(load(folder), folder, resume=True)
    assert are_equal(exported_weights(reference_run), exported_weights(folder))


def test_any_step_can_be_resumed(reference_run: Path, tmp_path: Path) -> None:
    """A checkpoint in the middle of an epoch leads to the same weights: no random state has to be saved."""
    recipe = tiny()
    parts = build(recipe, load_data(recipe), torch.device("cpu"))
    parts.method.train()
    for number, batch in enumerate(parts.loader.batches(0, 4)):
        parts.schedule.set_step(number)
        train_step(parts, parts.method, Batch(*batch), parts.step(number))
    folder = run_folder.create(recipe, tmp_path / "middle")
    save(parts, RunState(step=4), folder)
    run_silently(recipe, folder, resume=True)
    assert are_equal(exported_weights(reference_run), exported_weights(folder))


# Equivalent computations


@pytest.mark.parametrize(
    "loss", [{"name": "tcl", "k1": 10.0}, {"name": "supcon", "form": "in"}], ids=lambda part: part["name"]
)
def test_every_implementation_gives_the_same_loss_curve(loss: dict, tmp_path: Path) -> None:
    """Dense, tiled, and with the batch encoded in micro-batches."""
    overrides = ["encoder.backbone=test_vit", "method.positives=class"]
    with implementation("dense"):
        run_silently(tiny(*overrides, loss=loss), tmp_path / "dense")
    with implementation("tiled"):
        run_silently(tiny(*overrides, loss=loss), tmp_path / "tiled")
    run_silently(tiny(*overrides, "train.micro_batch_size=5", loss=loss), tmp_path / "micro_batches")
    expected = logged_losses(tmp_path / "dense")
    assert len(expected) == 6
    assert logged_losses(tmp_path / "tiled") == pytest.approx(expected, rel=1e-4)
    assert logged_losses(tmp_path / "micro_batches") == pytest.approx(expected, rel=1e-4)


def test_bf16_is_close_to_fp32(tmp_path: Path) -> None:
    # A transformer: on the CPU, bf16 convolutions of 1 x 1 maps have been seen to give a gradient that is not finite.
    for precision in ("fp32", "bf16"):
        run_silently(tiny("encoder.backbone=test_vit", f"train.precision={precision}"), tmp_path / precision)
    assert logged_losses(tmp_path / "bf16") == pytest.approx(logged_losses(tmp_path / "fp32"), rel=0.02)
    assert logged_losses(tmp_path / "bf16") != logged_losses(tmp_path / "fp32")


@pytest.mark.slow
def test_compiling_does_not_change_the_loss_curve(reference_run: Path, tmp_path: Path) -> None:
    run_silently(tiny("train.compile=true"), tmp_path / "compiled")
    assert logged_losses(tmp_path / "compiled") == pytest.approx(logged_losses(reference_run), rel=1e-3)
    assert exported_weights(tmp_path / "compiled").keys() == exported_weights(reference_run).keys()
