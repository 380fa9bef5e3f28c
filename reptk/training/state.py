"""The state of a run, saved into a checkpoint and restored from it."""

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from reptk.core import distributed
from reptk.core.errors import DataError, EnvironmentProblem
from reptk.evaluate import Evaluation
from reptk.training import checkpoint
from reptk.training.build import Parts, Settings
from reptk.training.checkpoint_check import check_optimizer_state
from reptk.training.health import check_finite_weights
from reptk.training.meters import StepClock, StepMeter

CHECKPOINT_KEYS = (
    "step",
    "seconds",
    "steps_without_positives",
    "baselines",
    "method",
    "optimizer",
    "scaled_optimizer",
)


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
    """

    step: int = 0
    clock: StepClock = field(default_factory=StepClock)
    meter: StepMeter = field(default_factory=StepMeter)
    baselines: dict[str, Evaluation] = field(default_factory=dict)

    def seconds_left(self, settings: Settings) -> float:
        """Estimate the seconds until the last step, from the rate so far."""
        steps_left = settings.total_steps - self.step
        return steps_left * self.clock.seconds_for(settings.views_per_step)


def restore(parts: Parts, saved: dict[str, Any] | None) -> RunState:
    """Load a checkpoint into the parts and return its state; if there is none, return the initial state.

    Raises:
        DataError: another version of reptk wrote it, or it is that of another run.
    """
    if saved is None:
        return RunState()
    if not isinstance(saved, dict) or not set(CHECKPOINT_KEYS) <= saved.keys():
        raise DataError(
            "the checkpoint was written by another version of reptk and cannot be continued; train again, with another --out"
        )
    try:
        return _restore(parts, saved)
    except (AttributeError, KeyError, IndexError, RuntimeError, TypeError, ValueError) as cause:
        # Its hash is right, so that it was written as it is, for another model or by another program.
        reason = str(cause).splitlines()[0]
        raise DataError(f"the checkpoint does not fit this run ({reason}); train again, with another --out") from cause


def _restore(parts: Parts, saved: dict[str, Any]) -> RunState:
    # The evaluators, views and the loader have no state.
    parts.method.load_state_dict(saved["method"])
    check_optimizer_state(parts.optimizer, saved["optimizer"])
    parts.optimizer.load_state_dict(saved["optimizer"])
    parts.scaled_optimizer.load_state_dict(saved["scaled_optimizer"])
    step = int(saved["step"])
    if not 0 <= step <= parts.settings.total_steps:
        raise ValueError(f"it was saved after step {step} of {parts.settings.total_steps}")
    return RunState(
        step=step,
        clock=StepClock(float(saved["seconds"])),
        meter=StepMeter(int(saved["steps_without_positives"])),
        baselines={str(row): Evaluation.from_state(state) for row, state in saved["baselines"].items()},
    )


def save(parts: Parts, state: RunState, folder: Path) -> None:
    """Write a checkpoint into the run's folder, from rank 0.

    Raises:
        NumericalError: a weight is NaN or infinite; nothing is written.
        EnvironmentProblem: the disk is full or cannot be written.
    """
    content = {
        "step": state.step,
        "seconds": state.clock.seconds,
        "steps_without_positives": state.meter.steps_without_positives,
        "baselines": {row: evaluation.state_dict() for row, evaluation in state.baselines.items()},
        "method": parts.method.state_dict(),
        "optimizer": parts.optimizer.state_dict(),
        "scaled_optimizer": parts.scaled_optimizer.state_dict(),
    }
    # Every rank raises if rank 0 cannot write, so that none goes on alone.
    distributed.run_on_main(partial(_write, folder, content))


def _write(folder: Path, content: dict[str, Any]) -> None:
    check_finite_weights(content["method"], content["step"])
    try:
        checkpoint.save(folder / "checkpoints", content["step"], content)
    except (OSError, RuntimeError) as cause:
        raise EnvironmentProblem(f"cannot save a checkpoint in {folder}: {cause}") from cause
