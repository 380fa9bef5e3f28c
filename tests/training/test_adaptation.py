"""Runs that adapt pretrained weights: they resume to the same bits, and the moving average is that of the trained weights."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from reptk.config import Recipe
from reptk.core.errors import DataError, UsageError
from reptk.methods import Batch
from reptk.models.classifier import read_classifier
from reptk.models.encoder import Encoder
from reptk.models.lora import merged_state_dict
from reptk.training import loop
from reptk.training.build import build
from reptk.training.describe import random_weights_note
from reptk.training.load_data import load_data
from reptk.training.parts import Parts
from reptk.training.state import checkpoint_content, restore
from tiny_runs import are_equal, exported_weights, result_metrics, run_silently, tiny

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

QUICK = ("train.report=false", "train.baselines=false", "eval.knn.every_epochs=0")
EVERY_STEP = ("train.checkpoint_every_steps=1", "train.keep_checkpoints=10")

ADAPTED = {
    "frozen stages": ("encoder.freeze=2", "optim.layer_decay=0.7"),
    "frozen BatchNorm": ("encoder.freeze_batchnorm=true", "train.micro_batch_size=8", "train.ema_decay=0.9"),
    "moving average": ("train.ema_decay=0.9", "train.evaluated_weights=ema", "encoder.drop_path=0.2"),
    "LoRA": (
        "encoder.backbone=test_vit",
        "encoder.freeze=1",
        "encoder.lora_rank=4",
        "encoder.lora_dropout=0.2",
        "train.grad_checkpointing=true",
        "train.ema_decay=0.9",
        "train.evaluated_weights=ema",
    ),
}


def build_parts(recipe: Recipe) -> Parts:
    return build(recipe, load_data(recipe), torch.device("cpu"))


def saved_state(folder: Path, step: int) -> dict[str, Any]:
    return torch.load(folder / "checkpoints" / f"step_{step:08d}" / "state.pt", weights_only=True)


def entries_of(state_dict: dict[str, Tensor], module: str) -> dict[str, Tensor]:
    """The state dict of one module of several."""
    entries = {}
    for name, value in state_dict.items():
        if name.startswith(f"{module}."):
            entries[name.removeprefix(f"{module}.")] = value
    return entries


def averages(folder: Path, module: str, steps: int) -> list[dict[str, Tensor]]:
    """The averages after each step, computed from the weights that were trained, with decay 0.5."""
    average: dict[str, Tensor] = {}
    averages = []
    for number in range(steps):
        # min(decay, 1 - (n + 1)^(-2/3)) of the average, the rest of what is trained.
        decay = min(0.5, 1 - (number + 1) ** (-2 / 3))
        trained = entries_of(saved_state(folder, number + 1)["method"], module)
        for name, value in trained.items():
            if not value.is_floating_point():
                average[name] = value
            else:
                average[name] = decay * average.get(name, value) + (1 - decay) * value
        averages.append(dict(average))
    return averages


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a compiler")
def test_compiled_lora_has_the_same_gradients() -> None:
    """One step: a run would compile the evaluation, too, which takes as long again."""
    gradients: dict[str, dict[str, Tensor]] = {}
    for name, overrides in (("plain", ()), ("compiled", ("train.compile=true",))):
        parts = build_parts(tiny("encoder.backbone=test_vit", "encoder.lora_rank=2", *overrides))
        parts.method.train()
        [batch] = parts.loader.batches(0, 1)
        parts.method(Batch(*batch), parts.step(0))["loss"].backward()
        trained = [(path, value) for path, value in parts.method.named_parameters() if value.grad is not None]
        gradients[name] = {path: value.grad for path, value in trained}
    plain, compiled = gradients["plain"], gradients["compiled"]
    assert compiled.keys() == plain.keys()
    assert any(path.endswith("lora_b") for path in plain)
    for path, value in plain.items():
        torch.testing.assert_close(compiled[path], value, rtol=1e-3, atol=1e-5, msg=path)


def test_synchronized_batch_norm_is_refused_on_the_cpu() -> None:
    for overrides in ((), ("encoder.freeze=2",), ("encoder.freeze_batchnorm=true", "train.ema_decay=0.9")):
        with pytest.raises(UsageError, match=r"train\.sync_batchnorm needs CUDA devices, and this run is on cpu"):
            build_parts(tiny("train.sync_batchnorm=true", *overrides))


@pytest.mark.parametrize("overrides", ADAPTED.values(), ids=ADAPTED)
def test_an_interrupted_run_ends_in_the_same_weights(
    overrides: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny(*QUICK, *overrides)
    uninterrupted, interrupted = tmp_path / "uninterrupted", tmp_path / "interrupted"
    run_silently(recipe, uninterrupted)
    original = loop.train_step

    def interrupt_in_fifth_step(parts: Parts, model: Any, batch: Any, step: Any) -> dict[str, Tensor]:
        if step.number == 4:
            raise KeyboardInterrupt
        return original(parts, model, batch, step)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", interrupt_in_fifth_step)
        with pytest.raises(KeyboardInterrupt):
            run_silently(recipe, interrupted)
    run_silently(recipe, interrupted)
    assert are_equal(exported_weights(uninterrupted), exported_weights(interrupted))
    first, second = saved_state(uninterrupted, 6), saved_state(interrupted, 6)
    assert are_equal(first["method"], second["method"])
    assert are_equal(first.get("ema", {}), second.get("ema", {}))
    assert result_metrics(uninterrupted) == result_metrics(interrupted)


# The moving average


def test_the_moving_average_is_its_formula_and_is_exported(tmp_path: Path) -> None:
    """Weights and running statistics alike, of the encoder and of the classifier."""
    folder = tmp_path / "run"
    classify = {"method": {"name": "classify"}, "loss": None}
    run_silently(tiny(*QUICK, *EVERY_STEP, "train.ema_decay=0.5", "train.evaluated_weights=ema", **classify), folder)
    classifier = read_classifier(folder).module.state_dict()
    for module, exported in (("encoder", exported_weights(folder)), ("classifier", classifier)):
        for step, expected in enumerate(averages(folder, module, 6), start=1):
            average = entries_of(saved_state(folder, step)["ema"], module)
            assert average.keys() == expected.keys()
            for name, value in expected.items():
                torch.testing.assert_close(average[name], value, rtol=1e-5, atol=1e-6, msg=name)
        assert are_equal(exported, average)
        assert not are_equal(exported, entries_of(saved_state(folder, 6)["method"], module))


def test_the_moving_average_does_not_change_what_is_trained(reference_run: Path, tmp_path: Path) -> None:
    run_silently(tiny("train.ema_decay=0.9", *QUICK), tmp_path / "run")
    assert are_equal(exported_weights(reference_run), exported_weights(tmp_path / "run"))
    assert "ema" not in saved_state(reference_run, 6)
    assert "ema" in saved_state(tmp_path / "run", 6)


def test_a_checkpoint_without_the_moving_average_is_refused() -> None:
    parts = build_parts(tiny("train.ema_decay=0.9"))
    state = checkpoint_content(parts, loop.RunState())
    restore(parts, state)
    del state["ema"]
    with pytest.raises(DataError, match="it lacks ema"):
        restore(parts, state)
    # Without a moving average nothing is missing.
    restore(build_parts(tiny()), state)


# Learning rates of the layers


@pytest.mark.parametrize("overrides", [(), ("encoder.lora_rank=2",), ("encoder.freeze=2",)])
def test_each_layer_has_its_rate_and_tokens_and_positions_have_no_decay(overrides: tuple[str, ...]) -> None:
    parts = build_parts(
        tiny("encoder.backbone=test_vit", "optim.layer_decay=0.5", "optim.weight_decay=0.1", *overrides)
    )
    name_of = {parameter: name for name, parameter in parts.encoder.named_parameters()}
    parts.schedule.set_step(2)
    rates = {}
    decays = {}
    for group in parts.optimizer.param_groups:
        for parameter in group["params"]:
            rates[name_of[parameter]] = group["lr"]
            decays[name_of[parameter]] = group["weight_decay"]
    assert rates.keys() == {name for parameter, name in name_of.items() if parameter.requires_grad}
    base = rates["head.2.weight"]
    for name, rate in rates.items():
        layer = 7
        if name.startswith("backbone.blocks."):
            layer = int(name.split(".")[2]) + 1
        elif name.startswith("backbone.norm"):
            layer = 6
        elif name.startswith("backbone."):
            layer = 0
        assert rate == pytest.approx(base * 0.5 ** (7 - layer)), name
    for name in ("backbone.cls_token", "backbone.pos_embed", "head.2.bias"):
        assert decays.get(name, 0.0) == 0.0
    assert decays["head.2.weight"] == 0.1


def test_without_layer_decay_the_groups_are_as_before() -> None:
    groups = build_parts(tiny()).optimizer.param_groups
    assert len(groups) == 2
    assert not any("lr_scale" in group for group in groups)


# What is trained


def test_nothing_to_train_is_refused() -> None:
    frozen = ("encoder.freeze=all", "encoder.head_layers=0")
    with pytest.raises(UsageError, match=r"nothing would be trained: encoder.freeze is 'all'"):
        build_parts(tiny(*frozen))
    with pytest.raises(UsageError, match="nothing would be trained"):
        build_parts(tiny(*frozen, "loss.learn_temperature=true"))
    build_parts(tiny("encoder.freeze=all"))


@pytest.mark.parametrize(
    ("overrides", "begin"),
    [
        ((), None),
        (("encoder.freeze_batchnorm=true",), None),
        (("encoder.freeze=1",), "encoder.freeze leaves weights"),
        (("encoder.lora_rank=4",), "encoder.lora_rank leaves weights"),
        (("encoder.freeze=1", "encoder.weights=FILE"), None),
        (("encoder.lora_rank=4", "encoder.pretrained=true"), None),
    ],
)
def test_random_weights_that_are_not_trained_are_noted(overrides: tuple[str, ...], begin: str | None) -> None:
    notes = random_weights_note(tiny(*overrides))
    assert len(notes) == (begin is not None)
    assert all(note.startswith(begin) for note in notes)


def test_the_model_of_a_run_with_lora_is_a_plain_backbone(tmp_path: Path) -> None:
    overrides = ("encoder.backbone=test_vit", "encoder.lora_rank=4", "optim.lr=0.01")
    run_silently(tiny(*QUICK, *overrides), tmp_path / "run")
    encoder = Encoder.from_run(tmp_path / "run")
    parts = build_parts(tiny(*overrides))
    before = parts.encoder.state_dict()
    parts.method.load_state_dict(saved_state(tmp_path / "run", 6)["method"])
    assert are_equal(encoder.state_dict(), merged_state_dict(parts.encoder))
    assert not torch.equal(encoder.backbone.blocks[0].attn.qkv.weight, before["backbone.blocks.0.attn.qkv.weight"])
    # Training goes on from it as from any other weights.
    build_parts(tiny("encoder.backbone=test_vit", f"encoder.weights={tmp_path / 'run'}", "encoder.lora_rank=4"))
