"""What the network sees: the first images of a training step, and the views that training makes of them."""

from typing import NamedTuple

import torch
from torch import Tensor

from reptk import config
from reptk.config.registry import VIEWS
from reptk.core import distributed, rng
from reptk.core.errors import UsageError
from reptk.data import Data, Loader


class Seen(NamedTuple):
    """The first images of a training step.

    images (n, 3, H, W) uint8; views: (n, 3, s, s) uint8 each, of any sizes; labels (n,); index (n,) their numbers in the
    training split; steps: how many the training has.
    """

    images: Tensor
    views: list[Tensor]
    labels: Tensor
    index: Tensor
    steps: int


def seen(recipe: config.Recipe, data: Data, *, step: int, count: int) -> Seen:
    """The first `count` images of a step, counted from 0, and the views that training makes of them.

    Views are drawn for the global batch; where they can be cut into parts, no more of it is fetched and drawn than the
    smallest equal part that holds `count` images, as the first of so many ranks would.

    Raises:
        UsageError: training has no such step, or the views refuse their arguments.
        DataError: fewer images than one batch, or an unreadable one.
    """
    device = distributed.setup(recipe.train.device)
    views, batch = config.build(VIEWS, recipe.views), recipe.train.batch_size
    parts = batch // _smallest_part(batch, count) if hasattr(views, "shard") else 1
    if parts > 1:
        views.shard(0, parts)
    loader = Loader(data.train, batch_size=batch, seed=recipe.seed, world=parts)
    steps = recipe.train.epochs * loader.steps_per_epoch
    if not 0 <= step < steps:
        raise UsageError(f"--step is {step}, but this training has the steps 0 to {steps - 1}")
    images, labels, index = next(loader.batches(step, step + 1))
    with torch.no_grad():
        made = views(images.to(device), rng.key(recipe.seed, "views", step))
    sizes = [made] if isinstance(made, torch.Tensor) else made
    drawn = [_bytes(view[:count]) for one_size in sizes for view in one_size]
    return Seen(images[:count], drawn, labels[:count], index[:count], steps)


def _bytes(view: Tensor) -> Tensor:
    """(n, 3, s, s) float in 0..1 on any device -> the nearest uint8, on the CPU."""
    return (view.float() * 255).round().clamp(0, 255).to(torch.uint8).cpu()


def _smallest_part(batch: int, count: int) -> int:
    return next(size for size in range(count, batch + 1) if batch % size == 0)
