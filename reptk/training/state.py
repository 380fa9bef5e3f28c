"""The state of a run: what a checkpoint holds, and how it is restored."""

from dataclasses import dataclass, field
from typing import Any

from reptk.core.errors import DataError
from reptk.evaluate import Evaluation
from reptk.training.early_stopping import BestEvaluation
from reptk.training.meters import StepClock, StepMeter
from reptk.training.optim import check_state_of_fused
from reptk.training.parts import Parts, Settings

CHECKPOINT_KEYS = (
    "step",
    "seconds",
    "steps_without_positives",
    "loss",
    "baselines",
    "unfinished_epoch",
    "metrics_rows",
    "omitted_steps",
    "method",
    "optimizer",
    "scaled_optimizer",
)
"""What every checkpoint holds. Those of earlier versions lack "best_evaluation" and "warnings"."""


EMA_KEY = "ema"
"""Key of the moving average of the encoder's weights, which only runs with `train.ema_decay` have."""

HARD_NEGATIVES_KEY = "hard_negatives"
"""Key of what was mined for the batches of an epoch, which only runs with `train.sampler.hard_negatives` have."""


@dataclass
class RunState:
    """The state of a run, apart from that of its method and optimizer.

    There is no random state in it, since order, views and dropout are functions of the seed and the step
    (`reptk.core.rng`), and none of the schedule, which is a function of the step, too.

    Args:
        step: number of optimizer steps that are done.
        clock: counts seconds and views.
        meter: records losses and embeddings.
        baselines: the evaluations before training, by row of the results ("raw pixels", "untrained").
        unfinished_epoch: the row of metrics.jsonl of the epoch that ended with this step, as long as the evaluation after it is
            not done; None otherwise.
        metrics_rows: rows of metrics.jsonl up to this step.
        omitted_steps: numbers of the steps that are left out since they gave a value that is not finite.
        best_evaluation: the best one during training; None before the first.
        warnings: by kind ("collapse", "prototypes", "divergence", "temperature", "shortcut"), the numbers of the epochs that
            ended with this warning.
    """

    step: int = 0
    clock: StepClock = field(default_factory=StepClock)
    meter: StepMeter = field(default_factory=StepMeter)
    baselines: dict[str, Evaluation] = field(default_factory=dict)
    unfinished_epoch: dict[str, Any] | None = None
    metrics_rows: int = 0
    omitted_steps: list[int] = field(default_factory=list)
    best_evaluation: BestEvaluation | None = None
    warnings: dict[str, list[int]] = field(default_factory=dict)

    def seconds_left(self, settings: Settings) -> float:
        """Estimate the seconds until the last step, from the rate so far."""
        steps_left = settings.total_steps - self.step
        return steps_left * self.clock.seconds_for(settings.views_per_step)


def checkpoint_content(parts: Parts, state: RunState) -> dict[str, Any]:
    """Return what a checkpoint holds. Its tensors are those that training changes."""
    best_evaluation = None
    if state.best_evaluation is not None:
        best_evaluation = state.best_evaluation._asdict()
    content = {
        "step": state.step,
        "seconds": state.clock.seconds,
        "steps_without_positives": state.meter.steps_without_positives,
        "loss": state.meter.loss,
        "baselines": {row: evaluation.state_dict() for row, evaluation in state.baselines.items()},
        "unfinished_epoch": state.unfinished_epoch,
        "metrics_rows": state.metrics_rows,
        "omitted_steps": state.omitted_steps,
        "best_evaluation": best_evaluation,
        "warnings": state.warnings,
        "method": parts.method.state_dict(),
        "optimizer": parts.optimizer.state_dict(),
        "scaled_optimizer": parts.scaled_optimizer.state_dict(),
    }
    if parts.ema is not None:
        content[EMA_KEY] = parts.ema.module.state_dict()
    hard_negatives = parts.loader.sampler.hard_negatives
    if hard_negatives is not None:
        content[HARD_NEGATIVES_KEY] = hard_negatives.state_dict()
    return content


def restore_weights(parts: Parts, saved: dict[str, Any]) -> None:
    """Load the weights of a checkpoint's method, and their moving average, into the parts, and nothing else.

    Raises:
        DataError: they do not fit.
    """
    try:
        parts.method.load_state_dict(saved["method"])
        if parts.ema is not None:
            parts.ema.module.load_state_dict(saved[EMA_KEY])
    except (RuntimeError, ValueError, LookupError, TypeError, AttributeError) as cause:
        raise DataError(f"the checkpoint does not fit what the recipe builds: {cause}") from cause


def restore(parts: Parts, saved: dict[str, Any] | None) -> RunState:
    """Load a checkpoint into the parts and return its state; if there is none, return the initial state.

    Raises:
        DataError: the checkpoint lacks something, or does not fit the parts.
    """
    if saved is None:
        return RunState()
    keys = CHECKPOINT_KEYS
    if parts.ema is not None:
        keys = (*keys, EMA_KEY)
    hard_negatives = parts.loader.sampler.hard_negatives
    if hard_negatives is not None:
        keys = (*keys, HARD_NEGATIVES_KEY)
    missing = [key for key in keys if not isinstance(saved, dict) or key not in saved]
    if missing:
        raise DataError(
            f"the checkpoint was written by another version of reptk and cannot be resumed: it lacks {', '.join(missing)}. "
            "Train again, with another --out"
        )
    # The evaluators and views have no state, nor has the loader but for hard negatives.
    try:
        parts.method.load_state_dict(saved["method"])
        check_state_of_fused(parts.optimizer, saved["optimizer"])
        parts.optimizer.load_state_dict(saved["optimizer"])
        parts.scaled_optimizer.load_state_dict(saved["scaled_optimizer"])
        if parts.ema is not None:
            parts.ema.module.load_state_dict(saved[EMA_KEY])
        if hard_negatives is not None:
            hard_negatives.load_state_dict(saved[HARD_NEGATIVES_KEY])
        baselines = {str(row): Evaluation.from_state(state) for row, state in saved["baselines"].items()}
        return _plain_state(parts, saved, baselines)
    except (RuntimeError, ValueError, LookupError, TypeError, AttributeError) as cause:
        raise DataError(
            f"the checkpoint does not fit what the recipe builds: {cause}. Train again, with another --out"
        ) from cause


def _plain_state(parts: Parts, saved: dict[str, Any], baselines: dict[str, Evaluation]) -> RunState:
    """Return the state of the run with values of the types that it needs; a file from elsewhere may hold any."""
    step = int(saved["step"])
    if not 0 <= step <= parts.settings.total_steps:
        raise ValueError(f"it was saved after step {step} of {parts.settings.total_steps}")
    unfinished_epoch = saved["unfinished_epoch"]
    if unfinished_epoch is not None:
        unfinished_epoch = dict(unfinished_epoch)
    best_evaluation = saved.get("best_evaluation")
    if best_evaluation is not None:
        best_evaluation = BestEvaluation.from_state(best_evaluation)
    warnings = {str(kind): [int(epoch) for epoch in epochs] for kind, epochs in saved.get("warnings", {}).items()}
    return RunState(
        step=step,
        clock=StepClock(float(saved["seconds"])),
        meter=StepMeter(int(saved["steps_without_positives"]), float(saved["loss"])),
        baselines=baselines,
        unfinished_epoch=unfinished_epoch,
        metrics_rows=max(0, int(saved["metrics_rows"])),
        omitted_steps=[int(number) for number in saved["omitted_steps"]],
        best_evaluation=best_evaluation,
        warnings=warnings,
    )
