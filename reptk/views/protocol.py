"""What views are, for whoever writes some: a function of images and a key, and a few optional members."""

import inspect
from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor, nn


class Views(Protocol):
    """Random views of images. Members other than `__call__` are optional; their defaults are below."""

    sizes: tuple[int, ...] = ()
    """Side of each view in pixels; empty if all views have the recipe's `views.size`."""

    count: int | None = None
    """Number of views of each image; None for the recipe's `views.count`."""

    description: str = ""
    """How the views are computed, in a word or two."""

    shard: Callable[[int, int], Any] | None = None
    """shard(rank, world_size): let each call receive the images of this rank, one of `world_size` equal consecutive parts
    of the global batch, and return the views that a single process makes of them in the whole batch. Views without it run
    on one process only."""

    def __call__(self, images: Tensor, key: int, aspect_ratios: Tensor | None = None) -> Tensor | list[Tensor]:
        """Return views of images, the same for the same images and key.

        Args:
            images: (B, 3, H, W) uint8.
            key: 63 bits from which all randomness is derived.
            aspect_ratios: (B,) width / height of the full images, which were squashed into these; None if these have their
                proportions. Views without this parameter get center squares.

        Returns:
            (V, B, 3, h, w) floats in 0..1, or a list of such tensors, one for each size.
        """
        ...


def crops_full_images(views: Views) -> bool:
    """Return whether views have the parameter `aspect_ratios`, and so draw their crops on full images, which were squashed."""
    function = views
    if isinstance(views, nn.Module):
        # `nn.Module.__call__` passes on whatever it gets.
        function = views.forward
    return "aspect_ratios" in inspect.signature(function).parameters
