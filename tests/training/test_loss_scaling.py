"""Training in float16: the loss is scaled, steps that overflow are skipped and counted, and resuming is exact."""

import itertools
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from reptk import LOSSES, METHODS
from reptk.config import load
from reptk.core.console import Logger
from reptk.core.errors import NumericalError
from reptk.methods import Batch, Contrastive, Step
from reptk.training import loop
from reptk.training.loop import train
from reptk.training.loss_scaling import MIN_SCALE, ScaledOptimizer
from tiny_runs import are_equal, exported_weights, logged_losses, metric_rows, run_silently, tiny

FP16 = (
    "encoder.backbone=test_vit",
    "loss.temperature=1.0",  # at the usual ones, the first gradients overflow, and the first steps are skipped
    "train.precision=fp16",
    "train.baselines=false",
    "train.report=false",
)
FIRST_SCALE = 2.0**16


class Huge(nn.Module):
    """A loss whose value is finite, but not once it is multiplied by 65,536."""

    def forward(self, z: Tensor, ids: Tensor) -> Tensor:
        return z.square().mean() * 1e35


class OverflowsOnce(Contrastive):
    """Contrastive learning with one step whose loss overflows when it is scaled; it records `after_step`."""

    def __init__(self, encoder, views, loss, positives: str = "instance", overflow_step: int = 2) -> None:
        super().__init__(encoder, views, loss, positives)
        self.overflow_step = overflow_step
        self.register_buffer("after_steps", torch.zeros(8))

    def forward(self, batch: Batch, step: Step) -> dict[str, Tensor]:
        outputs = super().forward(batch, step)
        if step.number == self.overflow_step:
            outputs["loss"] = outputs["loss"] * 1e35
        return outputs

    def after_step(self, step: Step) -> None:
        self.after_steps[step.number] += 1


@pytest.fixture
def registered(restored_registries: None) -> None:
    LOSSES.register("huge")(Huge)
    METHODS.register("overflows_once")(OverflowsOnce)


def overflowing(*overrides: str):
    return tiny(*FP16, *overrides, method={"name": "overflows_once", "positives": "instance"})


def test_fp16_is_close_to_fp32(tmp_path: Path) -> None:
    run_silently(tiny(*FP16), tmp_path / "fp16")
    run_silently(tiny(*FP16, "train.precision=fp32"), tmp_path / "fp32")
    assert logged_losses(tmp_path / "fp16") == pytest.approx(logged_losses(tmp_path / "fp32"), rel=0.01)
    assert logged_losses(tmp_path / "fp16") != logged_losses(tmp_path / "fp32")
    scales = [row["loss_scale"] for row in metric_rows(tmp_path / "fp16") if "loss" in row]
    assert scales == [FIRST_SCALE] * 6
    assert not any("loss_scale" in row for row in metric_rows(tmp_path / "fp32"))


def test_micro_batches_and_clipping_are_those_of_the_batch(tmp_path: Path) -> None:
    """Clipping measures the norm without the scale: with the scale in it, the limit would apply to every step."""
    run_silently(tiny(*FP16, "optim.name=sgd"), tmp_path / "batch")
    run_silently(tiny(*FP16, "optim.name=sgd", "train.micro_batch_size=5"), tmp_path / "chunks")
    run_silently(tiny(*FP16, "optim.name=sgd", "train.clip_norm=1000"), tmp_path / "never_clipped")
    run_silently(tiny(*FP16, "optim.name=sgd", "train.clip_norm=0.01"), tmp_path / "clipped")
    expected = logged_losses(tmp_path / "batch")
    assert logged_losses(tmp_path / "chunks") == pytest.approx(expected, rel=1e-3)
    assert logged_losses(tmp_path / "never_clipped") == pytest.approx(expected, rel=1e-6)
    assert logged_losses(tmp_path / "clipped") != pytest.approx(expected, rel=1e-6)


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("overrides", [(), ("train.clip_norm=1", "optim.name=lars")], ids=["adamw", "clipped lars"])
def test_a_step_that_overflows_is_skipped_and_said(
    overrides: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    weights = []
    train_step = loop.train_step

    def recorded_step(parts, *arguments):
        outputs = train_step(parts, *arguments)
        weights.append(parts.encoder.head[0].weight.detach().clone())
        assert all(parameter.grad is None for parameter in parts.method.parameters())
        recorded_step.method = parts.method
        return outputs

    monkeypatch.setattr(loop, "train_step", recorded_step)
    train(overflowing(*overrides), tmp_path / "run", logger=Logger(prints=True))
    changed = [not torch.equal(before, after) for before, after in itertools.pairwise(weights)]
    assert changed == [True, False, True, True, True]
    assert recorded_step.method.after_steps.tolist() == [1] * 6 + [0] * 2
    rows = [row for row in metric_rows(tmp_path / "run") if "loss" in row]
    assert [row["skipped_steps"] for row in rows] == [0, 0, 1, 1, 1, 1]
    assert [row["loss_scale"] for row in rows] == [FIRST_SCALE] * 2 + [FIRST_SCALE / 2] * 4
    output = " ".join(capsys.readouterr().out.split())
    assert (
        "1 of 6 steps were skipped, since their gradients overflowed float16; the loss is scaled by 32768 now" in output
    )
    assert ", fp16, seed 0" in output


@pytest.mark.usefixtures("registered")
def test_momentum_begins_after_a_first_step_that_was_skipped(tmp_path: Path) -> None:
    run_silently(overflowing("method.overflow_step=0", "optim.name=sgd", "optim.lr=0.05"), tmp_path / "run")
    rows = [row for row in metric_rows(tmp_path / "run") if "loss" in row]
    assert [row["skipped_steps"] for row in rows] == [1] * 6
    assert all(weight.isfinite().all() for weight in exported_weights(tmp_path / "run").values())


@pytest.mark.usefixtures("registered")
def test_an_interrupted_run_goes_on_with_its_scale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = overflowing()
    run_silently(recipe, tmp_path / "uninterrupted")
    train_step = loop.train_step
    with monkeypatch.context() as patch:

        def interrupted_step(parts, model, batch, step):
            if step.number == 4:
                raise KeyboardInterrupt
            return train_step(parts, model, batch, step)

        patch.setattr(loop, "train_step", interrupted_step)
        with pytest.raises(KeyboardInterrupt):
            run_silently(recipe, tmp_path / "interrupted")
    run_silently(load(tmp_path / "interrupted"), tmp_path / "interrupted", resume=True)
    assert are_equal(exported_weights(tmp_path / "uninterrupted"), exported_weights(tmp_path / "interrupted"))
    last = [row for row in metric_rows(tmp_path / "interrupted") if "loss" in row][-1]
    assert (last["loss_scale"], last["skipped_steps"]) == (FIRST_SCALE / 2, 1)


def test_gradients_that_always_overflow_stop_the_run() -> None:
    module = nn.Linear(2, 1)
    before = module.weight.detach().clone()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    scaled = ScaledOptimizer(optimizer, "fp16", torch.device("cpu"))
    infinite = torch.full((1, 2), float("inf"))
    while scaled.scale / 2 >= MIN_SCALE:
        assert scaled.backward(module(infinite).sum(), module, clip_norm=0) is None
        scaled.step()
    assert scaled.skipped_steps == 29
    scaled.backward(module(infinite).sum(), module, clip_norm=0)
    with pytest.raises(NumericalError, match=r"NaN or infinity however .* train\.precision=fp32 or bf16"):
        scaled.step()
    assert torch.equal(module.weight, before)


def test_a_precision_without_scaling_steps_as_the_optimizer_does() -> None:
    module = nn.Linear(2, 1)
    before = module.weight.detach().clone()
    scaled = ScaledOptimizer(torch.optim.SGD(module.parameters(), lr=0.5), "bf16", torch.device("cpu"))
    norm = scaled.backward(module(torch.ones(1, 2)).sum(), module, clip_norm=0)
    assert norm.item() == pytest.approx(3**0.5)  # of two weights and a bias
    scaled.step()
    assert torch.equal(module.weight, before - 0.5)
    assert (scaled.scale, scaled.skipped_steps) == (1.0, 0)
    scaled.load_state_dict({"skipped_steps": 3, "scaler": {"scale": 8.0}})
    assert (scaled.scale, scaled.skipped_steps) == (1.0, 3)


@pytest.mark.usefixtures("registered")
def test_numbers_beyond_float16_name_the_precision(tmp_path: Path) -> None:
    with pytest.raises(NumericalError, match=r"or numbers above 65,504, .* train\.precision=fp32"):
        run_silently(tiny(*FP16, "optim.name=sgd", "optim.lr=1e30", "loss.name=supcon"), tmp_path / "run")


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp16", "bf16", "auto"])
def test_a_run_on_a_gpu_is_close_to_fp32(precision: str, tmp_path: Path) -> None:
    on_gpu = ["train.device=cuda", f"train.precision={precision}"]
    run_silently(tiny(*on_gpu), tmp_path / precision)
    run_silently(tiny("train.device=cuda"), tmp_path / "fp32")
    assert logged_losses(tmp_path / precision) == pytest.approx(logged_losses(tmp_path / "fp32"), rel=0.05)
