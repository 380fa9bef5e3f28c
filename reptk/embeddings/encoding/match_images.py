"""Which images are among others, and have not changed: by their names, their sizes and their times of modification."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor


class MatchedImages(NamedTuple):
    """Images and the rows of the same names.

    rows: (n,) int64, -1 for an image whose name is not among the others.
    is_same: (n,) bool, whether there is such a row, and its file is the same.
    """

    rows: Tensor
    is_same: Tensor


def match_images(
    names: Iterable[str], file_stats: Tensor | None, row_of: Mapping[str, int], other_stats: Tensor | None
) -> MatchedImages:
    """Match images with the rows of others.

    Args:
        names: of n images.
        file_stats: (n, 2), the size and the time of modification of each file; None if they are not known.
        row_of: the rows of the others, by name.
        other_stats: (m, 2) of their files; None if they are not files, so that names alone are compared.
    """
    rows = torch.tensor([row_of.get(name, -1) for name in names], dtype=torch.long)
    is_same = rows >= 0
    if other_stats is not None:
        if file_stats is None:
            is_same[:] = False
        else:
            is_same &= (file_stats == other_stats[rows]).all(dim=1)
    return MatchedImages(rows, is_same)
