"""Vectors of an earlier file of embeddings that are still valid, so that only new and changed images are embedded."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reptk.core.errors import DataError, UsageError
from reptk.core.files import parse_json
from reptk.embeddings.embeddings import Embeddings
from reptk.embeddings.encoding.encode_images import EncodedBatch
from reptk.embeddings.encoding.image_sources import ImageGroup, ImageSource
from reptk.embeddings.encoding.match_images import match_images
from reptk.embeddings.files.row_blocks import Header, dtype_name, rows_per_block

MAX_VALUE_LETTERS = 300


class EarlierVectors:
    """The vectors of an earlier file whose images have not changed.

    Args:
        vectors: (m, F), all of the earlier file.
        row_of: (n,) for each image of a group its row in the earlier file, -1 if it is new or has changed.
        num_changed: how many images are in the earlier file as other bytes.
        num_removed: how many images of the earlier file are gone.
    """

    def __init__(self, vectors: Tensor, row_of: Tensor, num_changed: int, num_removed: int) -> None:
        self.vectors = vectors
        self.row_of = row_of
        self.num_changed = num_changed
        self.num_removed = num_removed

    @property
    def num_unchanged(self) -> int:
        return int((self.row_of >= 0).sum())

    def remaining(self) -> Tensor:
        """Return the numbers of the images that have to be embedded."""
        return (self.row_of < 0).nonzero().flatten()

    def describe(self) -> str:
        """Return a line for the summary that is printed before work starts."""
        num_remaining = len(self.row_of) - self.num_unchanged
        num_new = num_remaining - self.num_changed
        return (
            f"  update: {self.num_unchanged:,} unchanged, {num_new:,} new, {self.num_changed:,} changed, "
            f"{self.num_removed:,} removed"
        )

    def merge(self, batches: Iterable[EncodedBatch]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the numbers (b,) and vectors (b, F) of all images, the unchanged ones and those of the batches, in order."""
        nothing = torch.empty(0, self.vectors.shape[1])
        start = 0
        for batch in batches:
            yield from self._rows(start, batch)
            start = batch.stop
        yield from self._rows(start, EncodedBatch(torch.empty(0, dtype=torch.long), nothing, len(self.row_of)))

    def _rows(self, start: int, batch: EncodedBatch) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the images from `start` to the end of a batch, so few at a time that they fit into memory."""
        step = rows_per_block(self.vectors.shape[1])
        for first in range(start, batch.stop, step):
            numbers = torch.arange(first, min(first + step, batch.stop))
            rows = self.row_of[numbers]
            is_encoded = torch.isin(numbers, batch.numbers)
            # The others could not be read.
            has_vector = is_encoded | (rows >= 0)
            numbers, rows, is_encoded = numbers[has_vector], rows[has_vector], is_encoded[has_vector]
            vectors = torch.empty(len(numbers), self.vectors.shape[1])
            vectors[~is_encoded] = self.vectors[rows[~is_encoded]].float()
            vectors[is_encoded] = batch.vectors[torch.searchsorted(batch.numbers, numbers[is_encoded])]
            if len(numbers):
                yield numbers, vectors


def open_earlier(path: Path, source: ImageSource, header: Header) -> EarlierVectors | None:
    """Return what an earlier file of embeddings holds of these images; None if there is no file yet.

    Images are recognized by their paths, sizes in bytes and times of modification.

    Args:
        path: the earlier file.
        source: the images as they are now.
        header: of the embeddings as they would be computed now.

    Raises:
        UsageError: the images are not files.
        DataError: the file is damaged, does not say which files it was computed of, or has other images, another encoder or
            other preprocessing.
    """
    [group, *others] = source.groups
    if group.paths is None or others:
        raise UsageError("--update is for images that are files; embed this data set as a whole: --force")
    if not path.exists():
        return None
    earlier = Embeddings.load(path)
    if earlier.file_stats is None or earlier.paths is None:
        raise DataError(_refused(path, "it does not say which files it was computed of, as reptk now records"))
    differences = settings_differences(earlier.metadata, earlier.vectors.dtype, header)
    if differences:
        raise DataError(_refused(path, "; ".join(differences)))
    return _match(earlier, group)


def _match(earlier: Embeddings, group: ImageGroup) -> EarlierVectors:
    """Match the images of a group with those of an earlier file, by their paths."""
    row_of_path = {name: row for row, name in enumerate(earlier.paths)}
    matched = match_images(group.paths, group.file_stats, row_of_path, earlier.file_stats)
    is_known = matched.rows >= 0
    num_removed = len(row_of_path) - len(matched.rows[is_known].unique())
    num_changed = int((is_known & ~matched.is_same).sum())
    return EarlierVectors(earlier.vectors, matched.rows.where(matched.is_same, -1), num_changed, num_removed)


def settings_differences(metadata: dict[str, Any], dtype: torch.dtype, header: Header) -> list[str]:
    """Say what of the encoder, the preprocessing and the images was other when an earlier file was written.

    Args:
        metadata: of the earlier file.
        dtype: of its vectors.
        header: of the embeddings as they would be computed now.
    """
    differences = []
    then = _settings(metadata, dtype)
    now = _settings(header.metadata, header.dtype)
    for name in [*now, *(name for name in then if name not in now)]:
        if then.get(name) == now.get(name):
            continue
        if name == "sha256":
            differences.append("the encoder has other weights")
        else:
            differences.append(f"{name} was {_short(then.get(name))}, now {_short(now.get(name))}")
    return differences


def _settings(metadata: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """Return all that vectors depend on, as it is read back from a file."""
    settings = {**metadata.get("encoder", {}), **metadata.get("preprocessing", {})}
    settings.pop("origin", None)  # the weights may have moved
    settings |= {"root": metadata.get("root"), "dtype": dtype_name(dtype)}
    return parse_json(json.dumps(settings))


def _short(value: Any) -> str:
    text = str(value)
    if len(text) > MAX_VALUE_LETTERS:
        return f"{text[:MAX_VALUE_LETTERS]}..."
    return text


def _refused(path: Path, reason: str) -> str:
    return f"{path} cannot be updated: {reason}. Embed all images again: --force instead of --update"
