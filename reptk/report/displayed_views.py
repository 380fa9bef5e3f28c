"""The first images of a training step and the views that training makes of them, to look at."""

from typing import NamedTuple

import torch
from torch import Tensor

from reptk import config
from reptk.config.registry import METHODS, VIEWS
from reptk.core import distributed, rng
from reptk.core.errors import UsageError
from reptk.data import Data, Loader, create_sampler
from reptk.data.decoding.resize import PAGE_COLOR
from reptk.methods import Batch, needs_full_images


class DisplayedViews(NamedTuple):
    """The first images of a training step, and their views.

    Args:
        images: (n, 3, H, W) uint8.
        views: one tensor (n, 3, size, size) uint8 for each view; sizes may differ.
        labels: (n,).
        index: (n,) numbers of the images in the training split.
        num_steps: steps of the whole training.
    """

    images: Tensor
    views: list[Tensor]
    labels: Tensor
    index: Tensor
    num_steps: int


def displayed_views(recipe: config.Recipe, data: Data, *, step: int, count: int) -> DisplayedViews:
    """Return the first `count` images of a step, counted from 0, and the views that training makes of them.

    Views are drawn for the global batch. If they can be sharded, only the smallest equal part of the batch that holds
    `count` images is fetched and drawn, as the first of so many ranks would.

    Raises:
        UsageError: training has no such step, or the views refuse their arguments.
        DataError: fewer images than one batch, or an unreadable one.
    """
    device = distributed.setup(recipe.train.device)
    batch_size = recipe.train.batch_size
    views = config.build(VIEWS, recipe.views)
    num_parts = 1
    if views.shard is not None:
        num_parts = batch_size // _smallest_part(batch_size, count)
    if num_parts > 1:
        views.shard(0, num_parts)
    split = data.train
    if needs_full_images(METHODS.get(recipe.method["name"]), views):
        split = data.train.resized("squash")
    loader = Loader(
        split,
        batch_size=batch_size,
        seed=recipe.seed,
        sampler=create_sampler(
            data.train.labels,
            batch_size=batch_size,
            seed=recipe.seed,
            classes=data.classes,
            **recipe.train.sampler.model_dump(),
        ),
        world_size=num_parts,
    )
    num_steps = recipe.train.epochs * loader.steps_per_epoch
    if not 0 <= step < num_steps:
        raise UsageError(f"--step is {step}, but this training has the steps 0 to {num_steps - 1}")
    batch = Batch(*(tensor.to(device) for tensor in next(loader.batches(step, step + 1))))
    with torch.no_grad():
        # The key of this step, so that these are the very views that training saw.
        drawn = batch.draw_views(views, rng.key(recipe.seed, "views", step))
    if isinstance(drawn, Tensor):
        drawn = [drawn]  # all views have one size
    shown = []
    for views_of_one_size in drawn:
        for view in views_of_one_size:
            shown.append(_to_uint8(view[:count]))
    index = batch.index[:count].cpu()
    whole_images = data.train.images.resized("pad", PAGE_COLOR).fetch(index)
    return DisplayedViews(whole_images, shown, batch.labels[:count].cpu(), index, num_steps)


def _to_uint8(view: Tensor) -> Tensor:
    """Return (n, 3, size, size) floats in 0..1 on any device as the nearest uint8 on the CPU."""
    return (view.float() * 255).round().clamp(0, 255).to(torch.uint8).cpu()


def _smallest_part(batch_size: int, count: int) -> int:
    """Return the smallest divisor of the batch size that is at least `count`."""
    # Ranks have equal parts of the batch, so only its divisors can be one.
    for size in range(count, batch_size):
        if batch_size % size == 0:
            return size
    return batch_size
