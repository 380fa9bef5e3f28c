"""The views my_views: random brightness, and random noise.

Source, if they are published. A list of kornia's operations needs no code: views.name=kornia.
"""

from typing import Annotated

import torch
from annotated_types import Ge, Le
from torch import Tensor
from torch.nn import functional

from reptk import VIEWS, rng


@VIEWS.register("my_views")
class MyViews:
    """Every view is the whole image, resized, of another brightness and with other noise.

    Required is the call `views(images, key)`. Optional are the members of `reptk.views.Views`: `sizes` and `count`, if the
    recipe does not say them; `shard`, without which they run on a single process only; and a parameter `aspect_ratios` of
    the call, for crops of images that are not square.

    Args:
        size: side of the views in px. These are what the recipe's [views] table may set; names, types, ranges and defaults
            are those of this signature.
        count: views of each image.
        brightness: largest change, as a share of the brightness.
        noise: largest change of a pixel, where white is 1.
    """

    def __init__(
        self,
        size: Annotated[int, Ge(1)] = 32,
        count: Annotated[int, Ge(1)] = 2,
        brightness: Annotated[float, Ge(0), Le(1)] = 0.4,
        noise: Annotated[float, Ge(0), Le(1)] = 0.2,
    ) -> None:
        self.size = size
        self.count = count
        self.brightness = brightness
        self.noise = noise
        self.rank = 0
        self.world_size = 1

    def shard(self, rank: int, world_size: int) -> None:
        """Say which part of the global batch the calls get: the `rank`-th of `world_size` equal consecutive ones."""
        self.rank = rank
        self.world_size = world_size

    def __call__(self, images: Tensor, key: int) -> Tensor:
        """Return views (V, B, 3, size, size), floats in 0..1. The same images and key give the same views.

        Args:
            images: (B, 3, H, W) uint8, center squares or squares; not to be written to.
            key: 63 bits from which everything random is drawn. The global random states are left alone.
        """
        images = functional.interpolate(images.float() / 255, (self.size, self.size), mode="bilinear", antialias=True)
        views = []
        for view in range(self.count):
            generators = self._generators(len(images), key, view)
            factors = torch.stack([torch.rand(1, 1, 1, generator=generator) for generator in generators])
            noise = torch.stack([torch.rand(images.shape[1:], generator=generator) for generator in generators])
            factors = 1 + self.brightness * (2 * factors.to(images.device) - 1)
            changed = factors * images + self.noise * (2 * noise.to(images.device) - 1)
            views.append(changed.clamp(0, 1))
        return torch.stack(views)

    def _generators(self, count: int, key: int, view: int) -> list[torch.Generator]:
        """Return a generator for each image, by its position in the global batch: the same on one rank and on several."""
        first = self.rank * count
        return [rng.generator(key, view, position) for position in range(first, first + count)]
