"""Features of a whole split, extracted once, in blocks that the ranks share among themselves."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from reptk import dist
from reptk.data import Feed, Split, blocks
from reptk.keyed import fold
from reptk.views import plain

BLOCK = 256
PIXELS_PX = 32

Embed = Callable[[Tensor], Tensor]


class Features:
    """What evaluators encode with: `encode(split)` -> (n, F) rows of unit length on the CPU.

    Args:
        embed: (b, 3, size, size) float in 0..1 -> (b, F).
        size: side in pixels of the images given to `embed`.
        crop: share of the shorter side that the plain view keeps.
        views: draws random views, for `encode.view`.
        device: where images are prepared.
        workers: threads that decode images ahead.
    """

    def __init__(
        self,
        embed: Embed,
        *,
        size: int,
        crop: float = 1.0,
        views: Callable[[Tensor, int], Tensor] | None = None,
        device: torch.device | str = "cpu",
        workers: int = 0,
    ) -> None:
        self.embed, self.size, self.crop, self.views = embed, size, crop, views
        self.device, self.workers = device, workers
        self._kept: list[tuple[Split, str | int, Tensor]] = []

    def __call__(self, split: Split) -> Tensor:
        """Features of every image as it is."""
        return self._once(split, "plain", lambda images, first: plain(images, self.size, self.crop))

    def view(self, split: Split, number: int) -> Tensor:
        """Features of random view `number` of every image: drawn alike each time, independent between numbers."""

        def first_view(images: Tensor, first: int) -> Tensor:
            made = self.views(images, fold("evaluation", number, first))
            return made[0][0] if isinstance(made, list | tuple) else made[0]

        return self._once(split, number, first_view)

    def _once(self, split: Split, kind: str | int, prepare: Callable[[Tensor, int], Tensor]) -> Tensor:
        for known, known_kind, features in self._kept:
            if known is split and known_kind == kind:
                return features
        self._kept.append((split, kind, self._shared(split, prepare)))
        return self._kept[-1][2]

    @torch.no_grad()
    def _shared(self, split: Split, prepare: Callable[[Tensor, int], Tensor]) -> Tensor:
        """Each rank encodes the blocks of its part; parts hold whole blocks, so that ranks do not change them."""
        part = -(-len(split) // (BLOCK * dist.world())) * BLOCK
        first, last = dist.rank() * part, min((dist.rank() + 1) * part, len(split))
        ranges = [range(start, min(start + BLOCK, last)) for start in range(first, last, BLOCK)]
        images = Feed(blocks(split, ranges, self.workers, self.device), self.device)
        made = [self._block(block, part.start, prepare) for part, (block,) in zip(ranges, images, strict=True)]
        if dist.world() == 1:
            return torch.cat(made)
        width = self._block(split.images.fetch(torch.tensor([0])), 0, prepare).shape[1]
        padded = torch.zeros(part, width, device=self.device)
        if made:
            padded[: last - first] = torch.cat(made)
        return dist.gather(padded)[: len(split)].cpu()

    def _block(self, images: Tensor, first: int, prepare: Callable[[Tensor, int], Tensor]) -> Tensor:
        return functional.normalize(self.embed(prepare(images.to(self.device), first)).float(), dim=1).cpu()


def pixels(split: Split) -> Embed:
    """The raw-pixel baseline: every value of the image, one channel of a grey data set."""
    channels = 1 if getattr(split.images, "is_grey", False) else 3
    return lambda images: images[:, :channels].flatten(1)
