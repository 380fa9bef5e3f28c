"""Row statistics: what a contrastive loss needs to know about a batch, written once for all of them.

Every loss here is, per anchor, some mean over its positives plus logarithms of weighted sums of exponentials over its
positives P(i), its negatives N(i), or all others A(i). A loss writes down which sums it wants as `Term`s; how they are
computed (here: from the dense N x N matrix) is nobody else's business and can be replaced in this file.
"""

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor


class Term(NamedTuple):
    """`exp(log_weight) * sum_j exp(slope * s_ij)` over the given rows j, where s_ij = z_i . z_j.

    `over`: "positives" (same id, not i itself), "negatives" (another id) or "others" (both).
    """

    over: Literal["positives", "negatives", "others"]
    slope: float
    log_weight: float = 0.0


class Rows:
    """Unit rows and who is whose positive.

    Args:
        z: (N, D) embeddings of any scale; they are normalised in float32 or wider. A zero row stays zero and has a
            finite gradient.
        ids: (N,) integers; rows that share an id are positives of each other.

    Raises:
        ValueError: wrong shapes, integer embeddings or floating-point ids.
    """

    def __init__(self, z: Tensor, ids: Tensor) -> None:
        _check(z, ids)
        with torch.autocast(z.device.type, enabled=False):
            unit = normalize(z)
            self._similarity = unit @ unit.T
        same = ids[:, None] == ids[None, :]
        others = ~torch.eye(len(ids), dtype=torch.bool, device=ids.device)
        self._members = {"positives": same & others, "negatives": ~same, "others": others}

    def positives(self) -> Tensor:
        """(N,) how many positives each row has."""
        return self._members["positives"].sum(1)

    def mean_over_positives(self) -> Tensor:
        """(N,) mean similarity of each row to its positives; 0 for a row without any."""
        total = torch.where(self._members["positives"], self._similarity, 0.0).sum(1)
        return total / self.positives().clamp_min(1)

    def log_sum(self, *terms: Term) -> Tensor:
        """(N,) logarithm of the sum of all terms; minus infinity (without gradient) for a row that has no member."""
        return _log_sum_exp(
            [
                torch.where(self._members[term.over], self._similarity * term.slope + term.log_weight, -math.inf)
                for term in terms
            ]
        )


def mean_over_anchors(values: Tensor, positives: Tensor) -> Tensor:
    """Mean of the values of the rows that have a positive; 0, still attached to the graph, if there is none."""
    has_positive = positives > 0
    total = torch.where(has_positive, values, 0.0).sum()
    return total / has_positive.sum().clamp_min(1)


def normalize(z: Tensor) -> Tensor:
    """Rows of unit length, in float32 or wider, whatever their scale (no overflow, no underflow)."""
    z = z.to(torch.promote_types(z.dtype, torch.float32))
    largest = z.detach().abs().amax(1, keepdim=True)
    is_zero = largest == 0
    z = z / torch.where(is_zero, 1.0, largest)
    return z / torch.where(is_zero, 1.0, z.norm(dim=1, keepdim=True))


def _log_sum_exp(logits: list[Tensor]) -> Tensor:
    top = torch.stack([part.detach().amax(1) for part in logits]).amax(0)
    top = torch.where(top.isfinite(), top, 0.0)
    total = sum(torch.exp(part - top[:, None]).sum(1) for part in logits)
    empty = total == 0
    return torch.where(empty, -math.inf, top + torch.log(torch.where(empty, 1.0, total)))


def _check(z: Tensor, ids: Tensor) -> None:
    if z.ndim != 2 or ids.ndim != 1 or len(z) != len(ids):
        raise ValueError(f"a loss takes z (N, D) and ids (N,), got {tuple(z.shape)} and {tuple(ids.shape)}")
    if not z.numel():
        raise ValueError(f"z is empty: {tuple(z.shape)}")
    if not z.is_floating_point():
        raise ValueError(f"z must be floating point, got {z.dtype}")
    if ids.is_floating_point() or ids.is_complex():
        raise ValueError(f"ids must be integers, got {ids.dtype}")
