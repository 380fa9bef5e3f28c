"""Images to vectors, batch by batch: what embedding into one file and into parts have in common."""

from collections.abc import Callable, Iterator
from contextlib import closing
from typing import NamedTuple

import torch
from torch import Tensor

from reptk.core.errors import DataError, NumericalError, ReptkError
from reptk.data import DevicePrefetcher
from reptk.data.loading.prefetch import prefetch
from reptk.embeddings.encoding.embedder import Embedder
from reptk.embeddings.encoding.image_sources import ImageGroup
from reptk.embeddings.files.row_blocks import RowBlock

MAX_LISTED_REASONS = 5
MAX_REASON_LETTERS = 300
"""How many skipped images are listed with their reasons, and at what length."""


class EncodedBatch(NamedTuple):
    """The vectors (v, F) of those images of a batch that could be embedded.

    `numbers` (v,) are theirs in the group, ascending; `stop` follows the last number of the whole batch.
    """

    numbers: Tensor
    vectors: Tensor
    stop: int


class SkippedImages:
    """Counts the images that are skipped, and lists the reasons of the first.

    Args:
        strict: raise an error for the first image instead.
    """

    def __init__(self, strict: bool) -> None:
        self.strict = strict
        self.count = 0
        self.num_without_vector = 0
        """How many of them were read, and have no usable embedding."""
        self.reasons: list[str] = []

    def add(self, reason: str, error: type[ReptkError] = DataError) -> None:
        """Count one image, or raise `error` if `strict`."""
        if self.strict:
            raise error(f"{reason}. To skip such images: without --strict")
        self.count += 1
        if error is NumericalError:
            self.num_without_vector += 1
        if len(self.reasons) < MAX_LISTED_REASONS:
            self.reasons.append(reason[:MAX_REASON_LETTERS])


def encode(
    group: ImageGroup,
    number_batches: Iterator[Tensor],
    embedder: Embedder,
    skipped_of_batch: Callable[[], SkippedImages],
    workers: int,
    advance: Callable[[int], None],
) -> Iterator[EncodedBatch]:
    """Yield the vectors of the images with these numbers, batch by batch.

    Args:
        group: the images.
        number_batches: their numbers, (b,) each.
        embedder: computes the vectors.
        skipped_of_batch: called for each batch, in order; returns what counts its images that are left out.
        workers: threads that decode images ahead.
        advance: called with the number of images of each batch.
    """
    images = group.images.resized(embedder.preprocessing.resize)
    with closing(prefetch(images, number_batches, workers=workers, device=embedder.device)) as host_batches:
        for pixels, batch_numbers in DevicePrefetcher(host_batches, embedder.device):
            numbers = batch_numbers.cpu()
            vectors = embedder.embed_images(pixels)
            is_valid = have_vectors(group, numbers, vectors, skipped_of_batch())
            advance(len(numbers))
            yield EncodedBatch(numbers[is_valid], vectors[is_valid], int(numbers[-1]) + 1)


def batches(numbers: Tensor, batch_size: int) -> Iterator[Tensor]:
    """Yield numbers (n,) in pieces of at most `batch_size`."""
    for start in range(0, len(numbers), batch_size):
        yield numbers[start : start + batch_size]


def have_vectors(group: ImageGroup, numbers: Tensor, vectors: Tensor, skipped: SkippedImages) -> Tensor:
    """Return which images of a batch were read and have a vector with a direction, (b,) bool; the others are skipped.

    Args:
        group: the images that the batch belongs to.
        numbers: (b,) of the batch's images in the group.
        vectors: (b, F).
        skipped: counts what is left out.
    """
    unreadable = group.images.unreadable(numbers)
    norms = vectors.norm(dim=1)
    is_valid = torch.ones(len(numbers), dtype=torch.bool)
    for position, number in enumerate(numbers.tolist()):
        if number in unreadable:
            skipped.add(unreadable[number])
            is_valid[position] = False
        # A zero or infinite vector has no direction, so no similarity.
        elif not norms[position].isfinite():
            skipped.add(f"{group.ids[number]}: its embedding is not finite", NumericalError)
            is_valid[position] = False
        elif norms[position] == 0:
            skipped.add(f"{group.ids[number]}: its embedding is zero", NumericalError)
            is_valid[position] = False
    return is_valid


def row_block(group: ImageGroup, numbers: Tensor, vectors: Tensor, file_stats: Tensor | None) -> RowBlock:
    """Return the rows of the images with these numbers (b,).

    Args:
        group: the images.
        numbers: (b,).
        vectors: (b, F).
        file_stats: (b, 2) of their files, from before they were read; None if they are not files.
    """
    ids = [group.ids[number] for number in numbers.tolist()]
    paths = None
    if group.paths is not None:
        paths = [group.paths[number] for number in numbers.tolist()]
    return RowBlock(vectors, group.labels[numbers], ids, paths, file_stats)
