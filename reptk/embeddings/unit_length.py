"""Vectors of unit length, as cosine similarity needs them; those that have no direction are refused."""

from dataclasses import replace

import torch
from torch import Tensor

from reptk.core.counts import format_count
from reptk.core.errors import DataError
from reptk.core.name_lists import first_names
from reptk.embeddings.embeddings import Embeddings
from reptk.embeddings.files.row_blocks import RowBlock

TOLERANCE = 2e-3
"""How far from 1 the length of a normalized vector may be: storing it in half precision rounds it."""

MAX_LISTED_IDS = 3


class UnitLengthNormalizer:
    """Brings blocks of rows to unit length, and counts the vectors for which that is impossible."""

    def __init__(self) -> None:
        self.count = 0
        self.all_unit = True
        """Whether all vectors so far had unit length already."""
        self.not_finite: list[str] = []
        """Ids of vectors that hold NaN or infinity."""
        self.zero: list[str] = []

    def normalize(self, block: RowBlock) -> RowBlock:
        """Return the rows with vectors of unit length; vectors that have it within rounding are not changed."""
        norms = block.vectors.float().norm(dim=1)
        self.count += len(norms)
        self.not_finite += _ids_where(block, ~norms.isfinite())
        self.zero += _ids_where(block, norms == 0)
        is_off = (norms - 1).abs() > TOLERANCE
        if not is_off.any():
            return block
        self.all_unit = False
        vectors = block.vectors.float()
        normalized = torch.nn.functional.normalize(vectors, dim=1)
        vectors = torch.where(is_off[:, None], normalized, vectors)
        return block._replace(vectors=vectors.to(block.vectors.dtype))

    def check(self, name: str) -> None:
        """Raise DataError if a vector has no direction; the message counts them and lists the first ids.

        Args:
            name: what to call the embeddings in the message.
        """
        for ids, problem in (
            (self.not_finite, "hold NaN or infinity"),
            (self.zero, "are zero, which have no direction"),
        ):
            if not ids:
                continue
            listed = first_names(list(map(repr, ids)), MAX_LISTED_IDS)
            raise DataError(
                f"{len(ids):,} of {format_count(self.count, 'embedding')} of {name} {problem}: {listed}. Leave them "
                "out, or embed those images again"
            )


def with_unit_length(embeddings: Embeddings, name: str) -> Embeddings:
    """Return the same object if all vectors have unit length, else a copy whose vectors have.

    Args:
        embeddings: vectors of any length.
        name: what to call them in messages.

    Raises:
        DataError: vectors that are not finite, or zero.
    """
    normalizer = UnitLengthNormalizer()
    for block in embeddings.blocks():
        normalizer.normalize(block)
    normalizer.check(name)
    if normalizer.all_unit:
        return embeddings
    # A second pass, so that a file that needs no change is never copied into memory.
    normalized = []
    for block in embeddings.blocks():
        normalized.append(normalizer.normalize(block).vectors)
    vectors = torch.cat(normalized)
    return replace(embeddings, vectors=vectors)


def _ids_where(block: RowBlock, mask: Tensor) -> list[str]:
    return [block.ids[row] for row in mask.nonzero().flatten().tolist()]
