"""The order of neighbours: by similarity, best first, equal ones by row; as one integer that sorts like that."""

import numpy as np
import torch
from torch import Tensor

MOST_ROWS = 1 << 32
NONE = torch.iinfo(torch.int64).min
"""Key of no neighbour: after all others."""


def keys(similarities: Tensor, rows: Tensor) -> Tensor:
    """Of float32 similarities and rows below 2^32: int64, greater is nearer."""
    bits = similarities.view(torch.int32).long()
    rising = torch.where(bits >= 0, bits, -(1 << 31) - bits)  # floats sort like integers of sign and magnitude
    return (rising << 32) | (MOST_ROWS - 1 - rows)


def similarities(made: Tensor) -> Tensor:
    """Back from keys; -inf for `NONE`."""
    rising = made >> 32
    bits = torch.where(rising >= 0, rising, -(1 << 31) - rising)
    return bits.int().view(torch.float32).masked_fill_(made == NONE, -torch.inf)


def rows(made: Tensor) -> Tensor:
    """Back from keys; -1 for `NONE`."""
    return torch.where(made == NONE, -1, MOST_ROWS - 1 - (made & (MOST_ROWS - 1)))


def nearest(made: Tensor, k: int) -> Tensor:
    """The k greatest keys of each line, greatest first."""
    if made.device.type != "cpu":
        return made.topk(k, dim=1).values
    # NumPy sorts integers several times as fast as torch.
    return torch.from_numpy(np.sort(made.numpy(), axis=1)[:, : -k - 1 : -1].copy())
