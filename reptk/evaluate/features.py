"""Features of a whole split, extracted once, in read_blocks that the ranks share among themselves."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from reptk.core import distributed, rng
from reptk.data import DevicePrefetcher, Split, read_blocks
from reptk.data.prefetch import prefetch
from reptk.evaluate.answers import Answers
from reptk.views import resize_center_crop

BLOCK = 256
PIXELS_PX = 32

Embed = Callable[[Tensor], Tensor]


class Rows(NamedTuple):
    """Features (n, F) of unit length, and the lengths (n, 1) they had."""

    unit: Tensor
    length: Tensor


class Kept:
    """Rows that this rank has made, the first of which is number `first`; those of all ranks are brought together if asked."""

    def __init__(self, rows: Rows, first: int, device: torch.device | str) -> None:
        self.rows, self.first, self.device = rows, first, device
        self._whole = rows if distributed.world_size() == 1 else None

    def whole(self) -> Rows:
        """Of all ranks. All of them have to ask."""
        if self._whole is None:
            self._whole = Rows(*(distributed.all_gather_uneven(part.to(self.device)).cpu() for part in self.rows))
        return self._whole


class Features:
    """What evaluators encode with: `encode(split)` -> (n, F) rows of unit length on the CPU.

    An evaluator may leave words and numbers about how it measured in `notes`, under its name, and who was answered with
    what in `answers`; results.json and the report have them from there.

    Args:
        embed: (b, 3, size, size) float in 0..1 -> (b, F).
        size: side in pixels of the images given to `embed`.
        crop: share of the shorter side that the plain view keeps.
        views: draws random views, for `encode.view`.
        device: where images are prepared.
        workers: threads that decode images prefetch.
        progress: told how many further images are encoded.
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
        progress: Callable[[int], None] | None = None,
    ) -> None:
        self.progress = progress or (lambda count: None)
        self.embed, self.size, self.crop, self.views = embed, size, crop, views
        self.device, self.workers = device, workers
        self.notes: dict[str, Any] = {}
        self.answers: Answers | None = None
        self._kept: list[tuple[Split, str | int, Kept]] = []

    def __call__(self, split: Split) -> Tensor:
        """Features of every image as it is."""
        return self._plain(split).whole().unit

    def raw(self, split: Split) -> Tensor:
        """The same at the length that the encoder gives them."""
        rows = self._plain(split).whole()
        return rows.unit * rows.length

    def part(self, split: Split) -> tuple[Tensor, int]:
        """Those features that this rank has made, and the number of the first; all of them on a single process."""
        kept = self._plain(split)
        return kept.rows.unit, kept.first

    def batches(self, split: Split, numbers: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Images (b, 3, H, W) uint8 on the device and their numbers, for each tensor of numbers in turn."""
        return DevicePrefetcher(prefetch(split.images, numbers, workers=self.workers, device=self.device), self.device)

    def _plain(self, split: Split) -> "Kept":
        return self._once(split, "plain", lambda images, first: resize_center_crop(images, self.size, self.crop))

    def view(self, split: Split, number: int) -> Tensor:
        """Features of random view `number` of every image: drawn alike each time, independent between numbers."""

        def first_view(images: Tensor, first: int) -> Tensor:
            made = self.views(images, rng.key("evaluation", number, first))
            return made[0][0] if isinstance(made, list | tuple) else made[0]

        return self._once(split, number, first_view).whole().unit

    def _once(self, split: Split, kind: str | int, prepare: Callable[[Tensor, int], Tensor]) -> "Kept":
        for known, known_kind, kept in self._kept:
            if known is split and known_kind == kind:
                return kept
        self._kept.append((split, kind, self._shared(split, prepare)))
        return self._kept[-1][2]

    @torch.no_grad()
    def _shared(self, split: Split, prepare: Callable[[Tensor, int], Tensor]) -> "Kept":
        """Each rank encodes the read_blocks of its part; parts hold whole read_blocks, so that ranks do not change them."""
        part = -(-len(split) // (BLOCK * distributed.world_size())) * BLOCK
        first, last = (min(rank * part, len(split)) for rank in (distributed.rank(), distributed.rank() + 1))
        ranges = [range(start, min(start + BLOCK, last)) for start in range(first, last, BLOCK)]
        images = DevicePrefetcher(read_blocks(split, ranges, self.workers, self.device), self.device)
        made = [self._block(block, part.start, prepare) for part, (block,) in zip(ranges, images, strict=True)]
        if not made:  # more ranks than read_blocks: nothing of its own, but as wide as the others' rows
            made = [self._block(split.images.fetch(torch.tensor([0])), 0, prepare)[:0]]
        h = torch.cat(made)
        length = h.norm(dim=1, keepdim=True).clamp_min_(1e-12)
        return Kept(Rows(h.div_(length), length), first, self.device)

    def _block(self, images: Tensor, first: int, prepare: Callable[[Tensor, int], Tensor]) -> Tensor:
        made = self.embed(prepare(images.to(self.device), first)).float().cpu()
        self.progress(len(images))
        return made


def pixels(split: Split) -> Embed:
    """The raw-pixel baseline: every value of the image, one channel of a grey data set."""
    channels = 1 if getattr(split.images, "is_grey", False) else 3
    return lambda images: images[:, :channels].flatten(1)
