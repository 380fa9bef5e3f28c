"""Backends: three ways to execute operations whose parameters have been drawn.

`torch_backend` runs whole batches on any device, `numba_backend` image by image on a CPU, `kornia_backend` by kornia's own
classes. A backend draws nothing, so all of them make the same views of the same parameters, to rounding.
"""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor


class Backend(Protocol):
    """Executes the operations for which it was built."""

    def run(self, images: Tensor, params: Sequence[Tensor], out: Tensor | None = None) -> Tensor:
        """Return the images after all operations.

        Args:
            images: (n, 3, H, W) uint8, or floats in 0..1.
            params: a table (n, k) for each operation, of its `sample`.
            out: (n, 3, h, w), where the result may be written.

        Returns:
            (n, 3, h, w) floats; `out` itself if it was used.
        """
        ...
