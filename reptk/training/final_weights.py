"""Which weights a run ends in: the last ones, those of its best evaluation, or pretrained ones that training made worse.

`train.final_weights` decides:

last    the weights after the last step.
best    the weights of the best evaluation (`reptk.training.early_stopping`), that after the last step included.
auto    as "best" with early stopping, otherwise as "last". And if training began with pretrained weights and made them worse
        (`reptk.evaluate.verdict.is_clearly_worse`), `model/` holds the encoder as it was before training.

The weights come from checkpoints, which remain: a finished run that is resumed with another value ends in other weights. Those
of the best evaluation are kept by runs that end in them, and by those with `train.keep_best`.
"""

from typing import Any, NamedTuple

from reptk.core import distributed
from reptk.core.metric_names import display_name
from reptk.evaluate import Evaluation
from reptk.evaluate.results import with_model
from reptk.evaluate.verdict import PRETRAINED, PRETRAINED_ENCODER, is_clearly_worse
from reptk.training import checkpoint
from reptk.training.checkpoint import Checkpoint
from reptk.training.early_stopping import best_after
from reptk.training.evaluation import evaluate_now, save_run_model
from reptk.training.parts import Parts
from reptk.training.run_process import RunProcess
from reptk.training.state import RunState, restore_weights

LAST = "last"
BEST = "best"


class FinalWeights(NamedTuple):
    """Which weights the method has, and `model/` holds.

    weights: "last", "best" or "pretrained".
    epoch: number of epochs that they were trained.
    sentence: for the output and results.json; empty for the last ones.
    metric: by which they were chosen among the evaluations of the run; empty if they were not.
    """

    weights: str
    epoch: float
    sentence: str = ""
    metric: str = ""


def take_best(parts: Parts, state: RunState, process: RunProcess, last: Evaluation) -> tuple[Evaluation, FinalWeights]:
    """Restore the weights of the best evaluation if the run is to end in them, and write them to `model/`.

    Args:
        parts: the run's, with the weights after the last step.
        state: the run's.
        process: that trains.
        last: the evaluation of the weights after the last step.

    Returns:
        The evaluation of the weights that the method has now, and which they are.
    """
    settings = parts.settings
    best = best_after(state.best_evaluation, last.metrics, state.step)
    if settings.keeps_best and best is not None and best.step == state.step:
        process.mark_best(parts, state)
    final = FinalWeights(LAST, state.step / settings.steps_per_epoch)
    if not settings.ends_in_best or best is None:
        return last, final
    if best.step == state.step:
        return last, final._replace(metric=best.metric)
    best_epoch = best.step / settings.steps_per_epoch
    saved = _load(process, best.step)
    if saved is None:
        process.logger.line(
            f"there is no intact checkpoint of epoch {best_epoch:g}, whose {display_name(best.metric)} is the best, so the run "
            "ends in its last weights. train.keep_best=true keeps it"
        )
        return last, final
    restore_weights(parts, saved.state)
    distributed.run_on_main(lambda: save_run_model(parts, process.folder))
    with process.logger.stages("best encoder") as progress:
        evaluation = evaluate_now(parts, progress=progress)
    sentence = (
        f"model/ holds the weights after epoch {best_epoch:g}, and the row trained is theirs: {display_name(best.metric)} was "
        f"the best of {final.epoch:g} epochs ({_of_last(last, best.metric)}). {_how_to_take(LAST)}"
    )
    return evaluation, FinalWeights(BEST, best_epoch, sentence, best.metric)


def take_pretrained_if_better(
    parts: Parts, process: RunProcess, results: dict[str, Any], trained: FinalWeights
) -> dict[str, Any]:
    """Restore the pretrained encoder and write it to `model/` if training made it worse and the run may end in it.

    Args:
        parts: the run's, with the weights that the last row of the results was measured with.
        process: that trains.
        results: the content of results.json, apart from `model`.
        trained: which weights those are.

    Returns:
        The results with `model`, which says what weights the method has now.
    """
    final = _trained_or_pretrained(parts, process, results, trained)
    model = {"weights": final.weights, "epoch": final.epoch, "rule": parts.settings.final_weights}
    if final.metric:
        model["metric"] = final.metric
    if final.sentence:
        model["sentence"] = final.sentence
    return with_model(results, model)


def _trained_or_pretrained(
    parts: Parts, process: RunProcess, results: dict[str, Any], trained: FinalWeights
) -> FinalWeights:
    settings = parts.settings
    if settings.final_weights != "auto" or settings.initial_weights != PRETRAINED:
        return trained
    # The ranks share the evaluation and may round differently.
    if not distributed.run_on_main(lambda: is_clearly_worse(results)):
        return trained
    saved = _load(process, 0)
    if saved is None:
        process.logger.line(
            f"training made {PRETRAINED_ENCODER} worse, but the checkpoint of step 0, which holds it, is missing or damaged; "
            "model/ holds the trained one"
        )
        return trained
    restore_weights(parts, saved.state)
    distributed.run_on_main(lambda: save_run_model(parts, process.folder))
    sentence = (
        f"model/ holds {PRETRAINED_ENCODER}, which is the better one; its head is untrained. "
        f"{_how_to_take(trained.weights)}"
    )
    return FinalWeights(PRETRAINED, 0.0, sentence)


def _load(process: RunProcess, step: int) -> Checkpoint | None:
    """Read the checkpoint of a step; None if there is none that is intact."""
    checkpoints = process.folder / "checkpoints"
    return checkpoint.chosen_by_rank_0(lambda: checkpoint.load_step(checkpoints, step))


def _of_last(last: Evaluation, metric: str) -> str:
    if metric not in last.metrics:
        return "the last weights lack it"
    return f"the last weights: {100 * last.metrics[metric]:.1f} %"


def _how_to_take(weights: str) -> str:
    """Say how a finished run is made to end in the trained weights."""
    return f"The {_names(weights)} weights are in checkpoints/; to take them, resume the run with train.final_weights={weights}"


def _names(weights: str) -> str:
    if weights == BEST:
        return "best trained"
    return "last"
