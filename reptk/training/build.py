"""From a recipe to the parts that it names, on their device. Nothing here trains."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from math import ceil
from typing import Any, NamedTuple, TypeVar

import torch
from timm.layers import convert_sync_batchnorm
from timm.utils import ModelEmaV3
from torch import nn

from reptk.config import EncoderSection, Recipe, Table
from reptk.config import build as build_part
from reptk.config.part_tables import common_options, headline_evaluator, label_options
from reptk.config.registry import DATASETS, LOSSES, METHODS, VIEWS
from reptk.config.value_schedule import ValueSchedule, at_start
from reptk.core import distributed, rng
from reptk.core.console import Logger
from reptk.core.device import Precision, choose_precision
from reptk.core.errors import DataError, UsageError
from reptk.data import Data, Loader, check_num_images, create_sampler
from reptk.data.labels.label_selection import select_labels
from reptk.data.layouts.folder_scan import SkippedFiles
from reptk.evaluate import Evaluator, build_evaluators
from reptk.evaluate.run import ACCURACY
from reptk.evaluate.verdict import PRETRAINED
from reptk.methods import Method, Step, needs_full_images
from reptk.models.backbone import is_external
from reptk.models.encoder import Encoder
from reptk.models.preprocessing import with_preprocessing
from reptk.training.checkpoint_writer import CheckpointInterval
from reptk.training.early_stopping import ends_in_best
from reptk.training.encoder_parameters import layer_scales, undecayed_parameters
from reptk.training.finite_check import FiniteCheck, RunFacts, allows_asynchronous_check
from reptk.training.input_wait import input_bound_advice
from reptk.training.loss_scaling import ScaledOptimizer
from reptk.training.optim import Schedule, create_optimizer, scale_by_layer, with_groups_of_loss
from reptk.training.recipe_checks import (
    check_batch_norm,
    check_batch_size,
    check_classes,
    check_evaluated_weights,
    check_frozen_encoder,
    check_is_trained,
    check_labels,
    check_lora,
    check_method,
    check_micro_batch_size,
    check_mixing,
    check_other_sizes,
    check_views,
)
from reptk.training.scheduled_values import ScheduledValues, scheduled_arguments, scheduled_weight_decay
from reptk.training.stage_start import load_classifier
from reptk.training.view_sizes import view_count, view_sizes_px
from reptk.training.weight_average import CLASSIFIER, ENCODER, average_weights
from reptk.views import ViewPipeline, Views

T = TypeVar("T")


class Settings(NamedTuple):
    """What training, its messages and its results need from a recipe, as plain values.

    total_steps: optimizer steps of the whole run.
    views_per_step: views of the global batch, over all ranks.
    name: title of the recipe, with its overrides.
    loss_name: name of the loss, or of the method if it takes no loss; for messages.
    takes_loss: whether the method takes a loss on embeddings and ids, which compares rows.
    input_advice: how to shorten the wait for images, as the end of a sentence; see `input_bound_advice`.
    initial_weights: "pretrained", "random" or "starting", those of the backbone before training.
    start_run: folder of the run that a stage starts from; None for no stage.
    data_table, evaluator_tables: the recipe's `[data]`, with the preprocessing that was used, and `[eval]`, which results.json
        records.
    """

    name: str
    seed: int
    epochs: int
    steps_per_epoch: int
    total_steps: int
    views_per_step: int
    precision: Precision
    clip_norm: float
    lr: float
    loss_name: str
    takes_loss: bool
    log_every_steps: int
    checkpoint_interval: CheckpointInterval
    keep_checkpoints: int
    keeps_best: bool
    early_stopping_epochs: int
    final_weights: str
    rank_timeout_seconds: float
    max_omitted_steps: int
    evaluates_ema: bool
    drop_path: float
    workers: int
    measures_baselines: bool
    writes_report: bool
    input_advice: str
    initial_weights: str
    start_run: str | None
    data_table: Table
    evaluator_tables: dict[str, Table]

    @property
    def ends_in_best(self) -> bool:
        """Whether the run ends in the weights of its best evaluation, not in the last ones."""
        return ends_in_best(self.final_weights, self.early_stopping_epochs)

    @property
    def keeps_initial(self) -> bool:
        """Whether the checkpoint of step 0 remains: the run may end in its weights."""
        return self.initial_weights == PRETRAINED and self.measures_baselines


@dataclass
class Parts:
    """The parts of a run, on their device.

    ema: the moving average of the weights of the method's encoder and classifier; None if there is none.
    has_trained_classifier: whether the method starts with the classifier of an earlier run.
    headline_evaluator: the key of the evaluator whose metric is the headline.
    every_epochs: for each key of `evaluators`, after every how many epochs it also runs during training; 0 for never.
    evaluation_views: a second instance of the method's views, which is not sharded over the ranks.
    """

    data: Data
    loader: Loader
    method: Method
    optimizer: torch.optim.Optimizer
    scaled_optimizer: ScaledOptimizer
    finite_check: FiniteCheck
    schedule: Schedule
    scheduled_values: ScheduledValues
    evaluators: dict[str, Evaluator]
    headline_evaluator: str
    has_trained_classifier: bool
    every_epochs: dict[str, int]
    evaluation_views: Views
    device: torch.device
    settings: Settings
    ema: ModelEmaV3 | None = None

    @property
    def encoder(self) -> Encoder:
        """The encoder that is evaluated and exported: the one that the method decides on, or its moving average."""
        if self.ema is not None and self.settings.evaluates_ema:
            return self.ema.module[ENCODER]
        return self.method.encoder

    @property
    def classifier(self) -> nn.Linear | None:
        """The classifier that is evaluated and exported with the encoder; None if the method trains none."""
        if self.method.classifier is not None and self.ema is not None and self.settings.evaluates_ema:
            return self.ema.module[CLASSIFIER]
        return self.method.classifier

    def step(self, number: int) -> Step:
        """Return step `number`, counted from 0, with its random key."""
        settings = self.settings
        return Step(number, settings.total_steps, rng.key(settings.seed, "views", number), settings.steps_per_epoch)


def load_data(recipe: Recipe, logger: Logger | None = None) -> Data:
    """Load the recipe's data set, and check that there are labels if the positives are classes.

    Args:
        recipe: of the run.
        logger: where to say which of the user's files are read and which are skipped; None to warn of skipped files alone.

    Raises:
        DataError: the images are missing or cannot be read, or there are no labels.
    """
    with warnings.catch_warnings():
        if logger is not None:
            warnings.simplefilter("ignore", SkippedFiles)  # the summary counts them
        try:
            data = _in_turns_if(recipe.data.get("download"), lambda: build_part(DATASETS, data_table(recipe)))
        except OSError as cause:
            raise DataError(f"{recipe.data['name']}: {cause}") from cause
    options = label_options(recipe.data)
    if options:
        seed = recipe.seed
        if recipe.start is not None and recipe.start.label_seed is not None:
            # The labels of the run: the stage is not to use more than these.
            seed = recipe.start.label_seed
        data = select_labels(data, options.get("labelled"), only_labelled=options["only_labelled"], seed=seed)
    if METHODS.takes(recipe.method["name"], "num_classes"):
        check_classes(METHODS.kind, recipe.method, recipe, data)
    elif recipe.loss is not None and LOSSES.takes(recipe.loss["name"], "num_classes"):
        check_classes(LOSSES.kind, recipe.loss, recipe, data)
    elif recipe.method.get("positives") == "class":
        check_labels(recipe, data)
    if logger is not None:
        for line in data.summary:
            logger.line(line)
    return data


def _in_turns_if(may_download: object, function: Callable[[], T]) -> T:
    """Call a function on all ranks at once, or in turns if it may download files that the later ranks then find."""
    if may_download:
        return distributed.run_in_turns(function)
    return function()


def data_table(recipe: Recipe) -> Table:
    """Return the recipe's `[data]`, with the backbone's preprocessing where it sets none."""
    has_weights = _initial_weights(recipe) == PRETRAINED
    if recipe.start is not None:
        # As the run that it starts from: features are to be those of its evaluation.
        has_weights = recipe.start.pretrained
    return with_preprocessing(recipe.data, recipe.encoder.backbone, has_weights=has_weights, is_trained=True)


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
        initial_weights=_initial_weights(recipe),
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


def build_method(recipe: Recipe, device: torch.device, *, num_classes: int) -> tuple[Method, Any]:
    """Build the recipe's method with its encoder, its views and, if it takes one, its loss; return it and the loss.

    What has a schedule is built with the value of its first step.

    Raises:
        UsageError: a part cannot be built, or cannot run on several ranks.
    """
    train = recipe.train
    views = build_part(VIEWS, recipe.views)
    # A rank must draw what a single process would draw for its images, so views must know which part of the batch they get.
    if views.shard is not None:
        views.shard(distributed.rank(), distributed.world_size())
    elif distributed.world_size() > 1:
        raise UsageError(f"views {recipe.views['name']!r} cannot run on several ranks: they have no shard(rank, world)")
    sizes_px = view_sizes_px(views, recipe)
    # Vision transformers are built for the first size, which is the largest of the shipped views, and used for evaluation.
    encoder = _in_turns_if(
        recipe.encoder.pretrained or recipe.encoder.weights or is_external(recipe.encoder.backbone),
        lambda: Encoder(**recipe.encoder.architecture, size=sizes_px[0], other_sizes=sizes_px[1:]),
    )
    _adapt(encoder, recipe.encoder)
    chunks = 1
    if train.micro_batch_size:
        chunks = ceil(train.batch_size / train.micro_batch_size)
        # The method sees that there are chunks. Its BatchNorm layers are checked below, once it has frozen or removed some.
        encoder.encode_in_chunks(chunks, "approximate")
    check_other_sizes(encoder, sizes_px)
    # `build_part` leaves out what the method's factory has no parameter for.
    supplied = {"encoder": encoder, "views": views, "num_classes": num_classes}
    if recipe.loss is not None:
        loss_table = at_start(LOSSES.get(recipe.loss["name"]), recipe.loss)
        # For losses with learned vectors of each class.
        supplied["loss"] = build_part(LOSSES, loss_table, num_classes=num_classes, embedding_dim=encoder.embedding_dim)
    method = build_part(METHODS, at_start(METHODS.get(recipe.method["name"]), recipe.method), **supplied)
    check_method(method, recipe.method["name"])
    encoder.encode_in_chunks(chunks, train.micro_batch_norm)
    check_mixing(method, train.batch_size)
    check_is_trained(method, supplied.get("loss"), recipe.encoder)
    if not train.sync_batchnorm:
        check_batch_norm(method, train.batch_size)
    if train.sync_batchnorm:
        if device.type != "cuda":
            raise UsageError(
                f"train.sync_batchnorm needs CUDA devices, and this run is on {device.type}, where torch cannot compute the "
                "statistics of all ranks; leave it out, or set train.device=cuda"
            )
        method = convert_sync_batchnorm(method)
    method = method.to(device)
    if train.grad_checkpointing:
        encoder.checkpoint_activations()
    if train.compile:
        # In place: torch.compile(module) would return a wrapper, whose state dict has other names.
        encoder.backbone.compile()
        if device.type == "cuda" and isinstance(views, ViewPipeline):
            views.compile()
    if train.channels_last:
        method = method.to(memory_format=torch.channels_last)
    return method, supplied.get("loss")


def _adapt(encoder: Encoder, section: EncoderSection) -> None:
    """Freeze parts of an encoder, or give it LoRA layers, as a recipe says."""
    if section.freeze != "none" or section.freeze_batchnorm:
        encoder.freeze(section.freeze, batch_norm=section.freeze_batchnorm)
    if section.lora_rank:
        encoder.add_lora(
            section.lora_layers, rank=section.lora_rank, alpha=section.lora_alpha, dropout=section.lora_dropout
        )


def _initial_weights(recipe: Recipe) -> str:
    if recipe.start is not None:
        return "starting"
    if recipe.encoder.pretrained or recipe.encoder.weights is not None:
        return PRETRAINED
    return "random"
