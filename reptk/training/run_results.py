"""results.json of a run: what was measured and how, how it was trained, and which weights are in `model/`."""

from pathlib import Path
from typing import Any

import torch

from reptk.core import distributed
from reptk.core.console import Logger
from reptk.evaluate import Evaluation
from reptk.evaluate.results import build_results, protocol, remarks, table_columns, with_model, write_results
from reptk.evaluate.verdict import BEFORE_TRAINING, PRETRAINED, PRETRAINED_ENCODER, UNTRAINED, row_label
from reptk.training.build import Parts
from reptk.training.final_weights import FinalWeights
from reptk.training.state import RunState


def run_results(parts: Parts, state: RunState, trained: Evaluation, commit: str | None) -> dict[str, Any]:
    """Return the content of results.json, apart from `model`.

    Args:
        parts: the run's.
        state: the run's, with the baselines.
        trained: the evaluation of the trained encoder.
        commit: of the code that trained, None if unknown.
    """
    rows = {**state.baselines, "trained": trained}
    return build_results(rows, parts.data, _protocol(parts, state, commit), training=_training(parts, state))


def report_results(
    parts: Parts, results: dict[str, Any], final: FinalWeights, trained: Evaluation, folder: Path, logger: Logger
) -> None:
    """Print the results, and write results.json into the run's folder.

    Args:
        parts: the run's.
        results: see `run_results`.
        final: which weights are in `model/`.
        trained: the evaluation of the trained encoder.
        folder: the run's.
        logger: where to print.
    """
    model = {"weights": final.weights, "epoch": final.epoch, "rule": parts.settings.final_weights}
    if final.sentence:
        model["sentence"] = final.sentence
    results = with_model(results, model)
    seconds = results["protocol"]["train_seconds"]
    labeled_rows = {row_label(row, results["protocol"]): values for row, values in results["metrics"].items()}
    logger.line()
    logger.results(table_columns(trained.metrics), labeled_rows)
    logger.verdict(results["verdict"], remarks(trained))
    distributed.run_on_main(lambda: write_results(folder, results, trained))
    name = "model"
    if final.weights != "last":
        name = f"model ({final.weights})"
    logger.line(f"  results  {folder / 'results.json'}     {name}  {folder / 'model'}     trained in {seconds:.0f} s")


def run_end_details(results: dict[str, Any], final: FinalWeights) -> dict[str, Any]:
    """Return what status.json says of a finished run: which weights are in `model/`, and whether it stopped early."""
    details: dict[str, Any] = {"model": final.weights}
    if "stopped_early" in results["training"]:
        details["stopped_early_after_epoch"] = results["training"]["epochs"]
    return details


def _training(parts: Parts, state: RunState) -> dict[str, Any]:
    """Return for how long a run was trained, why it ended before, and what it warned of."""
    settings, best = parts.settings, state.best_evaluation
    training: dict[str, Any] = {"epochs": _epochs_done(parts, state), "warnings": state.warnings}
    if state.step < settings.total_steps and best is not None:
        training["stopped_early"] = {
            "epochs": settings.epochs,
            "best_epoch": best.step // settings.steps_per_epoch,
            "metric": best.metric,
            "value": best.value,
            "patience_epochs": settings.early_stopping_epochs,
        }
    return training


def _protocol(parts: Parts, state: RunState, commit: str | None) -> dict[str, Any]:
    """Return how the numbers were measured and how the encoder was trained, for results.json."""
    settings = parts.settings
    device_name = str(parts.device)
    if parts.device.type == "cuda":
        device_name = torch.cuda.get_device_name(parts.device)
    before_training = f"{BEFORE_TRAINING} ({settings.initial_weights} weights)"
    if settings.initial_weights == PRETRAINED:
        before_training = PRETRAINED_ENCODER
    return {
        "recipe": settings.name,
        UNTRAINED: before_training,
        **protocol(settings.data_table, parts.data, settings.evaluator_tables, parts.encoder, commit=commit),
        "epochs": _epochs_done(parts, state),
        "final_weights": settings.final_weights,
        "seed": settings.seed,
        "train_seconds": round(state.clock.seconds, 1),
        "device": device_name,
        "ranks": distributed.world_size(),
    }


def _epochs_done(parts: Parts, state: RunState) -> int:
    return state.step // parts.settings.steps_per_epoch
