"""Early stopping: after which epoch a run ends, what it says, and that a resumed run ends after the same one."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from interrupted_runs import CalledBefore, send
from pretended_evaluations import VALUES, pretend_values
from reptk.core.console import Logger
from reptk.core.errors import UsageError
from reptk.core.stop_signals import Stopped
from reptk.training import epoch, loop
from reptk.training.early_stopping import BestEvaluation, best_after, is_out_of_patience, stop_message
from reptk.training.loop import train
from reptk.training.run_status import read_status
from tiny_runs import are_equal, exported_weights, metric_rows, run_silently, tiny

PATIENT = ("train.epochs=6", "train.early_stopping_epochs=2", "train.report=false")


def brute_force(values: Sequence[float], patience: int) -> int:
    """The number of epochs after which training ends, from the definition."""
    for done in range(1, len(values) + 1):
        best_epoch = values.index(max(values[:done])) + 1
        if patience and done - best_epoch >= patience:
            return done
    return len(values)


@pytest.mark.parametrize("patience", [0, 1, 2, 3])
@pytest.mark.parametrize("values", [VALUES, (1.0, 0.9, 0.8), (0.1, 0.2, 0.3, 0.2, 0.1), (0.0, 0.0, 0.0, 0.0)])
def test_training_ends_when_the_best_value_is_too_long_ago(values: Sequence[float], patience: int) -> None:
    steps_per_epoch = 3
    best = None
    done = 0
    for done, value in enumerate(values, start=1):
        best = best_after(best, {"knn@20": value}, done * steps_per_epoch)
        if is_out_of_patience(best, patience, steps_per_epoch):
            break
    assert done == brute_force(list(values), patience)


def test_epochs_without_an_evaluation_count() -> None:
    best = best_after(None, {"knn@20": 0.5}, 10)
    best = best_after(best, {"knn@20": 0.4}, 40)
    assert is_out_of_patience(best, 3, steps_per_epoch=10)
    assert not is_out_of_patience(best, 4, steps_per_epoch=10)


def test_an_evaluation_without_the_metric_changes_nothing() -> None:
    best = best_after(None, {"linear": 0.9, "knn@20": 0.3}, 2)
    assert best == BestEvaluation("knn@20", 0.3, 2, 2)
    assert best_after(best, {"linear": 1.0}, 3) == best


def test_the_headline_decides_though_another_evaluator_is_due_earlier(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """kNN is the headline and is measured after every second epoch; the linear probe after every epoch."""
    pretend_values(monkeypatch, (0.9, 0.5, 0.9, 0.4, 0.9, 0.3))
    probe = ("eval.linear.name=linear", "eval.linear.every_epochs=1", "eval.knn.every_epochs=2")
    run_silently(tiny(*PATIENT, *probe, "train.baselines=false"), tmp_path)
    stopped = json.loads((tmp_path / "results.json").read_text())["training"]["stopped_early"]
    assert (stopped["metric"], stopped["best_epoch"], stopped["value"]) == ("knn@5", 2, 0.5)


def test_a_run_that_stopped_early_is_trained_on_without_patience(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_values(monkeypatch)
    run_silently(tiny(*PATIENT), tmp_path)
    assert read_status(tmp_path)["stopped_early_after_epoch"] == 4
    with pytest.raises(UsageError, match="would do so again with more epochs"):
        run_silently(tiny(*PATIENT, "train.epochs=8"), tmp_path)
    run_silently(tiny(*PATIENT, "train.early_stopping_epochs=0"), tmp_path)
    assert "stopped_early_after_epoch" not in read_status(tmp_path)
    assert json.loads((tmp_path / "results.json").read_text())["training"]["epochs"] == 6


def test_a_value_that_is_not_a_number_is_never_the_best() -> None:
    best = best_after(None, {"x": float("nan")}, 1)
    assert best_after(best, {"x": 0.1}, 2) == BestEvaluation("x", 0.1, 2, 2)
    assert best_after(BestEvaluation("x", 0.1, 1, 1), {"x": float("nan")}, 2) == BestEvaluation("x", 0.1, 1, 2)


def test_the_line_says_what_became_of_the_schedule() -> None:
    arguments = {"patience_epochs": 2, "steps_per_epoch": 10, "epochs": 20, "lr": 0.0125}
    line = stop_message(BestEvaluation("knn@20", 0.5, 30, 50), schedule="cosine", **arguments)
    assert line == (
        "stopped early after epoch 5 of 20: kNN@20 is no better than after epoch 3, 50.0 % (train.early_stopping_epochs=2). "
        "The cosine of the learning rate is that of 20 epochs, and was at 0.0125; a run of train.epochs=3 would go through all "
        "of it"
    )
    assert "cosine" not in stop_message(BestEvaluation("knn@20", 0.5, 30, 50), schedule="constant", **arguments)


def test_a_run_stops_early_says_why_and_ends_in_its_best_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_values(monkeypatch)
    folder = tmp_path / "run"
    train(tiny(*PATIENT), folder, logger=Logger(prints=True))
    assert "stopped early after epoch 4 of 6: kNN@5 is no better than after epoch 2, 80.0 %" in capsys.readouterr().out
    results = json.loads((folder / "results.json").read_text())
    assert results["training"]["epochs"] == results["protocol"]["epochs"] == 4
    assert results["training"]["stopped_early"] == {
        "epochs": 6,
        "best_epoch": 2,
        "metric": "knn@5",
        "value": 0.8,
        "patience_epochs": 2,
    }
    assert [row["step"] for row in metric_rows(folder) if "loss" in row] == list(range(1, 13))
    status = read_status(folder)
    assert (status["status"], status["stopped_early_after_epoch"]) == ("finished", 4)
    # If the last weights are no better than the best ones, as here: these.
    assert status["model"] == results["model"]["weights"] == "best"
    assert results["model"]["epoch"] == 2


def test_a_resumed_run_stops_after_the_same_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped in the epoch after the best one, in the last one, and in the evaluation that ends the run."""
    pretend_values(monkeypatch)
    reference, folder = tmp_path / "reference", tmp_path / "run"
    run_silently(tiny(*PATIENT), reference)
    for name, module, call in (("train_step", loop, 8), ("train_step", loop, 3), ("evaluate_now", epoch, 1)):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, CalledBefore(vars(module)[name], call, send("SIGTERM")))
            with pytest.raises(Stopped):
                run_silently(tiny(*PATIENT), folder)
    run_silently(tiny(*PATIENT), folder)
    expected, results = (json.loads((path / "results.json").read_text()) for path in (reference, folder))
    assert results["training"] == expected["training"]
    assert results["model"] == expected["model"]
    assert results["metrics"] == expected["metrics"]
    assert are_equal(exported_weights(reference), exported_weights(folder))
