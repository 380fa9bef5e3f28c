"""Equal runs end in equal weights: whatever is logged, however often they are interrupted, however the loss is computed."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from interrupted_runs import CalledBefore, raise_keyboard_interrupt, send
from reptk.core.console import Logger
from reptk.core.errors import UsageError
from reptk.core.stop_signals import Stopped
from reptk.losses import implementation
from reptk.training import epoch, loop, run_process
from reptk.training.loop import train
from reptk.training.run_status import read_status, write_status
from tiny_runs import are_equal, exported_weights, logged_losses, metric_rows, result_metrics, run_silently, tiny


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


def untimed_rows(folder: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl, without what depends on the time."""
    timed = ("seconds", "views_per_second", "waiting")
    return [{key: value for key, value in row.items() if key not in timed} for row in metric_rows(folder)]


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("encoder.drop_path=0.3", "encoder.backbone=test_vit", "optim.name=sgd"),
        (
            "data.labelled=0.5",
            "method.positives=class",
            "train.sampler.name=positives",
            "loss.temperature={start=0.5, end=0.1}",
            "optim.weight_decay={start=0, end=0.5, epochs=1}",
        ),
    ],
    ids=["plain", "drop path", "schedules and few labels"],
)
def test_interrupted_run_ends_in_the_same_weights(
    overrides: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of the second epoch, at once, as by a second Ctrl-C."""
    recipe = tiny(*overrides)
    uninterrupted, interrupted = tmp_path / "uninterrupted", tmp_path / "interrupted"
    run_silently(recipe, uninterrupted)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", CalledBefore(loop.train_step, 5, raise_keyboard_interrupt))
        with pytest.raises(KeyboardInterrupt):
            run_silently(recipe, interrupted)
    assert read_status(interrupted)["status"] == "interrupted"
    assert read_status(interrupted)["step"] == 3
    run_silently(recipe, interrupted)
    assert are_equal(exported_weights(uninterrupted), exported_weights(interrupted))
    assert untimed_rows(uninterrupted) == untimed_rows(interrupted)
    assert read_status(interrupted)["status"] == "finished"


MOMENTS = {
    "baselines": (loop, "evaluate_baselines", 1, 0),
    "first step": (loop, "train_step", 1, 1),
    "step": (loop, "train_step", 5, 5),
    "last step of an epoch": (loop, "train_step", 3, 3),
    "last step": (loop, "train_step", 6, 6),
    "saving the last step": (run_process, "checkpoint_content", 3, 6),
    "evaluation after an epoch": (epoch, "evaluate_now", 1, 3),
    "final evaluation": (loop, "evaluate_now", 1, 6),
    "results": (loop, "report_results", 1, 6),
}
"""When a signal arrives: before the call of which function, and the step that is saved then."""


@pytest.mark.parametrize(
    ("moment", "name"),
    [
        *((moment, "SIGTERM") for moment in MOMENTS),
        *(("step", name) for name in ("SIGINT", "SIGUSR1", "SIGUSR2", "SIGHUP")),
    ],
)
def test_a_signal_stops_a_run_within_a_step_and_nothing_is_lost(
    moment: str, name: str, reference_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, function, number, saved_step = MOMENTS[moment]
    folder = tmp_path / "stopped"
    called = CalledBefore(vars(module)[function], number, send(name))
    with monkeypatch.context() as patch:
        patch.setattr(module, function, called)
        with pytest.raises(Stopped) as stopped:
            run_silently(tiny(), folder)
    assert stopped.value.exit_code == (130 if name == "SIGINT" else 143)
    assert called.calls == number
    status = read_status(folder)
    assert (status["status"], status["signal"], status["step"]) == ("preempted", name, saved_step)
    run_silently(tiny(), folder)
    assert are_equal(exported_weights(reference_run), exported_weights(folder))
    assert untimed_rows(reference_run) == untimed_rows(folder)
    assert result_metrics(reference_run) == result_metrics(folder)


def test_any_step_can_be_resumed(reference_run: Path, tmp_path: Path) -> None:
    """A checkpoint in the middle of an epoch leads to the same weights: no random state has to be saved."""
    recipe = tiny("train.checkpoint_every_steps=1", "train.keep_checkpoints=10")
    run_silently(recipe, tmp_path / "whole")
    steps = sorted((tmp_path / "whole" / "checkpoints").glob("step_*"))
    assert [path.name for path in steps] == [f"step_{step:08d}" for step in range(7)]
    for position in range(len(steps)):
        folder = tmp_path / str(position)
        shutil.copytree(tmp_path / "whole", folder)
        for later in steps[position + 1 :]:
            shutil.rmtree(folder / "checkpoints" / later.name)
        write_status(folder, "running", step=position)
        run_silently(recipe, folder)
        assert are_equal(exported_weights(reference_run), exported_weights(folder))
        assert untimed_rows(reference_run) == untimed_rows(folder)


def test_the_number_of_workers_may_change_when_a_run_goes_on(
    reference_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", CalledBefore(loop.train_step, 5, send("SIGTERM")))
        with pytest.raises(Stopped):
            run_silently(tiny("train.workers=2"), tmp_path / "run")
    run_silently(tiny(), tmp_path / "run")
    assert are_equal(exported_weights(reference_run), exported_weights(tmp_path / "run"))


def test_the_best_checkpoint_is_that_of_the_best_evaluation(tmp_path: Path) -> None:
    run_silently(tiny("train.keep_best=true", "train.epochs=4", "train.keep_checkpoints=1"), tmp_path / "run")
    by_step = {row["step"]: row["knn@5"] for row in metric_rows(tmp_path / "run") if "knn@5" in row}
    by_step[12] = result_metrics(tmp_path / "run")["trained"]["knn@5"]
    best = json.loads((tmp_path / "run" / "checkpoints" / "best.json").read_text())
    assert by_step[best["step"]] == max(by_step.values())
    names = {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()}
    assert names == {"best.json", f"step_{best['step']:08d}", "step_00000012"}


def claim_ranks(folder: Path, ranks: int) -> None:
    """Write into all manifests that so many ranks trained."""
    for path in (folder / "checkpoints").glob("*/manifest.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"ranks": ranks}))


RANKS = {
    "without BatchNorm": (["encoder.backbone=test_vit"], None),
    "with BatchNorm": ([], "BatchNorm layers normalize the images of each rank by themselves"),
    "stochastic depth": (["encoder.backbone=test_vit", "encoder.drop_path=0.1"], "stochastic depth"),
}
"""Overrides, and why another number of ranks would lead to other weights."""


@pytest.mark.parametrize("case", RANKS)
def test_another_number_of_ranks_goes_on_where_it_does_not_matter(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides, reason = RANKS[case]
    overrides = [*overrides, "train.baselines=false", "optim.schedule=constant"]
    run_silently(tiny(*overrides, "train.epochs=1"), tmp_path / "run")
    claim_ranks(tmp_path / "run", 2)
    longer, logger = tiny(*overrides, "train.report=false"), Logger()
    if reason is None:
        train(longer, tmp_path / "run", logger=logger)
        assert "note: 2 ranks until now, 1 from here: the global batches stay the same" in capsys.readouterr().out
        return
    with pytest.raises(UsageError, match=reason) as error:
        train(longer, tmp_path / "run", logger=logger)
    assert str(error.value).endswith("Start it with 2 ranks, or permit it: --allow ranks")
    train(longer, tmp_path / "run", allow=["ranks"], logger=logger)
    assert "; --allow ranks permits it" in capsys.readouterr().out


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
