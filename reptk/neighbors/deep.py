"""Rankings so deep that most of the bank is in them: all similarities are computed, and the best sorted out."""

import numpy as np
import torch
from torch import Tensor

from reptk.neighbors import order

SHARE = 16
"""From one row in so many on all similarities are computed; at a tenth this was clearly quicker, at a twentieth as quick."""

ASKED, CHUNK = 256, 16384
"""Queries, and rows of the bank, whose products are computed at a time: 32 MB."""


def is_deep(bank: Tensor, k: int) -> bool:
    """Whether so many neighbours are a large part of a bank on the CPU."""
    return bank.device.type == "cpu" and k * SHARE >= len(bank)


def deepest(bank: Tensor, queries: Tensor, own: Tensor, k: int) -> Tensor:
    """(q, k) the nearest rows of the bank as keys (`order`), greatest first; `own` (q,) are left out.

    Sums in float64, but in BLAS's order: another cut of the bank shows in about one in ten million rounded values.
    """
    made = torch.empty(len(queries), k, dtype=torch.int64)
    for first in range(0, len(queries), ASKED):
        asked, mine = queries[first : first + ASKED].float().double(), own[first : first + ASKED]
        found = torch.empty(len(asked), len(bank))
        for start in range(0, len(bank), CHUNK):
            found[:, start : start + CHUNK] = asked @ bank[start : start + CHUNK].float().double().T
        found += 0.0  # -0 becomes 0
        has_own = (mine >= 0).nonzero()[:, 0]
        found[has_own, mine[has_own]] = -torch.inf
        rows = _best(found, k)
        keys = order.keys(found.gather(1, rows), rows).masked_fill_(rows == mine[:, None], order.NONE)
        made[first : first + len(asked)] = order.nearest(keys, k)
    return made


def _best(similarities: Tensor, k: int) -> Tensor:
    """(q, k) the columns of the k greatest values of each line in any order; of equal ones the first columns."""
    count = similarities.shape[1]
    if k == count:
        return torch.arange(count).expand(len(similarities), -1)
    parted = np.argpartition(similarities.numpy(), count - k, axis=1)
    rows = torch.from_numpy(parted[:, count - k :].copy())
    least = similarities.gather(1, rows).amin(1, keepdim=True)
    equal = (similarities == least).sum(1)
    for line in (equal != (similarities.gather(1, rows) == least).sum(1)).nonzero()[:, 0].tolist():
        above = (similarities[line] > least[line]).nonzero()[:, 0]
        level = (similarities[line] == least[line]).nonzero()[:, 0]
        rows[line] = torch.cat([above, level[: k - len(above)]])
    return rows
