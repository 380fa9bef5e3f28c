"""From a recipe to the parts that it names, on their device. Nothing here trains."""

from typing import Any

import torch

from reptk.config import Recipe, Table
from reptk.config import build as build_part
from reptk.config.part_tables import common_options, headline_evaluator
from reptk.config.registry import LOSSES, METHODS, VIEWS
from reptk.config.value_schedule import ValueSchedule
from reptk.core import distributed, rng
from reptk.core.device import choose_precision
from reptk.data import Data, Loader, check_num_images, create_sampler
from reptk.evaluate import Evaluator, build_evaluators
from reptk.evaluate.run import ACCURACY
from reptk.methods import Method, needs_full_images
from reptk.training.build_method import build_method
from reptk.training.checkpoint_writer import CheckpointInterval
from reptk.training.early_stopping import ends_in_best
from reptk.training.encoder_parameters import layer_scales, undecayed_parameters
from reptk.training.finite_check import FiniteCheck, RunFacts, allows_asynchronous_check
from reptk.training.input_wait import input_bound_advice
from reptk.training.load_data import data_table, initial_weights
from reptk.training.loss_scaling import ScaledOptimizer
from reptk.training.optim import Schedule, create_optimizer, scale_by_layer, with_groups_of_loss
from reptk.training.parts import Parts, Settings
from reptk.training.recipe_checks import (
    check_batch_size,
    check_evaluated_weights,
    check_frozen_encoder,
    check_lora,
    check_micro_batch_size,
    check_views,
)
from reptk.training.scheduled_values import ScheduledValues, scheduled_arguments, scheduled_weight_decay
from reptk.training.stage_start import load_classifier
from reptk.training.view_sizes import view_count
from reptk.training.weight_average import average_weights


def build(recipe: Recipe, data: Data, device: torch.device) -> Parts:
    """Build everything that a run needs, with initial weights drawn from the recipe's seed.

    Raises:
        UsageError, DataError, EnvironmentProblem: a part cannot be built from its arguments.
    """
    train = recipe.train
    world_size = distributed.world_size()
    check_batch_size(train.batch_size, world_size)
    check_micro_batch_size(train.micro_batch_size, train.micro_batch_norm, world_size)
    check_lora(recipe.encoder)
    check_frozen_encoder(recipe.method, recipe.encoder, recipe.optim.layer_decay)
    check_evaluated_weights(train.evaluated_weights, train.ema_decay)
    check_num_images(data.train, train.batch_size)
    sampler = create_sampler(
        data.train.labels,
        batch_size=train.batch_size,
        seed=recipe.seed,
        classes=data.classes,
        shuffle=common_options(recipe.data).get("shuffle", "global"),
        block_starts=data.train.images.block_starts(),
        **train.sampler.model_dump(),
    )
    with rng.seeded(recipe.seed, "initial weights"):
        method, loss = build_method(recipe, device, num_classes=len(data.classes))
    has_trained_classifier = False
    if recipe.start is not None and recipe.start.classifier == "run":
        has_trained_classifier = load_classifier(method, recipe.start.run, data.classes)
    # A second instance: the views of the method are sharded over the ranks.
    evaluation_views = build_part(VIEWS, recipe.views)
    check_views(evaluation_views, recipe)
    train_split = data.train
    if needs_full_images(METHODS.get(recipe.method["name"]), evaluation_views):
        train_split = data.train.resized("squash")
    loader = Loader(
        train_split,
        batch_size=train.batch_size,
        seed=recipe.seed,
        sampler=sampler,
        rank=distributed.rank(),
        world_size=world_size,
        workers=train.workers,
        device=device,
    )
    settings = _settings(recipe, data, loader.steps_per_epoch, view_count(evaluation_views, recipe), device)
    groups = method.parameter_groups()
    if loss is not None:
        groups = with_groups_of_loss(groups, loss.parameter_groups())
    optimizer, schedule = _optimizer_and_schedule(recipe, method, groups, settings)
    evaluators, every_epochs = build_evaluators(recipe.eval, data, has_classifier=method.classifier is not None)
    is_alone = method.classifier is not None and method.encoder.is_backbone_frozen
    headline = _headline_evaluator(recipe.eval, evaluators, trains_classifier_alone=is_alone)
    if is_alone:
        # The first metric, so that it is the headline of the results, too.
        evaluators = {headline: evaluators[headline], **evaluators}
    return Parts(
        data=data,
        loader=loader,
        method=method,
        optimizer=optimizer,
        scaled_optimizer=ScaledOptimizer(optimizer, settings.precision, device),
        finite_check=_finite_check(data, method, optimizer, settings, device),
        schedule=schedule,
        scheduled_values=_scheduled_values(recipe, method, loss, groups, optimizer, settings),
        evaluators=evaluators,
        headline_evaluator=headline,
        has_trained_classifier=has_trained_classifier,
        every_epochs=every_epochs,
        evaluation_views=evaluation_views,
        device=device,
        settings=settings,
        ema=average_weights(method, train.ema_decay),
    )


def _settings(recipe: Recipe, data: Data, steps_per_epoch: int, num_views: int, device: torch.device) -> Settings:
    """Return the plain values of a recipe.

    Args:
        recipe: of the run.
        data: its data set.
        steps_per_epoch: batches of the loader.
        num_views: views of each image.
        device: where the run trains.
    """
    train = recipe.train
    return Settings(
        name=recipe.title,
        seed=recipe.seed,
        epochs=train.epochs,
        steps_per_epoch=steps_per_epoch,
        total_steps=train.epochs * steps_per_epoch,
        views_per_step=train.batch_size * num_views,
        precision=choose_precision(train.precision, device),
        clip_norm=train.clip_norm,
        lr=recipe.optim.lr,
        loss_name=(recipe.loss or recipe.method)["name"],
        takes_loss=recipe.loss is not None,
        log_every_steps=train.log_every_steps,
        checkpoint_interval=CheckpointInterval(
            train.checkpoint_every_epochs, train.checkpoint_every_steps, train.checkpoint_every_minutes
        ),
        keep_checkpoints=train.keep_checkpoints,
        keeps_best=train.keep_best or ends_in_best(train.final_weights, train.early_stopping_epochs),
        early_stopping_epochs=train.early_stopping_epochs,
        final_weights=train.final_weights,
        rank_timeout_seconds=train.rank_timeout_seconds,
        max_omitted_steps=train.max_omitted_steps,
        evaluates_ema=train.evaluated_weights == "ema",
        drop_path=recipe.encoder.drop_path,
        workers=train.workers,
        measures_baselines=train.baselines,
        writes_report=train.report,
        input_advice=input_bound_advice(data.train.images, recipe.data, train.workers, device),
        initial_weights=initial_weights(recipe),
        start_run=recipe.start.run if recipe.start is not None else None,
        data_table=data_table(recipe),
        evaluator_tables=recipe.eval,
    )


def _headline_evaluator(
    tables: dict[str, Table], evaluators: dict[str, Evaluator], *, trains_classifier_alone: bool
) -> str:
    """Return the key of the evaluator whose metric is the headline; see `headline_evaluator`."""
    key = headline_evaluator(tables, trains_classifier_alone=trains_classifier_alone)
    if trains_classifier_alone and not any(table["name"] == ACCURACY for table in tables.values()):
        # A classifier gets this evaluator without a table.
        key = ACCURACY
    if key in evaluators:
        return key
    # Without labels there is another evaluator than the recipe's.
    return next(iter(evaluators))


def _optimizer_and_schedule(
    recipe: Recipe, method: Method, groups: list[dict[str, Any]], settings: Settings
) -> tuple[torch.optim.Optimizer, Schedule]:
    optim = recipe.optim
    if optim.layer_decay < 1:
        groups = scale_by_layer(groups, layer_scales(method, optim.layer_decay))
    weight_decay = optim.weight_decay
    if isinstance(weight_decay, ValueSchedule):
        # Above 0 where anything is decayed; the schedule sets the value of each step.
        weight_decay = max(weight_decay.start, weight_decay.end)
    optimizer = create_optimizer(
        groups,
        name=optim.name,
        lr=optim.lr,
        weight_decay=weight_decay,
        momentum=optim.momentum,
        decay_all=optim.decay_all,
        undecayed=undecayed_parameters(method),
        fused=settings.precision != "fp16",
    )
    schedule = Schedule(
        optimizer,
        kind=optim.schedule,
        steps=settings.total_steps,
        warmup_steps=round(optim.warmup_epochs * settings.steps_per_epoch),
        warmup_lr=optim.warmup_lr,
        final_lr=optim.lr * optim.final_lr_ratio,
        milestones=optim.milestones,
        gamma=optim.gamma,
    )
    return optimizer, schedule


def _finite_check(
    data: Data, method: Method, optimizer: torch.optim.Optimizer, settings: Settings, device: torch.device
) -> FiniteCheck:
    facts = RunFacts(settings.steps_per_epoch, settings.lr, settings.loss_name, settings.precision)
    is_asynchronous = allows_asynchronous_check(method, optimizer, device)
    return FiniteCheck(data.train.images, facts, device, is_asynchronous=is_asynchronous)


def _scheduled_values(
    recipe: Recipe,
    method: Method,
    loss: Any,
    groups: list[dict[str, Any]],
    optimizer: torch.optim.Optimizer,
    settings: Settings,
) -> ScheduledValues:
    values = []
    if recipe.loss is not None:
        values += scheduled_arguments("loss", recipe.loss, LOSSES.get(recipe.loss["name"]), loss)
    values += scheduled_arguments("method", recipe.method, METHODS.get(recipe.method["name"]), method)
    if isinstance(recipe.optim.weight_decay, ValueSchedule):
        fixed_parameters = []
        for group in groups:
            if "weight_decay" in group:
                fixed_parameters += group["params"]
        values.append(scheduled_weight_decay(recipe.optim.weight_decay, optimizer, fixed_parameters))
    return ScheduledValues(values, total_steps=settings.total_steps, steps_per_epoch=settings.steps_per_epoch)
