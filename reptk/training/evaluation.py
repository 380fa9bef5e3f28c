"""Evaluation of a run: the baselines before training, the encoder at any time, results and report at the end."""

import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from reptk import report
from reptk.config import Table, complete
from reptk.core import distributed
from reptk.core.console import Logger
from reptk.core.errors import DataError, ReptkError
from reptk.core.foreign_files import read_json
from reptk.data.decoding.resize import Preprocessing
from reptk.evaluate import Evaluation, Evaluator, evaluate_encoder, evaluate_pixels
from reptk.evaluate.features import Progress
from reptk.evaluate.results import build_results, protocol, remarks, table_columns, write_results
from reptk.evaluate.run import ACCURACY, Execution
from reptk.evaluate.verdict import BEFORE_TRAINING, PRETRAINED, PRETRAINED_ENCODER, RAW_PIXELS, UNTRAINED, row_label
from reptk.models.classifier import classifier_bytes
from reptk.training.parts import Parts
from reptk.training.run_record import training_record
from reptk.training.stage_start import start_record
from reptk.training.state import RunState


def evaluate_now(
    parts: Parts,
    evaluators: Iterable[Evaluator] | None = None,
    *,
    during_training: bool = False,
    progress: Progress | None = None,
) -> Evaluation:
    """Evaluate the method's encoder as it is now.

    Args:
        parts: the run's.
        evaluators: those to run; None for all.
        during_training: call `Evaluator.during_training`, which may measure less.
        progress: see `evaluate_encoder`.
    """
    # Each rank updates BatchNorm's running statistics from its own images; evaluation is shared among the ranks.
    distributed.broadcast_buffers(parts.method)
    if parts.ema is not None:
        distributed.broadcast_buffers(parts.ema)
    if evaluators is None:
        evaluators = parts.evaluators.values()
    return evaluate_encoder(
        parts.encoder,
        parts.data,
        evaluators,
        classifier=parts.classifier,
        views=parts.evaluation_views,
        execution=Execution(parts.device, parts.settings.precision, parts.settings.workers),
        progress=progress,
        during_training=during_training,
    )


def save_run_model(parts: Parts, folder: Path) -> None:
    """Write `model/` into the run's folder: the encoder, and the classifier if the method trains one."""
    classifier = None
    if parts.classifier is not None:
        classifier = classifier_bytes(parts.classifier, parts.data.classes)
    data = parts.data
    preprocessing = Preprocessing(data.crop, data.resize, data.interpolation)
    parts.encoder.save(folder / "model", classifier, preprocessing)


def evaluate_baselines(parts: Parts, logger: Logger) -> dict[str, Evaluation]:
    """Evaluate raw pixels and the encoder before training, by row of the results; none if the recipe switches baselines off."""
    if not parts.settings.measures_baselines:
        return {}
    with logger.stages("raw pixels") as progress:
        pixels = evaluate_pixels(
            parts.data,
            parts.evaluators.values(),
            views=parts.evaluation_views,
            workers=parts.settings.workers,
            progress=progress,
        )
    with logger.stages("encoder before training") as progress:
        untrained = evaluate_now(parts, _evaluators_before_training(parts), progress=progress)
    return {RAW_PIXELS: pixels, UNTRAINED: untrained}


def _evaluators_before_training(parts: Parts) -> list[Evaluator]:
    """Return the evaluators, without those of a classifier that is not trained yet, which would guess."""
    evaluators = list(parts.evaluators.values())
    if parts.has_trained_classifier:
        return evaluators
    return [evaluator for evaluator in evaluators if not evaluator.needs_classifier]


def run_results(parts: Parts, state: RunState, trained: Evaluation, commit: str | None) -> dict[str, Any]:
    """Return the content of results.json, apart from `model`.

    Args:
        parts: the run's.
        state: the run's, with the baselines.
        trained: the evaluation of the trained encoder.
        commit: of the code that trained, None if unknown.
    """
    settings = parts.settings
    training = training_record(parts, state)
    measured = _protocol(parts, state.clock.seconds, commit)
    measured |= {"epochs": training["epochs"], "final_weights": settings.final_weights}
    if settings.initial_weights == PRETRAINED:
        measured[UNTRAINED] = PRETRAINED_ENCODER
    return build_results({**state.baselines, "trained": trained}, parts.data, measured, training=training)


def report_results(results: dict[str, Any], trained: Evaluation, folder: Path, logger: Logger) -> None:
    """Print the results, and write results.json into the run's folder.

    Args:
        results: the content of results.json.
        trained: the evaluation of the trained encoder.
        folder: the run's.
        logger: where to print.
    """
    measured, weights = results["protocol"], results["model"]["weights"]
    labeled_rows = {row_label(row, measured): values for row, values in results["metrics"].items()}
    logger.line()
    logger.results(table_columns(trained.metrics), labeled_rows)
    logger.verdict(results["verdict"], remarks(trained))
    distributed.run_on_main(lambda: write_results(folder, results, trained))
    model = "model"
    if weights != "last":
        model = f"model ({weights})"
    seconds = measured["train_seconds"]
    logger.line(f"  results  {folder / 'results.json'}     {model}  {folder / 'model'}     trained in {seconds:.0f} s")


def trained_metrics(folder: Path) -> dict[str, float]:
    """Return the trained encoder's metrics of a finished run, from its results.json.

    Raises:
        DataError: the file is missing or damaged.
    """
    path = folder / "results.json"
    try:
        return dict(read_json(path)["metrics"]["trained"])
    except (OSError, ValueError, KeyError, TypeError) as cause:
        raise DataError(f"{path} of a finished run cannot be read: {cause!r}") from cause


def write_report(parts: Parts, folder: Path, logger: Logger) -> None:
    """Write report.html. If that fails, the run has still succeeded, and a line says how to try again."""
    with logger.status("drawing the report"):
        message = distributed.run_on_main(lambda: _try_to_write_report(parts, folder))
    logger.line(f"  {message}")


def _try_to_write_report(parts: Parts, folder: Path) -> str:
    try:
        return f"report   {report.write(folder, data=parts.data)}"
    except (ReptkError, OSError) as cause:
        return f"no report: {cause}. Try again: reptk report {shlex.quote(str(folder))}"


def _protocol(parts: Parts, seconds: float, commit: str | None) -> dict[str, Any]:
    """Return how the numbers were measured and how the encoder was trained, for results.json."""
    settings = parts.settings
    device_name = str(parts.device)
    if parts.device.type == "cuda":
        device_name = torch.cuda.get_device_name(parts.device)
    weights = f"{settings.initial_weights} weights"
    details = {}
    if settings.start_run is not None:
        weights = f"that of {settings.start_run}"
        details["start"] = start_record(settings.start_run)
    if settings.evaluates_ema:
        details["weights"] = "moving average"
    return {
        "recipe": settings.name,
        UNTRAINED: f"{BEFORE_TRAINING} ({weights})",
        "initial_weights": settings.initial_weights,
        **protocol(settings.data_table, parts.data, _evaluator_tables(parts), parts.encoder, commit=commit),
        **details,
        "epochs": settings.epochs,
        "seed": settings.seed,
        "train_seconds": round(seconds, 1),
        "device": device_name,
        "ranks": distributed.world_size(),
    }


def _evaluator_tables(parts: Parts) -> dict[str, Table]:
    """Return the recipe's tables of evaluators, and that of the accuracy which a classifier gets without one."""
    tables = dict(parts.settings.evaluator_tables)
    if ACCURACY in parts.evaluators and ACCURACY not in tables:
        table = complete(f"eval.{ACCURACY}", {"name": ACCURACY})
        tables[ACCURACY] = {**table, "every_epochs": parts.every_epochs[ACCURACY]}
    return tables
