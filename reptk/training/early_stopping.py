"""Early stopping: the best evaluation of a run so far, and whether it is too long ago.

What decides is the headline number of the evaluations after epochs (`eval.NAME.every_epochs`). The record is a part of the
checkpoint, so a resumed run stops after the same epoch as the run that nothing has disturbed.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from reptk.core import distributed
from reptk.core.counts import format_count
from reptk.core.metric_names import display_name
from reptk.evaluate.results import headline


class BestEvaluation(NamedTuple):
    """The best evaluation so far.

    metric: name of what is compared, e.g. "knn@20".
    value: higher is better.
    step: number of steps done at this evaluation.
    last_step: number of steps done at the last evaluation that had the metric.
    """

    metric: str
    value: float
    step: int
    last_step: int

    @classmethod
    def from_state(cls, saved: Mapping[str, Any]) -> "BestEvaluation":
        """Return the record that a checkpoint holds (`_asdict`)."""
        return cls(str(saved["metric"]), float(saved["value"]), int(saved["step"]), int(saved["last_step"]))


def ends_in_best(final_weights: str, early_stopping_epochs: int) -> bool:
    """Return whether a run with these values of `[train]` ends in the weights of its best evaluation, not in the last ones."""
    if final_weights == "auto":
        return early_stopping_epochs > 0
    return final_weights == "best"


def best_after(best: BestEvaluation | None, metrics: Mapping[str, float], step: int) -> BestEvaluation | None:
    """Return the best evaluation after a further one. Every rank has to call this.

    The first of equal values remains the best.

    Args:
        best: before; None if there was no evaluation.
        metrics: of the further one. If it lacks the metric that is compared, nothing changes.
        step: number of steps done.
    """
    if best is not None:
        metric = best.metric
    else:
        metric = headline(metrics)
    if metric not in metrics:
        return best
    # The ranks share the evaluation and may round differently; what rank 0 has counts for all.
    value = distributed.run_on_main(lambda: float(metrics[metric]))
    if best is None or value > best.value or math.isnan(best.value):
        return BestEvaluation(metric, value, step, step)
    return best._replace(last_step=step)


def is_out_of_patience(best: BestEvaluation | None, patience_epochs: int, steps_per_epoch: int) -> bool:
    """Return whether so many epochs, up to the last evaluation, did not improve the metric. 0 epochs: never."""
    if best is None or patience_epochs == 0:
        return False
    return best.last_step - best.step >= patience_epochs * steps_per_epoch


def stop_message(
    best: BestEvaluation, *, patience_epochs: int, steps_per_epoch: int, epochs: int, schedule: str, lr: float
) -> str:
    """Return the line about a run that stops early.

    Args:
        best: the best evaluation.
        patience_epochs: `train.early_stopping_epochs`.
        steps_per_epoch: of the run.
        epochs: those of the recipe.
        schedule: of the learning rate.
        lr: learning rate of the last step.
    """
    last_epoch = best.last_step // steps_per_epoch
    best_epoch = best.step // steps_per_epoch
    message = (
        f"stopped early after epoch {last_epoch} of {epochs}: {display_name(best.metric)} is no better than after epoch "
        f"{best_epoch}, {100 * best.value:.1f} % (train.early_stopping_epochs={patience_epochs})"
    )
    if schedule == "constant":
        return message
    return (
        f"{message}. The {schedule} of the learning rate is that of {format_count(epochs, 'epoch')}, and was at {lr:.3g}; a "
        f"run of train.epochs={best_epoch} would go through all of it"
    )
