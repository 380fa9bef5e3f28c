"""Which weights a run ends in: the last, the best, or the pretrained ones, and how to take others afterwards."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from pretended_evaluations import pretend_values
from reptk.core.console import Logger
from reptk.core.errors import UsageError
from reptk.evaluate import run as evaluate_run
from reptk.models.encoder import Encoder
from reptk.training.build import build
from reptk.training.checkpoint import load_newest, load_step
from reptk.training.describe import describe
from reptk.training.load_data import load_data
from reptk.training.loop import train
from tiny_runs import exported_weights, run_silently, tiny

FOUR_EPOCHS = ("train.epochs=4", "train.report=false")
SHORT = ("train.report=false", "train.epochs=1", "train.keep_checkpoints=1")


def results_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text())


def weights_of(state: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The encoder's weights in the state of a checkpoint."""
    return {
        name.removeprefix("encoder."): value for name, value in state["method"].items() if name.startswith("encoder.")
    }


def holds(folder: Path, step: int) -> bool:
    """Whether model/ of a run holds the weights of the checkpoint of a step."""
    saved = load_step(folder / "checkpoints", step)
    assert saved is not None
    exported = exported_weights(folder)
    expected = weights_of(saved.state)
    return all(torch.equal(exported[name], expected[name]) for name in exported)


@pytest.mark.parametrize(
    ("values", "weights", "step"), [((0.5, 2.0, 1.5), "best", 6), ((-3.0, -2.0, -1.0), "last", 12)]
)
def test_a_run_ends_in_its_best_weights(
    values: tuple[float, ...], weights: str, step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The evaluation after the last step has its true value, which is above or below the values of the others."""
    pretend_values(monkeypatch, values)
    folder = tmp_path / "run"
    run_silently(tiny(*FOUR_EPOCHS, "train.final_weights=best"), folder)
    results = results_of(folder)
    assert results["model"]["weights"] == weights
    assert results["model"]["epoch"] == step / 3
    assert results["protocol"]["final_weights"] == "best"
    assert holds(folder, step)
    assert "stopped_early" not in results["training"]
    # The row is that of the weights in model/.
    measured = evaluated(folder)
    assert measured["knn@5"] == results["metrics"]["trained"]["knn@5"]
    assert measured["map@r"] == pytest.approx(results["metrics"]["trained"]["map@r"])
    # What a resumed run would go on from are the last weights.
    newest = load_newest(folder / "checkpoints")
    assert newest is not None
    assert newest.manifest["step"] == 12


@pytest.mark.parametrize(
    ("overrides", "row"),
    [
        ([], None),
        (
            ["train.early_stopping_epochs=2"],
            ("best", "by kNN (eval.knn), early stopping after 2 epochs without a higher kNN"),
        ),
        (["train.final_weights=best"], ("best", "by kNN (eval.knn)")),
        (["train.final_weights=last"], ("last", "")),
        (
            ["train.final_weights=last", "train.early_stopping_epochs=1"],
            ("last", "early stopping after 1 epoch without a higher kNN"),
        ),
        (["train.final_weights=auto"], None),
        # What recipes recorded before.
        (["train.final_weights=better"], None),
    ],
)
def test_header_says_which_weights_a_run_ends_in(overrides: list[str], row: tuple[str, str] | None) -> None:
    recipe = tiny(*overrides)
    rows = describe(recipe, build(recipe, load_data(recipe), torch.device("cpu")))
    described = {what: (name, details) for what, name, details in rows}
    assert described.get("weights") == row


def evaluated(folder: Path) -> dict[str, float]:
    """The metrics of the encoder in model/, on the tiny recipe's data."""
    recipe = tiny()
    data = load_data(recipe)
    evaluators, _ = evaluate_run.build_evaluators(recipe.eval, data)
    return evaluate_run.evaluate_encoder(Encoder.from_run(folder), data, evaluators.values()).metrics


def test_a_finished_run_takes_other_weights_when_it_is_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    pretend_values(monkeypatch, (0.5, 2.0, 1.5))
    folder = tmp_path / "run"
    run_silently(tiny(*FOUR_EPOCHS, "train.final_weights=best"), folder)
    for rule, step in (("last", 12), ("best", 6)):
        train(tiny(*FOUR_EPOCHS, f"train.final_weights={rule}"), folder, logger=Logger(prints=True))
        assert holds(folder, step)
        assert results_of(folder)["model"]["rule"] == rule
        assert f"note: train.final_weights={rule} instead of" in capsys.readouterr().out
        # It is recorded, so that the same command finds the run complete.
        train(tiny(*FOUR_EPOCHS, f"train.final_weights={rule}"), folder, logger=Logger(prints=True))
        assert "already complete" in capsys.readouterr().out
    shutil.rmtree(folder / "checkpoints")
    with pytest.raises(UsageError, match=r"holds no checkpoint, so train\.final_weights=last cannot choose"):
        run_silently(tiny(*FOUR_EPOCHS, "train.final_weights=last"), folder)


def test_without_its_checkpoint_the_best_evaluation_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    pretend_values(monkeypatch, (0.5, 2.0, 1.5))
    folder = tmp_path / "run"
    run_silently(tiny(*FOUR_EPOCHS), folder)
    train(tiny(*FOUR_EPOCHS, "train.final_weights=best"), folder, logger=Logger(prints=True))
    assert "there is no intact checkpoint of epoch 2, whose kNN@5 is the best" in capsys.readouterr().out
    assert results_of(folder)["model"] == {"weights": "last", "epoch": 4, "rule": "best"}


def test_the_best_moving_average_is_restored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_values(monkeypatch, (0.5, 2.0, 1.5))
    folder = tmp_path / "run"
    average = ("train.ema_decay=0.5", "train.evaluated_weights=ema", "train.final_weights=best")
    run_silently(tiny(*FOUR_EPOCHS, *average), folder)
    saved = load_step(folder / "checkpoints", 6)
    assert saved is not None
    exported, averages = exported_weights(folder), saved.state["ema"]
    assert all(torch.equal(value, averages[f"encoder.{name}"]) for name, value in exported.items())
    assert not holds(folder, 6)


# Pretrained weights


def test_weights_that_training_did_not_make_worse_are_exported(reference_run: Path, tmp_path: Path) -> None:
    """That worse ones are not, and that they can be taken, is tested in test_loop.py."""
    folder = tmp_path / "run"
    run_silently(tiny(*SHORT, "optim.lr=1e-6", f"encoder.weights={reference_run}"), folder)
    results = results_of(folder)
    assert results["model"]["weights"] == "last"
    assert results["protocol"]["untrained"] == "the pretrained encoder"
    assert holds(folder, 3)
    assert (folder / "checkpoints" / "step_00000000").exists()


def test_random_weights_are_never_what_a_run_ends_in(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run_silently(tiny(*SHORT), folder)
    assert results_of(folder)["model"]["weights"] == "last"
    assert not (folder / "checkpoints" / "step_00000000").exists()
