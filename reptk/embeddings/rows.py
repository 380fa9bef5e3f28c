"""What embeddings are written and read by: some rows at a time, and what holds for all of them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

FORMAT, VERSION = "reptk embeddings", 1
BLOCK_BYTES = 1 << 26
"""About how much of the vectors is in hand while a file is gone through."""


class Rows(NamedTuple):
    """Some images: vectors (b, F), labels (b,) int64, an id each, and paths unless they come from no files."""

    vectors: Tensor
    labels: Tensor
    ids: Sequence[str]
    paths: Sequence[str] | None


@dataclass
class Whole:
    """What holds for all rows of a file. `about` may be added to until the file is finished.

    Args:
        count: at most so many rows; fewer where images cannot be read.
        width: F.
        half: vectors are kept in float16 instead of float32.
        ids_are_paths: one column serves as both.
        has_paths: whether there are any.
        has_odd_names: whether an id or path is not UTF-8.
        classes: names, by label.
    """

    count: int
    width: int
    half: bool
    ids_are_paths: bool
    has_paths: bool
    has_odd_names: bool = False
    classes: tuple[str, ...] = ()
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def dtype(self) -> torch.dtype:
        return torch.float16 if self.half else torch.float32

    def vector_bytes(self) -> int:
        return self.count * self.width * self.dtype.itemsize


def rows_per_block(width: int) -> int:
    """How many float32 rows make a block."""
    return max(1, BLOCK_BYTES // (4 * width))
