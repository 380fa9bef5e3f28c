"""Features of whole splits, computed once; every rank encodes its shard of the images."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from typing import NamedTuple

import torch
from torch import Tensor

from reptk.core import distributed, rng
from reptk.core.counts import format_count
from reptk.core.errors import NumericalError, UsageError
from reptk.core.name_lists import first_names
from reptk.data import DevicePrefetcher, Images, Split, read_blocks
from reptk.data.bad_samples import image_name
from reptk.data.decoding.resize import Interpolation, ResizeMode
from reptk.data.loading.loader import with_aspect_ratios
from reptk.data.loading.prefetch import prefetch
from reptk.views import crops_full_images, resize_center_crop

BLOCK = 256
"""Images that are encoded at a time. Shards are whole blocks, so that features do not depend on the number of ranks."""

PIXELS_PX = 32
"""Largest side of the images of the raw-pixel baseline."""

MIN_NORM = 1e-12
"""Features are divided by at least this, as in `torch.nn.functional.normalize`, so that zero rows stay zero."""

MAX_LISTED = 5
"""Images that a message lists."""

Embed = Callable[[Tensor], Tensor]
"""(b, 3, H, W) floats in 0..1 -> (b, F)."""
DrawViews = Callable[..., Tensor]
"""(images (b, 3, H, W) uint8, key), perhaps with aspect ratios (b,) -> (V, b, 3, h, w); see `reptk.views.Views`."""
Block = tuple[Tensor, ...]
"""Images (b, 3, H, W) uint8 and, if they are squashed, their aspect ratios (b,)."""
Prepare = Callable[[Block, int], Tensor]
"""prepare(block, index of its first image) -> what is encoded."""
Progress = Callable[[str, int, int], None]
"""progress(stage, done, total), after every block: of images where the stage is "encoding", of queries where "searching"."""


class NormalizedFeatures(NamedTuple):
    """Features (n, F) scaled to unit length, and the norms (n, 1) that they had before."""

    unit: Tensor
    norm: Tensor


class FeatureStore(ABC):
    """The features of a data set's splits, as evaluators get them.

    A subclass implements `features` and `raw`. One that has the images as well sets `can_read_images` and implements
    `view`, `image_batches` and `embed`, which raise a UsageError otherwise.
    """

    device: torch.device | str = "cpu"
    """Device for computations on the features."""

    classifier: Callable[[Tensor], Tensor] | None = None
    """The classifier that was trained with the encoder: `raw` features (n, F) to scores (n, C), on `device`; None for none."""

    can_read_images: bool = False
    """Whether `view`, `image_batches` and `embed` are available."""

    size_px: int | None = None
    """Side of the images that `embed` expects."""

    progress: Progress | None = None
    """Where evaluators report how far they are, by `report_progress`."""

    @abstractmethod
    def features(self, split: Split) -> Tensor:
        """Return the features of every image of a split, (n, F) rows of unit length on the CPU.

        Raises:
            NumericalError: some are not finite.
        """

    @abstractmethod
    def raw(self, split: Split) -> Tensor:
        """Return the same rows before normalization."""

    def unreadable(self, split: Split) -> Tensor:
        """Return the sorted indices of the images, encoded so far, that could not be read; their rows mean nothing."""
        return torch.empty(0, dtype=torch.long)

    def local_part(self, split: Split) -> tuple[Tensor, int]:
        """Return the rows of `features(split)` that belong to this rank, and the index of the first."""
        first, last = _shard(len(split), 1)
        return self.features(split)[first:last], first

    def view(self, split: Split, number: int) -> Tensor:
        """Return features of random view `number` of every image; the same at each call, independent between numbers."""
        raise UsageError("random views need images, of which a file of embeddings has none")

    def image_batches(
        self, split: Split, batches: Iterable[Tensor], *, full_images: bool = False
    ) -> Iterator[tuple[Tensor, ...]]:
        """Yield images (b, 3, H, W) uint8 on the device and their indices, for each tensor (b,) of indices.

        With `full_images`, images that are not square are squashed whole, and their aspect ratios (b,) follow the indices.
        """
        raise UsageError("image batches need images, of which a file of embeddings has none")

    def embed(self, images: Tensor) -> Tensor:
        """Return features of prepared images: (b, 3, size_px, size_px) floats in 0..1 -> (b, F)."""
        raise UsageError("there is no encoder for a file of embeddings")

    def report_progress(self, stage: str, done: int, total: int) -> None:
        """Call `progress`, if there is one."""
        if self.progress is not None:
            self.progress(stage, done, total)


class ImageFeatures(FeatureStore):
    """Features of images, encoded when they are first requested and then kept.

    Args:
        embed: (b, 3, size_px, size_px) floats in 0..1 -> (b, F).
        size_px: side of the images that `embed` gets.
        crop: share of the side that the plain view keeps.
        resize: what the plain view does with images that are not square.
        interpolation: how the plain view resizes images.
        views: draws random views, for `view`.
        device: where images are prepared.
        workers: threads that decode images ahead of their use.
        progress: called after every block of images, and by evaluators.
    """

    can_read_images = True

    def __init__(
        self,
        embed: Embed,
        *,
        size_px: int,
        crop: float = 1.0,
        resize: ResizeMode = "crop",
        interpolation: Interpolation = "bilinear",
        views: DrawViews | None = None,
        device: torch.device | str = "cpu",
        workers: int = 0,
        progress: Progress | None = None,
    ) -> None:
        self._embed = embed
        self.size_px = size_px
        self.crop = crop
        self.resize = resize
        self.interpolation = interpolation
        self.views = views
        self.device = device
        self.workers = workers
        self.progress = progress
        self._cache: list[tuple[Split, str | int, _ShardedRows]] = []
        self._unreadable: list[tuple[Split, Tensor]] = []

    def unreadable(self, split: Split) -> Tensor:
        # The last one first: every further encoding of a split may meet more of them.
        for encoded_split, numbers in reversed(self._unreadable):
            if encoded_split is split:
                return numbers
        return super().unreadable(split)

    def features(self, split: Split) -> Tensor:
        return self._plain(split).gathered().unit

    def raw(self, split: Split) -> Tensor:
        rows = self._plain(split).gathered()
        return rows.unit * rows.norm

    def local_part(self, split: Split) -> tuple[Tensor, int]:
        shard = self._plain(split)
        return shard.local.unit, shard.first

    def view(self, split: Split, number: int) -> Tensor:
        def draw(block: Block, first: int) -> Tensor:
            # The key depends on the block, not on the rank: any number of ranks draws the same views.
            key = rng.key("evaluation", number, first)
            images, *aspect_ratios = block
            if aspect_ratios:
                views = self.views(images, key, aspect_ratios=aspect_ratios[0])
            else:
                views = self.views(images, key)
            if isinstance(views, list | tuple):  # views of several sizes: those of the first
                views = views[0]
            return views[0]

        images = split.images
        if crops_full_images(self.views):
            images = images.resized("squash")
        return self._encoded_once(split, number, images, draw).gathered().unit

    def image_batches(
        self, split: Split, batches: Iterable[Tensor], *, full_images: bool = False
    ) -> Iterator[tuple[Tensor, ...]]:
        images = split.images
        if full_images:
            images = images.resized("squash")
        # A generator, which its caller can close; this ends the threads that read the images.
        with closing(prefetch(images, batches, workers=self.workers, device=self.device)) as host_batches:
            yield from DevicePrefetcher(with_aspect_ratios(images, host_batches), self.device)

    def embed(self, images: Tensor) -> Tensor:
        return self._embed(images)

    def _plain(self, split: Split) -> "_ShardedRows":
        def prepare(block: Block, first: int) -> Tensor:
            return resize_center_crop(block[0], self.size_px, self.crop, self.interpolation)

        return self._encoded_once(split, "plain", split.images.resized(self.resize), prepare)

    def _encoded_once(self, split: Split, kind: str | int, images: Images, prepare: Prepare) -> "_ShardedRows":
        # By identity: splits hold tensors, which have no single truth value for ==, and a copy may hold other images.
        for cached_split, cached_kind, rows in self._cache:
            if cached_split is split and cached_kind == kind:
                return rows
        rows = self._encode_shard(images, prepare)
        _check_finite(rows, split, self.device)
        self._cache.append((split, kind, rows))
        self._leave_out_unreadable(split)
        return rows

    def _leave_out_unreadable(self, split: Split) -> None:
        """Take the labels from images that could not be read, so that they neither vote nor are queries."""
        first, last = _shard(len(split), BLOCK)
        numbers = torch.tensor(sorted(split.images.unreadable(torch.arange(first, last))), dtype=torch.long)
        # The other ranks use the labels of this rank's images.
        numbers = distributed.all_gather_uneven(numbers.to(self.device)).cpu()
        if len(numbers):
            split.labels[numbers] = -1
            self._unreadable.append((split, numbers))

    @torch.no_grad()
    def _encode_shard(self, images: Images, prepare: Prepare) -> "_ShardedRows":
        """Encode this rank's images."""
        first, last = _shard(len(images), BLOCK)
        ranges = [range(start, min(start + BLOCK, last)) for start in range(first, last, BLOCK)]
        encoded = []
        # Closed, so that the threads end even if a block cannot be encoded.
        with closing(read_blocks(images, ranges, self.workers, self.device)) as host_blocks:
            blocks = DevicePrefetcher(host_blocks, self.device)
            for indices, block in zip(ranges, blocks, strict=True):
                encoded.append(self._encode_block(block, indices.start, prepare))
                self.report_progress("encoding", indices.stop - first, last - first)
        if not encoded:
            # More ranks than blocks: no rows for this rank, but of the same width as the others'.
            [example] = read_blocks(images, [range(1)])
            encoded.append(self._encode_block(example, 0, prepare)[:0])
        h = torch.cat(encoded)
        norm = h.norm(dim=1, keepdim=True).clamp_min_(MIN_NORM)
        return _ShardedRows(NormalizedFeatures(h.div_(norm), norm), first, self.device)

    def _encode_block(self, block: Block, first: int, prepare: Prepare) -> Tensor:
        block = tuple(tensor.to(self.device) for tensor in block)
        # On the CPU: the features of a whole split may not fit on a GPU.
        return self._embed(prepare(block, first)).float().cpu()


class _ShardedRows:
    """Rows of all ranks, of which this rank holds those from index `first` on; gathered when first needed."""

    def __init__(self, local: NormalizedFeatures, first: int, device: torch.device | str) -> None:
        self.local = local
        self.first = first
        self.device = device
        self._gathered = local if distributed.world_size() == 1 else None

    def gathered(self) -> NormalizedFeatures:
        """Return the rows of all ranks. A collective operation: all ranks have to call it."""
        if self._gathered is None:
            # Collectives of NCCL need tensors on the GPU.
            parts = [distributed.all_gather_uneven(part.to(self.device)).cpu() for part in self.local]
            self._gathered = NormalizedFeatures(*parts)
        return self._gathered


def _check_finite(rows: _ShardedRows, split: Split, device: torch.device | str) -> None:
    """Check the features of all ranks, once for all evaluators: many functions take NaN without an error.

    Raises:
        NumericalError: on every rank, features of some images are not finite, or are so large that their length is not.
    """
    # The length of a row is finite only if all of its values are.
    numbers = rows.first + (~rows.local.norm[:, 0].isfinite()).nonzero()[:, 0]
    numbers = distributed.all_gather_uneven(numbers.to(device)).tolist()
    if not numbers:
        return
    # One more than is listed: there may be millions.
    names = [image_name("image", split.images, number) for number in numbers[: MAX_LISTED + 1]]
    listed = first_names(names, MAX_LISTED)
    raise NumericalError(
        f"the features of {len(numbers):,} of {format_count(len(split), 'image')} hold NaN or infinity ({listed}), so there is "
        "nothing to evaluate: the encoder's weights have diverged, or its numbers exceed its precision. Train again with a "
        "lower optim.lr, a longer optim.warmup_epochs or train.clip_norm=1; after training in fp16, with train.precision=fp32"
    )


def pixels(split: Split) -> Embed:
    """Return the embedding of the raw-pixel baseline: every value of the image, one channel if the images are gray."""
    channels = 1 if split.images.is_gray else 3

    def flatten(images: Tensor) -> Tensor:
        return images[:, :channels].flatten(1)

    return flatten


def _shard(count: int, block: int) -> tuple[int, int]:
    """First and last index (exclusive) of this rank's share of `count` rows, in whole blocks."""
    # Rounded up: the last rank may have less, or nothing.
    blocks = -(-count // (block * distributed.world_size()))
    first = min(distributed.rank() * blocks * block, count)
    last = min(first + blocks * block, count)
    return first, last
