"""From a recipe to the parts that it names, on their device. Nothing here trains."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from math import ceil
from typing import Any, NamedTuple, TypeVar

import torch
from timm.layers import convert_sync_batchnorm
from torch import nn

from reptk.config import Recipe, Table
from reptk.config import build as build_part
from reptk.config.registry import DATASETS, LOSSES, METHODS, VIEWS
from reptk.core import distributed, rng
from reptk.core.console import Logger
from reptk.core.counts import format_count
from reptk.core.device import Precision, choose_precision
from reptk.core.errors import DataError, UsageError
from reptk.data import Data, Loader, check_num_images
from reptk.data.folder_scan import SkippedFiles
from reptk.evaluate import Evaluator, build_evaluators
from reptk.evaluate.verdict import PRETRAINED
from reptk.methods import Method, Step, draws_on_whole_pictures
from reptk.models.backbone import is_external
from reptk.models.encoder import Encoder, eval_mode
from reptk.models.grad_cache import BATCH_NORMS
from reptk.models.preprocessing import with_preprocessing
from reptk.training.checkpoint_writer import CheckpointInterval
from reptk.training.early_stopping import ends_in_best
from reptk.training.finite_check import FiniteCheck, RunFacts, allows_asynchronous_check
from reptk.training.health import input_bound_advice
from reptk.training.loss_scaling import ScaledOptimizer
from reptk.training.optim import Schedule, create_optimizer
from reptk.views import ViewPipeline, Views

T = TypeVar("T")

DEFAULT_SIZE_PX = 224
DEFAULT_VIEW_COUNT = 2

MANY_DROPPED = 0.1
"""Share of the training images which an epoch may leave out without a hint at another batch size."""


class Settings(NamedTuple):
    """What training, its messages and its results need from a recipe, as plain values.

    total_steps: optimizer steps of the whole run.
    views_per_step: views of the global batch, over all ranks.
    name: title of the recipe, with its overrides.
    loss_name: name of the loss, or of the method if it takes no loss; for messages.
    input_advice: how to shorten the wait for images, as the end of a sentence; see `input_bound_advice`.
    initial_weights: "pretrained" or "random", those of the backbone before training.
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
    log_every_steps: int
    checkpoint_interval: CheckpointInterval
    keep_checkpoints: int
    keeps_best: bool
    early_stopping_epochs: int
    final_weights: str
    rank_timeout_seconds: float
    max_omitted_steps: int
    drop_path: float
    workers: int
    measures_baselines: bool
    writes_report: bool
    input_advice: str
    initial_weights: str
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
    evaluators: dict[str, Evaluator]
    every_epochs: dict[str, int]
    evaluation_views: Views
    device: torch.device
    settings: Settings

    @property
    def encoder(self) -> Encoder:
        """The encoder that is evaluated and exported; the method decides which one."""
        return self.method.encoder

    def step(self, number: int) -> Step:
        """Return step `number`, counted from 0, with its random key."""
        return Step(number, self.settings.total_steps, rng.key(self.settings.seed, "views", number))


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
    if recipe.method.get("positives") == "class":
        _check_labels(recipe, data)
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
    return with_preprocessing(recipe.data, recipe.encoder.backbone, has_weights=has_weights, is_trained=True)


def build(recipe: Recipe, data: Data, device: torch.device) -> Parts:
    """Build everything that a run needs, with initial weights drawn from the recipe's seed.

    Raises:
        UsageError, DataError, EnvironmentProblem: a part cannot be built from its arguments.
    """
    train = recipe.train
    world_size = distributed.world_size()
    _check_batch_size(train.batch_size, world_size)
    _check_micro_batch_size(train.micro_batch_size, train.micro_batch_norm, world_size)
    check_num_images(data.train, train.batch_size)
    with rng.seeded(recipe.seed, "initial weights"):
        method = build_method(recipe, device)
    # A second instance: the views of the method are sharded over the ranks.
    evaluation_views = build_part(VIEWS, recipe.views)
    _check_views(evaluation_views, recipe)
    loader = Loader(
        data.train,
        batch_size=train.batch_size,
        seed=recipe.seed,
        rank=distributed.rank(),
        world=world_size,
        workers=train.workers,
        device=device,
        whole_pictures=draws_on_whole_pictures(METHODS.get(recipe.method["name"]), evaluation_views),
    )
    settings = _settings(recipe, data, loader.steps_per_epoch, _view_count(evaluation_views, recipe), device)
    optimizer, schedule = _optimizer_and_schedule(recipe, method, settings)
    evaluators, every_epochs = build_evaluators(recipe.eval, data)
    return Parts(
        data=data,
        loader=loader,
        method=method,
        optimizer=optimizer,
        scaled_optimizer=ScaledOptimizer(optimizer, settings.precision, device),
        finite_check=_finite_check(data, method, optimizer, settings, device),
        schedule=schedule,
        evaluators=evaluators,
        every_epochs=every_epochs,
        evaluation_views=evaluation_views,
        device=device,
        settings=settings,
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
        drop_path=recipe.encoder.drop_path,
        workers=train.workers,
        measures_baselines=train.baselines,
        writes_report=train.report,
        input_advice=input_bound_advice(data.train.images, recipe.data, train.workers, device),
        initial_weights=_initial_weights(recipe),
        data_table=data_table(recipe),
        evaluator_tables=recipe.eval,
    )


def _optimizer_and_schedule(
    recipe: Recipe, method: Method, settings: Settings
) -> tuple[torch.optim.Optimizer, Schedule]:
    optim = recipe.optim
    optimizer = create_optimizer(
        method.parameter_groups(),
        name=optim.name,
        lr=optim.lr,
        weight_decay=optim.weight_decay,
        momentum=optim.momentum,
        decay_all=optim.decay_all,
        undecayed=_undecayed_parameters(method),
        fused=settings.precision != "fp16",
    )
    schedule = Schedule(
        optimizer,
        kind=optim.schedule,
        steps=settings.total_steps,
        warmup_steps=round(optim.warmup_epochs * settings.steps_per_epoch),
        warmup_lr=optim.warmup_lr,
        final_lr=optim.lr * optim.final_lr_ratio,
    )
    return optimizer, schedule


def _finite_check(
    data: Data, method: Method, optimizer: torch.optim.Optimizer, settings: Settings, device: torch.device
) -> FiniteCheck:
    facts = RunFacts(settings.steps_per_epoch, settings.lr, settings.loss_name, settings.precision)
    is_asynchronous = allows_asynchronous_check(method, optimizer, device)
    return FiniteCheck(data.train.images, facts, device, is_asynchronous=is_asynchronous)


def build_method(recipe: Recipe, device: torch.device) -> Method:
    """Build the recipe's method with its encoder, its views and, if it takes one, its loss.

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
    sizes_px = _view_sizes_px(views, recipe)
    # Vision transformers are built for one size: the first, which is the largest of the shipped views.
    encoder = _in_turns_if(
        recipe.encoder.pretrained or recipe.encoder.weights or is_external(recipe.encoder.backbone),
        lambda: Encoder(**recipe.encoder.model_dump(), size=sizes_px[0]),
    )
    if train.micro_batch_size:
        chunks = ceil(train.batch_size / train.micro_batch_size)
        encoder.encode_in_chunks(chunks, train.micro_batch_norm)
    _check_other_sizes(encoder, sizes_px)
    # `build_part` leaves out what the method's factory has no parameter for.
    supplied = {"encoder": encoder, "views": views}
    if recipe.loss is not None:
        supplied["loss"] = build_part(LOSSES, recipe.loss)
    method = build_part(METHODS, recipe.method, **supplied)
    _check_method(method, recipe.method["name"])
    if not train.sync_batchnorm:
        _check_batch_norm(encoder, train.batch_size)
    if train.sync_batchnorm:
        if device.type != "cuda":
            raise UsageError("train.sync_batchnorm needs CUDA devices")
        method = convert_sync_batchnorm(method)
    method = method.to(device)
    if train.compile:
        # In place: torch.compile(module) would return a wrapper, whose state dict has other names.
        encoder.backbone.compile()
        if device.type == "cuda" and isinstance(views, ViewPipeline):
            views.compile()
    if train.channels_last:
        method = method.to(memory_format=torch.channels_last)
    return method


def describe(recipe: Recipe, parts: Parts, *, has_data: bool = True) -> list[tuple[str, str, str]]:
    """Describe the parts of a run to its user, as rows (what, name, details) for `Logger.facts`.

    Args:
        recipe: whose numbers are stated.
        parts: what was built from it.
        has_data: False if the parts were built with other images, since those of the recipe are missing.
    """
    data = "cannot be used"
    if has_data:
        data = _describe_data(parts.data)
    train, optim = recipe.train, recipe.optim
    view_count = _view_count(parts.evaluation_views, recipe)
    ranks = distributed.world_size()
    batch = f"batch {train.batch_size} (1 rank)"
    if ranks > 1:
        batch = f"batch {train.batch_size} ({format_count(ranks, 'rank')})"
    schedule = f"{optim.name} lr {optim.lr:g}, {optim.schedule}"
    precision = parts.settings.precision
    if train.precision == "auto":
        precision = f"{precision} (auto)"
    return [
        ("data", recipe.data["name"], data),
        ("views", f"{recipe.views['name']} x{view_count}", _describe_views(parts, recipe)),
        ("encoder", recipe.encoder.backbone, _describe_encoder(parts.encoder)),
        _describe_loss(recipe),
        ("train", format_count(train.epochs, "epoch"), f"{batch}, {schedule}, {precision}, seed {recipe.seed}"),
    ]


def dropped_images_note(parts: Parts) -> list[str]:
    """Say how many images an epoch leaves out, as a list of at most one line."""
    dropped, num_images = parts.loader.dropped_per_epoch, len(parts.data.train)
    if not dropped:
        return []
    note = (
        f"{dropped:,} of {num_images:,} training images are left out of each epoch, others every time: the last batch would be "
        "incomplete"
    )
    if dropped < MANY_DROPPED * num_images:
        return [note]
    better = _batch_size_that_drops_least(num_images, parts.loader.batch_size)
    if num_images % better < dropped:
        note += f". train.batch_size={better} would leave out {num_images % better:,}"
    return [note]


def _batch_size_that_drops_least(num_images: int, batch_size: int) -> int:
    """Return the best batch size that the ranks can share between half of this one and this one, the largest of equals."""
    world_size = distributed.world_size()
    candidates = range(batch_size, max(2, batch_size // 2) - 1, -world_size)
    return min(candidates, key=lambda candidate: num_images % candidate)


def _undecayed_parameters(method: Method) -> list[nn.Parameter]:
    # Of all encoders: the one that is evaluated may be a moving average, which is not trained.
    parameters = []
    for module in method.modules():
        if isinstance(module, Encoder):
            parameters += module.undecayed_parameters()
    return parameters


def _initial_weights(recipe: Recipe) -> str:
    if recipe.encoder.pretrained or recipe.encoder.weights is not None:
        return PRETRAINED
    return "random"


def _describe_data(data: Data) -> str:
    images = format_count(len(data.train), "training image")
    if data.query:
        images = f"{len(data.train):,} training, {format_count(len(data.query), 'query image')}"
    if not data.classes:
        return f"{images}, no labels"
    return f"{images}, {format_count(len(data.classes), 'class', 'classes')}"


def _describe_views(parts: Parts, recipe: Recipe) -> str:
    views = parts.evaluation_views
    distinct_sizes = dict.fromkeys(_view_sizes_px(views, recipe))
    sizes = " and ".join(map(str, distinct_sizes))
    return f"{sizes} px, {views.description or 'plugin'}, {parts.device}"


def _describe_encoder(encoder: Encoder) -> str:
    weights = sum(parameter.numel() for parameter in encoder.parameters()) / 1e6
    head_widths = [str(layer.out_features) for layer in encoder.head if isinstance(layer, nn.Linear)]
    head = "-".join(head_widths) or "none"
    return f"{weights:.1f} M weights, {encoder.num_features} features, head {head}"


def _describe_loss(recipe: Recipe) -> tuple[str, str, str]:
    if recipe.loss is None:
        return "method", recipe.method["name"], _arguments(recipe.method)
    details = _arguments(recipe.loss)
    if "positives" in recipe.method:
        positives = f"positives by {recipe.method['positives']}"
        details = f"{details}; {positives}" if details else positives
    if recipe.method["name"] != "contrastive":
        details = f"{details}; method {recipe.method['name']}"
    return "loss", recipe.loss["name"], details


def _arguments(part: dict[str, Any]) -> str:
    """Return the arguments of a part as one line; flags that are off are left out."""
    return ", ".join(f"{key} {value}" for key, value in part.items() if key != "name" and value is not False)


def _check_views(views: Views, recipe: Recipe) -> None:
    """Draw views of an image of the data set's size, so that operations which refuse it do so before training.

    Raises:
        UsageError: they do.
    """
    size_px = recipe.data.get("size") or DATASETS.hint(recipe.data["name"], "size_px")
    if size_px is None or not isinstance(views, ViewPipeline):
        return
    try:
        views(torch.zeros(2, 3, size_px, size_px, dtype=torch.uint8), 0)
    except ValueError as cause:
        raise UsageError(
            f"views: {cause} (the images of {recipe.data['name']} have {size_px} x {size_px} px)"
        ) from cause


def _view_sizes_px(views: Views, recipe: Recipe) -> tuple[int, ...]:
    # Views of a plugin may state neither their sizes nor their count; then the recipe's arguments are taken as such.
    return views.sizes or (recipe.views.get("size", DEFAULT_SIZE_PX),)


def _view_count(views: Views, recipe: Recipe) -> int:
    return views.count or recipe.views.get("count", DEFAULT_VIEW_COUNT)


def _check_method(method: object, name: str) -> None:
    if not isinstance(method, Method):
        raise UsageError(f"method {name!r} is a {type(method).__qualname__}, which must subclass reptk.Method")
    # nn.Module is not an abstract base class, so a missing forward is not noticed before the first step.
    if type(method).forward is Method.forward:
        raise UsageError(f"method {name!r}: {type(method).__qualname__} must define forward(batch, step)")


def _check_batch_size(batch_size: int, world_size: int) -> None:
    if batch_size % world_size:
        # Rounded down to a multiple, or up if that would be 0.
        nearest = batch_size // world_size * world_size or world_size
        raise UsageError(f"train.batch_size is {batch_size}, which {world_size} ranks cannot share; use {nearest}")


def _check_batch_norm(encoder: Encoder, batch_size: int) -> None:
    """Refuse a batch of one image for each rank, from which BatchNorm cannot compute a variance."""
    ranks = distributed.world_size()
    has_batch_norm = any(isinstance(module, BATCH_NORMS) for module in encoder.modules())
    if has_batch_norm and batch_size == ranks:
        raise UsageError(
            f"train.batch_size is {batch_size}, one image for each of {format_count(ranks, 'rank')}, and BatchNorm needs "
            f"several to compute its statistics; use at least {2 * ranks}"
        )


def _check_micro_batch_size(micro_batch_size: int | None, norm: str, world_size: int) -> None:
    if micro_batch_size is None:
        if norm != "refuse":
            raise UsageError(
                f"train.micro_batch_norm is {norm!r}, but there are no micro-batches: set train.micro_batch_size"
            )
    elif micro_batch_size < world_size:
        raise UsageError(
            f"train.micro_batch_size is {micro_batch_size}, fewer images than the {world_size} ranks that share them"
        )


@torch.no_grad()
def _check_other_sizes(encoder: Encoder, sizes_px: tuple[int, ...]) -> None:
    """Check that views of every size pass through the encoder, which is built for the first size."""
    with eval_mode(encoder):
        for size in sorted(set(sizes_px) - {encoder.config["size"]}):
            try:
                encoder(torch.zeros(1, 3, size, size))
            except Exception as cause:  # timm's models raise various types for sizes that they do not support
                raise UsageError(
                    f"views of {size} px: {encoder.config['backbone']} is built for {encoder.config['size']} px and takes no "
                    "others; use a convolutional backbone, or views of one size"
                ) from cause


def _check_labels(recipe: Recipe, data: Data) -> None:
    labels = data.train.labels
    known = labels[labels >= 0]
    if not len(known):
        raise DataError(
            f"method.positives is 'class', but {recipe.data['name']} has no labels. Put the images of each class in a "
            "folder of its own, or train without labels: method.positives=instance"
        )
    counts = torch.bincount(known)
    if int((counts > 0).sum()) == 1:
        warnings.warn("there is a single class: with every pair a positive, nothing is pushed apart", stacklevel=2)
    single = int((counts == 1).sum())
    if recipe.views.get("count", DEFAULT_VIEW_COUNT) == 1 and single:
        warnings.warn(
            f"{format_count(single, 'class', 'classes')} of a single image, which never meets a positive", stacklevel=2
        )
