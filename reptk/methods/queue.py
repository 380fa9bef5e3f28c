"""A queue of rows from earlier steps, with their ids: keys of MoCo, features of a teacher, a cross-batch memory."""

import torch
from torch import Tensor, nn

from reptk.methods.protocol import Step

UNUSED_ID = -(2**62)
"""This id and lower ones belong to the initial rows of a queue, which are positives of no row."""


class Queue(nn.Module):
    """The last K rows that were pushed, a ring that overwrites its oldest rows.

    It starts with random rows of unit length. Each of them has a unique id that no image or class uses. Rows and ids are
    buffers, so that checkpoints hold them. The position in the ring is a function of the step, so that a resumed run
    needs no further state.

    Source: He et al. 2020, arXiv 1911.05722, section 3.2, and the code facebookresearch/moco. There K must be a multiple of
    the batch; here it may be any number, smaller than the batch too.

    Args:
        size: K.
        dim: D.

    Attributes:
        rows: (K, D) as they were pushed.
        ids: (K,) int64, of the rows.
    """

    rows: Tensor
    ids: Tensor

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        if size < 1:
            raise ValueError(f"a queue has at least 1 row, not {size}")
        self.register_buffer("rows", nn.functional.normalize(torch.randn(size, dim), dim=1))
        self.register_buffer("ids", UNUSED_ID - torch.arange(size))

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def is_used(self) -> Tensor:
        """(K,) booleans: whether a row was pushed, and is no initial one."""
        return self.ids > UNUSED_ID

    def used(self) -> tuple[Tensor, Tensor]:
        """Return the rows (U, D) that were pushed, and their ids (U,). On a GPU, the host waits for it to know how many."""
        is_used = self.is_used
        return self.rows[is_used], self.ids[is_used]

    @torch.no_grad()
    def push(self, step: Step, rows: Tensor, ids: Tensor) -> None:
        """Replace the oldest rows. Call it once in each step, from `Method.after_step`, with the same number of rows.

        On several ranks, push the rows of all of them in the order of the ranks (`distributed.all_gather`), so that every
        rank has the same queue. Of more than K rows, the last K are stored.

        Args:
            step: the one that the rows are from.
            rows: (N, D); detached and copied. They are not normalized.
            ids: (N,) integers.

        Raises:
            ValueError: other shapes.
        """
        dim = self.rows.shape[1]
        if rows.ndim != 2 or rows.shape[1] != dim or ids.shape != rows.shape[:1]:
            raise ValueError(
                f"a queue of rows (K, {dim}) takes rows (N, {dim}) and ids (N,), not {tuple(rows.shape)} and {tuple(ids.shape)}"
            )
        size = len(self)
        count = min(len(rows), size)
        positions = (step.number * count + torch.arange(count, device=self.ids.device)) % size
        # Negative slices would return everything for 0 rows.
        first = len(rows) - count
        self.rows.index_copy_(0, positions, rows[first:].to(self.rows.dtype))
        self.ids.index_copy_(0, positions, ids[first:].to(self.ids.dtype))
