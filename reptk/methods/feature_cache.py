"""Features of the training images in memory, by the number of the image."""

from collections.abc import Callable

import torch
from torch import Tensor

MIN_GROWTH = 1.25
"""Factor by which the memory grows at least, so that it is not copied in every step."""


class FeatureCache:
    """Rows of float16 by the number of an image, which are computed when they are first needed.

    It is not an `nn.Module`, and no checkpoint holds it: a resumed run computes the rows again. What is returned is rounded to
    float16 in the first use of a row as in later ones.

    Args:
        dim: D, the width of a row. An image takes 2 * D bytes, in the memory of the device that the rows are on.
    """

    def __init__(self, dim: int) -> None:
        self._rows = torch.empty(0, dim, dtype=torch.float16)
        self._is_known = torch.empty(0, dtype=torch.bool)

    def __len__(self) -> int:
        """Return how many rows are known."""
        return int(self._is_known.sum())

    def num_bytes(self, num_images: int) -> int:
        """Return the memory that the rows of so many images take."""
        return num_images * self._rows.shape[1] * self._rows.element_size()

    def get(self, index: Tensor, compute: Callable[[Tensor], Tensor]) -> Tensor:
        """Return rows (B, D) in float32.

        Args:
            index: (B,) numbers of images, from 0.
            compute: from positions (n,) in the batch to the rows (n, D) of these images; called for those that are not known.
        """
        self._grow_to(index)
        unknown = (~self._is_known[index]).nonzero()[:, 0]
        if len(unknown):
            self.put(index[unknown], compute(unknown))
        return self._rows[index].float()

    def put(self, index: Tensor, rows: Tensor) -> None:
        """Store rows (n, D) of the images with these numbers (n,)."""
        self._grow_to(index)
        self._rows[index] = rows.to(self._rows.dtype)
        self._is_known[index] = True

    def _grow_to(self, index: Tensor) -> None:
        needed = int(index.max()) + 1
        size, dim = self._rows.shape
        if needed <= size:
            return
        size_after = max(needed, int(MIN_GROWTH * size))
        rows = torch.empty(size_after, dim, dtype=self._rows.dtype, device=index.device)
        rows[:size] = self._rows
        is_known = torch.zeros(size_after, dtype=torch.bool, device=index.device)
        is_known[:size] = self._is_known
        self._rows, self._is_known = rows, is_known
