"""What results.json and status.json say of the training itself: its length, why it ended before, what it warned of."""

from collections.abc import Mapping
from typing import Any

from reptk.training.method_advice import method_advice
from reptk.training.parts import Parts
from reptk.training.run_status import STOPPED_EARLY_KEY
from reptk.training.state import RunState


def training_record(parts: Parts, state: RunState) -> dict[str, Any]:
    """Return `training` of results.json."""
    settings, best = parts.settings, state.best_evaluation
    record: dict[str, Any] = {"epochs": state.step // settings.steps_per_epoch, "warnings": state.warnings}
    advice = {kind: text for kind, text in method_advice(parts).items() if kind in state.warnings}
    if advice:
        record["advice"] = advice
    if parts.method.encoder.is_backbone_frozen:
        record["frozen_backbone"] = True
    if state.step < settings.total_steps and best is not None:
        record["stopped_early"] = {
            "epochs": settings.epochs,
            "best_epoch": best.step // settings.steps_per_epoch,
            "metric": best.metric,
            "value": best.value,
            "patience_epochs": settings.early_stopping_epochs,
        }
    return record


def finished_details(results: Mapping[str, Any]) -> dict[str, Any]:
    """Return what status.json says of a finished run: which weights are in `model/`, and whether it stopped early."""
    details = {"model": results["model"]["weights"]}
    if "stopped_early" in results["training"]:
        details[STOPPED_EARLY_KEY] = results["training"]["epochs"]
    return details
