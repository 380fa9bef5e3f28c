"""Runs of distillation: resumed, with a teacher that has changed, on two ranks, and with a teacher that cannot be used."""

import json
from pathlib import Path

import pytest
import torch
from rank_processes import run_recipe_on_ranks

from reptk import Encoder
from reptk.config import Recipe
from reptk.core import rng
from reptk.core.errors import DataError
from reptk.recipe import main
from reptk.training import loop
from reptk.training.checkpoint import load_newest
from tiny_runs import are_equal, exported_weights, metric_rows, run_silently, tiny

TRAIN = {"epochs": 2, "batch_size": 16, "log_every_steps": 1, "baselines": False, "report": False}


def write_teacher(folder: Path, seed: int = 0) -> Path:
    with rng.seeded("teacher", seed):
        Encoder("test_resnet", size=16).save(folder)
    return folder


def recipe_with(teacher: Path, backbone: str = "test_resnet", **method: object) -> Recipe:
    return tiny(
        method={"name": "distill", "teacher": str(teacher), "queue_size": 40, **method},
        loss=None,
        encoder={"backbone": backbone},
        train=TRAIN,
    )


def method_state(folder: Path) -> dict[str, torch.Tensor]:
    checkpoint = load_newest(folder / "checkpoints")
    assert checkpoint is not None
    return checkpoint.state["method"]


def interrupt_in_step(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = loop.train_step, []

    def interrupted(*arguments: object) -> object:
        calls.append(1)
        if len(calls) == number:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(loop, "train_step", interrupted)


@pytest.mark.slow
@pytest.mark.parametrize("sees", ["image", "view"])
def test_a_resumed_run_ends_in_the_same_bits(sees: str, tmp_path: Path) -> None:
    """In the second epoch, whose features of the teacher are stored in the one run and computed again in the other."""
    recipe = recipe_with(write_teacher(tmp_path / "teacher"), teacher_sees=sees)
    run_silently(recipe, tmp_path / "whole")
    with pytest.MonkeyPatch.context() as patch:
        interrupt_in_step(5, patch)
        with pytest.raises(KeyboardInterrupt):
            run_silently(recipe, tmp_path / "resumed")
    run_silently(recipe, tmp_path / "resumed")
    state = method_state(tmp_path / "whole")
    assert are_equal(state, method_state(tmp_path / "resumed"))
    assert are_equal(exported_weights(tmp_path / "whole"), exported_weights(tmp_path / "resumed"))
    losses = [[row["loss"] for row in metric_rows(tmp_path / run) if "loss" in row] for run in ("whole", "resumed")]
    assert losses[0] == losses[1]
    assert "teacher_cosine" in metric_rows(tmp_path / "whole")[0]
    # Neither holds the teacher, nor has the exported encoder a head.
    assert {name.split(".")[0] for name in state} == {"encoder", "projector", "queue", "teacher_sha256"}
    assert all(name.startswith("backbone.") for name in exported_weights(tmp_path / "whole"))


def test_a_run_is_not_resumed_with_another_teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recipe_with(write_teacher(tmp_path / "teacher"))
    with pytest.MonkeyPatch.context() as patch:
        interrupt_in_step(4, patch)
        with pytest.raises(KeyboardInterrupt):
            run_silently(recipe, tmp_path / "run")
    before = method_state(tmp_path / "run")
    write_teacher(tmp_path / "teacher", seed=1)
    with pytest.raises(DataError, match="has other weights than when the run was started"):
        run_silently(recipe, tmp_path / "run")
    assert are_equal(method_state(tmp_path / "run"), before)
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert "other weights" in status["reason"]
    write_teacher(tmp_path / "teacher")
    run_silently(recipe, tmp_path / "run")


@pytest.mark.slow
def test_two_ranks_train_what_one_does(tmp_path: Path) -> None:
    recipe = recipe_with(write_teacher(tmp_path / "teacher"), backbone="test_vit")
    # AdamW would turn rounding errors of small gradients into whole steps.
    optim = recipe.optim.model_copy(update={"name": "sgd", "lr": 0.05})
    recipe = recipe.model_copy(update={"optim": optim})
    run_silently(recipe, tmp_path / "one")
    (tmp_path / "two.toml").write_text(recipe.dump())
    run_recipe_on_ranks([str(tmp_path / "two.toml"), "--out", str(tmp_path / "two")], 2, tmp_path)
    one, two = method_state(tmp_path / "one"), method_state(tmp_path / "two")
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize(
    ("override", "exit_code", "message"),
    [
        ("method.teacher=resnet5000", 2, "method.teacher: timm has no model 'resnet5000'"),
        ("method.teacher_size=0", 2, "method.teacher_size"),
        ("method.teacher_weights=nothing.pth", 3, "nothing.pth"),
        ("method.teacher_weights=package:none-such", 4, "none-such"),
        ("method.objective=cosin", 2, "method.objective"),
    ],
)
def test_a_teacher_that_cannot_be_used_is_one_message_before_training(
    override: str, exit_code: int, message: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    file = tmp_path / "tiny.toml"
    file.write_text(
        recipe_with(write_teacher(tmp_path / "teacher")).dump().replace(str(tmp_path / "teacher"), "test_resnet")
    )
    assert main([str(file), override, "--out", str(tmp_path / "run")]) == exit_code
    errors = capsys.readouterr().err
    assert message in errors
    assert "Traceback" not in errors
    assert not (tmp_path / "run").exists()


def test_check_describes_the_teacher(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    file = tmp_path / "tiny.toml"
    file.write_text(recipe_with(write_teacher(tmp_path / "teacher")).dump())
    assert main([str(file), "--check"]) == 0
    output = " ".join(capsys.readouterr().out.split())
    assert "frozen; sees 48 images once" in output
