"""The training loop, in the order in which it runs: `train` evaluates two baselines, trains, evaluates and reports."""

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import reptk
from reptk.config import Recipe
from reptk.core import distributed, environment, rng
from reptk.core.console import EpochProgress, Logger
from reptk.core.device import autocast
from reptk.core.errors import NumericalError, UsageError
from reptk.data import DevicePrefetcher
from reptk.data.bad_samples import BadSamples
from reptk.methods import Batch, Step
from reptk.training import checkpoint, run_folder
from reptk.training.build import Parts, build, describe, dropped_images_note, load_data
from reptk.training.compiler_errors import explain_compiler_errors
from reptk.training.epoch import EpochEnd
from reptk.training.evaluation import evaluate_baselines, evaluate_now, report_results, write_report
from reptk.training.health import check_outputs
from reptk.training.interrupt import InterruptHandler
from reptk.training.loss_scaling import gradient_norm
from reptk.training.optim import learning_rate
from reptk.training.state import RunState, restore, save


def train(
    recipe: Recipe,
    out: str | Path | None = None,
    *,
    resume: bool = False,
    logger: Logger | None = None,
    notes: Sequence[str] = (),
) -> dict[str, float]:
    """Train a recipe and evaluate it.

    Args:
        recipe: from `load`.
        out: the run's folder, new or empty; None for the next unused `runs/NAME/N`. To resume, the folder of the run.
        resume: continue from the folder's last checkpoint.
        logger: where to print and log; standard output by default.
        notes: lines to print below the description of the run, e.g. `reptk.config.override_notes`.

    Returns:
        The trained encoder's metrics, e.g. `{"knn@20": 0.75, ...}`, as shares between 0 and 1.

    Raises:
        ReptkError: its subclass says what has to change; status.json in the run's folder records the reason.
    """
    if resume and out is None:
        raise UsageError("which run is to be resumed? Name its folder: train(recipe, folder, resume=True)")
    device = distributed.setup(recipe.train.device)
    logger = logger or Logger(prints=distributed.is_main())
    # Everything that may be wrong with the recipe or the data is found before there is a folder.
    parts = build(recipe, load_data(recipe, logger), device)
    # On rank 0 alone, since every call of `create` takes another number.
    recorded_epochs = parts.settings.epochs
    if resume:
        recorded_epochs = run_folder.check_same_recipe(recipe, Path(out)).train.epochs
        run_folder.check_epochs(Path(out), epochs=parts.settings.epochs, steps_per_epoch=parts.settings.steps_per_epoch)
        folder = distributed.run_on_main(lambda: run_folder.reopen(recipe, Path(out)))
    else:
        folder = distributed.run_on_main(lambda: run_folder.create(recipe, out))
    with run_folder.recorded_status(folder, logger, run_folder.resume_command(folder, recipe.plugins)):
        commit = environment.git_commit()  # of the code as it was when the run began
        logger.line(f"reptk {reptk.__version__}  {parts.settings.name}  ->  {folder}", style="bold")
        logger.facts(describe(recipe, parts))
        for note in [*notes, *dropped_images_note(parts)]:
            logger.line(f"note: {note}")
        state = restore(parts, checkpoint.load_last(folder / "checkpoints"))
        if state.step == 0:  # later, the checkpoint holds the baselines
            state.baselines = evaluate_baselines(parts, logger)
        elif parts.settings.epochs != recorded_epochs:
            logger.line(_new_length_message(parts, state, recorded_epochs, recipe.optim.schedule))
        bad_samples = BadSamples(parts.data, logger, folder, parts.device)
        bad_samples.update()
        with explain_compiler_errors(recipe.train.compile):
            train_loop(parts, state, folder, logger, bad_samples)
        # Before the evaluation, which may fail: what was trained is not lost.
        distributed.run_on_main(lambda: parts.encoder.save(folder / "model"))
        with logger.stages("trained encoder") as progress:
            trained = evaluate_now(parts, progress=progress)
        bad_samples.update()
        report_results(parts, state, trained, folder, logger, commit)
    # After the status is "finished": the report is not part of what a run has to achieve.
    if parts.settings.writes_report:
        write_report(parts, folder, logger)
    return trained.metrics


def train_loop(parts: Parts, state: RunState, folder: Path, logger: Logger, bad_samples: BadSamples) -> None:
    """Train from `state.step` to the last step, with a checkpoint and the due evaluations after every epoch."""
    settings = parts.settings
    model = _wrap_in_ddp(parts)
    model.train()
    logger.write_metrics_to(folder / "metrics.jsonl", state.step)
    end_of_epoch = EpochEnd(parts, state, folder, logger)
    end_of_epoch.announce()
    with (
        logger.progress(settings.epochs, settings.steps_per_epoch, state.step) as progress,
        InterruptHandler() as ctrl_c,
        # Closed, so that its threads end with the loop even while a traceback holds this frame.
        closing(parts.loader.batches(state.step, settings.total_steps)) as host_batches,
    ):
        batches = DevicePrefetcher(host_batches, parts.device)
        state.clock.start()
        for number in range(state.step, settings.total_steps):
            batch = Batch(*next(batches))
            parts.schedule.set_step(number)
            outputs = train_step(parts, model, batch, parts.step(number))
            state.step = number + 1
            state.meter.add(outputs)
            if _is_reading_due(parts, state.step):
                _report_steps(parts, state, logger, progress)
            if state.step % settings.steps_per_epoch == 0:
                end_of_epoch.run(progress, batches.waited())
                bad_samples.update()
            # Between two steps, where the state is consistent.
            if ctrl_c.requested:
                if state.meter.unread_steps:
                    _report_steps(parts, state, logger, progress)
                state.clock.stop()
                save(parts, state, folder)
                raise KeyboardInterrupt
    end_of_epoch.warn_of_steps_without_positives()
    end_of_epoch.say_skipped_steps()


def train_step(parts: Parts, model: nn.Module, batch: Batch, step: Step) -> dict[str, Tensor]:
    """Do one step of the optimizer, and return the outputs of the method.

    Args:
        parts: the run's.
        model: the method, or DDP around it.
        batch: of this rank.
        step: its number and its random key.

    Raises:
        NonFiniteStep: the loss, embeddings or the gradient are not finite on a rank, and nothing was changed. On a GPU it may
            be raised by `parts.finite_check.read` instead.
    """
    try:
        outputs = _forward(parts, model, batch, step)
    except NumericalError as cause:
        raise parts.finite_check.forward_failed(cause, batch, step.number) from cause
    check_outputs(outputs, parts.method)
    checked = parts.finite_check.after_forward(outputs, batch, step.number)
    # Outside of autocast, as torch recommends: backward operations run in the types of their forward operations.
    norm = parts.scaled_optimizer.backward(outputs["loss"], model, parts.settings.clip_norm)
    try:
        is_bad = parts.finite_check.after_backward(checked, norm, lambda: _local_gradient_norm(parts, batch, step))
    except NumericalError:
        parts.optimizer.zero_grad()
        raise
    parts.scaled_optimizer.step(is_bad)
    with torch.no_grad():
        parts.method.after_step(step)
    return outputs


def _forward(parts: Parts, model: nn.Module, batch: Batch, step: Step) -> dict[str, Tensor]:
    """Return the outputs of the method, in the precision of the run."""
    settings = parts.settings
    # Dropout and stochastic depth draw from torch's global stream: seeded per step, a resumed run draws the same.
    torch.manual_seed(rng.key(settings.seed, "dropout", step.number, distributed.rank()))
    with autocast(parts.device, settings.precision):
        return model(batch, step)


def _local_gradient_norm(parts: Parts, batch: Batch, step: Step) -> Tensor:
    """Compute a step again without DDP, whose mean of the gradients hides on which rank one is not finite."""
    parts.optimizer.zero_grad()
    _forward(parts, parts.method, batch, step)["loss"].backward()
    return gradient_norm(parts.method)


def _new_length_message(parts: Parts, state: RunState, recorded_epochs: int, schedule: str) -> str:
    """Return how the learning rate goes on if a resumed run has another number of epochs than it had."""
    settings = parts.settings
    before = learning_rate(parts.optimizer)  # of the last step, restored from the checkpoint
    parts.schedule.set_step(state.step)
    after = learning_rate(parts.optimizer)
    message = f"train.epochs={settings.epochs} instead of {recorded_epochs}"
    if schedule == "constant":
        return f"{message}: the learning rate stays {after:g}"
    done = state.step / settings.steps_per_epoch
    return (
        f"{message}: the learning rate follows the {schedule} of {settings.epochs} epochs from here, epoch {done:g}: it goes "
        f"from {before:.3g} to {after:.3g}. The result is not that of {settings.epochs} epochs in one run"
    )


def _is_reading_due(parts: Parts, steps_done: int) -> bool:
    """Whether to read the losses after this step. On a GPU this waits for the device, so it is not done after every step."""
    settings = parts.settings
    is_logged = steps_done % settings.log_every_steps == 0
    is_end_of_epoch = steps_done % settings.steps_per_epoch == 0
    return parts.device.type == "cpu" or is_logged or is_end_of_epoch


def _report_steps(parts: Parts, state: RunState, logger: Logger, progress: EpochProgress) -> None:
    """Check and report the steps since the last reading, and log the last of them if it is due."""
    settings, meter, clock = parts.settings, state.meter, state.clock
    parts.finite_check.read()
    steps = meter.read()
    clock.add(steps * settings.views_per_step)
    progress.step(state.step, meter.loss, clock.views_per_second, state.seconds_left(settings))
    if state.step % settings.log_every_steps:
        return
    counts = {}
    if meter.steps_without_positives:
        counts["steps_without_positives"] = meter.steps_without_positives
    if parts.scaled_optimizer.is_scaling:
        counts["loss_scale"] = parts.scaled_optimizer.scale
        counts["skipped_steps"] = parts.scaled_optimizer.skipped_steps
    logger.metrics(
        step=state.step,
        epoch=state.step / settings.steps_per_epoch,
        loss=meter.loss,
        lr=learning_rate(parts.optimizer),
        views_per_second=round(clock.views_per_second, 1),
        seconds=round(clock.seconds, 2),
        **meter.scalars,
        **counts,
    )


def _wrap_in_ddp(parts: Parts) -> nn.Module:
    if distributed.world_size() == 1:
        return parts.method
    device_ids = [parts.device] if parts.device.type == "cuda" else None
    # Buffers are not broadcast before every step: a queue is the same on all ranks, and BatchNorm's running statistics, which
    # training does not use, are rank 0's in evaluation and in checkpoints.
    return DistributedDataParallel(parts.method, device_ids=device_ids, broadcast_buffers=False)
