"""From a recipe to the things it names: data, method, optimizer, evaluators. Nothing here trains."""

import warnings
from dataclasses import dataclass
from math import ceil
from typing import Any

import torch
from timm.layers import convert_sync_batchnorm
from timm.scheduler.scheduler import Scheduler
from torch import nn

from reptk.config import Recipe, build
from reptk.config.registry import DATASETS, LOSSES, METHODS, VIEWS
from reptk.core import distributed, rng
from reptk.core.errors import DataError, UsageError
from reptk.data import Data, Loader
from reptk.evaluate import build_evaluators
from reptk.models.encoder import Encoder
from reptk.training.optim import optimizer, schedule
from reptk.views import ViewPipeline


@dataclass
class Built:
    """The parts of a run, on their device."""

    data: Data
    loader: Loader
    method: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: Scheduler
    evaluators: dict[str, Any]
    every_epochs: dict[str, int]
    evaluation_views: Any
    device: torch.device

    @property
    def encoder(self) -> Encoder:
        return self.method.encoder


def data_of(recipe: Recipe) -> Data:
    """The recipe's data set, held against what the recipe wants of it.

    Raises:
        DataError: missing, empty, too small, or without the labels that are needed.
    """
    try:
        data = build(DATASETS, recipe.data)
    except OSError as cause:
        raise DataError(f"{recipe.data['name']}: {cause}") from cause
    if recipe.method.get("positives") == "class":
        _check_labels(recipe, data)
    return data


def assemble(recipe: Recipe, data: Data, device: torch.device) -> Built:
    """Everything a run needs, the encoder freshly initialised from the recipe's seed.

    Raises:
        UsageError, DataError, EnvironmentProblem: a part cannot be built from its arguments.
    """
    train, world = recipe.train, distributed.world_size()
    _check_batch(recipe, world)
    _check_micro_batch(recipe, world)
    loader = Loader(
        data.train,
        batch_size=train.batch_size,
        seed=recipe.seed,
        rank=distributed.rank(),
        world=world,
        workers=train.workers,
        device=device,
    )
    with rng.seeded(recipe.seed, "initial weights"):
        method = build_method(recipe, device)
    o = recipe.optim
    made = optimizer(
        method, name=o.name, lr=o.lr, weight_decay=o.weight_decay, momentum=o.momentum, decay_all=o.decay_all
    )
    course = schedule(
        made,
        kind=o.schedule,
        steps=train.epochs * loader.steps_per_epoch,
        warmup_steps=round(o.warmup_epochs * loader.steps_per_epoch),
        warmup_lr=o.warmup_lr,
        final_lr=o.lr * o.final_lr_ratio,
    )
    evaluators, every = build_evaluators(recipe.eval, data)
    return Built(data, loader, method, made, course, evaluators, every, build(VIEWS, recipe.views), device)


def build_method(recipe: Recipe, device: torch.device) -> nn.Module:
    """Encoder, views and loss, joined by the recipe's method."""
    views = build(VIEWS, recipe.views)
    if hasattr(views, "shard"):
        views.shard(distributed.rank(), distributed.world_size())
    elif distributed.world_size() > 1:
        raise UsageError(f"views {recipe.views['name']!r} cannot run on several ranks: they have no shard(rank, world)")
    encoder = Encoder(**recipe.encoder.model_dump(), size=getattr(views, "size", recipe.views.get("size", 224)))
    if recipe.train.micro_batch_size:
        encoder.encode_in_chunks(
            ceil(recipe.train.batch_size / recipe.train.micro_batch_size), recipe.train.micro_batch_norm
        )
    _check_sizes(encoder, views)
    loss = build(LOSSES, recipe.loss)
    method = build(METHODS, recipe.method, encoder=encoder, views=views, loss=loss)
    if recipe.train.sync_batchnorm:
        if device.type != "cuda":
            raise UsageError("train.sync_batchnorm needs CUDA devices")
        method = convert_sync_batchnorm(method)
    method = method.to(device)
    if recipe.train.compile:
        encoder.backbone.compile()
        if device.type == "cuda" and isinstance(views, ViewPipeline):
            views.compile()
    return method.to(memory_format=torch.channels_last) if recipe.train.channels_last else method


def _check_batch(recipe: Recipe, world: int) -> None:
    size = recipe.train.batch_size
    if size % world:
        raise UsageError(
            f"train.batch_size is {size}, which {world} ranks cannot share; use {size // world * world or world}"
        )


def _check_micro_batch(recipe: Recipe, world: int) -> None:
    micro, norm = recipe.train.micro_batch_size, recipe.train.micro_batch_norm
    if micro is None and norm != "refuse":
        raise UsageError(
            f"train.micro_batch_norm is {norm!r}, but there are no micro-batches: set train.micro_batch_size"
        )
    if micro is not None and micro < world:
        raise UsageError(f"train.micro_batch_size is {micro}, fewer images than the {world} ranks that share them")


@torch.no_grad()
def _check_sizes(encoder: Encoder, views: Any) -> None:
    """The encoder is built for the first size; views of others must go through it as well."""
    training = encoder.training
    encoder.eval()
    for size in sorted(set(getattr(views, "sizes", ())) - {encoder.config["size"]}):
        try:
            encoder(torch.zeros(1, 3, size, size))
        except Exception as cause:
            raise UsageError(
                f"views of {size} px: {encoder.config['backbone']} is built for {encoder.config['size']} px and takes no "
                "others; use a convolutional backbone, or views of one size"
            ) from cause
    encoder.train(training)


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
    if recipe.views.get("count", 2) == 1 and int((counts == 1).sum()):
        warnings.warn(f"{int((counts == 1).sum())} classes have one image, which never meets a positive", stacklevel=2)
