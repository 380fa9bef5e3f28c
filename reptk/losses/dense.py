"""Log-sum-exp by one n x m matrix: for small batches, and what the other implementations are held against."""

import math

import torch
from torch import Tensor

from reptk.losses.columns import Columns, Forward, excluded


def forward(
    own: Columns, columns: list[Columns], slope: Tensor, over: str, learned: bool, product: torch.dtype | None = None
) -> Forward:
    """See `reptk::log_sum_exp`. Keeps every row's softmax."""
    logits = _logits(own, columns, slope, over)
    top = logits.amax(1, keepdim=True)
    top.masked_fill_(top == -math.inf, 0.0)
    share = logits.sub_(top).exp_()
    total = share.sum(1, keepdim=True)
    log_sum = (top + total.log()).squeeze(1)
    share.div_(total.masked_fill_(total == 0, 1.0))
    mean = log_sum.new_empty(0)
    if learned:
        z = torch.cat([side.z for side in columns])
        mean = (share * (own.z @ z.T)).sum(1)
    return Forward(log_sum, mean, share)


def backward(
    own: Columns, columns: list[Columns], slope: Tensor, over: str, kept: Tensor, product: torch.dtype | None = None
) -> Tensor:
    """Gradient of the own rows (n, D)."""
    n = len(own.z)
    weights = kept * own.g[:, None]
    # Among the own rows, each is also a candidate of every other.
    as_candidate = weights[:, :n].T.clone()
    weights[:, :n] += as_candidate
    start = n
    for side in columns[1:]:
        if side.g is not None:
            logits = _logits(own, [side], slope, over, own_first=False)
            weights[:, start : start + len(side.z)] += logits.sub_(side.lse).exp_().mul_(side.g)
        start += len(side.z)
    z = own.z if len(columns) == 1 else torch.cat([side.z for side in columns])
    return (weights @ z).mul_(slope.to(weights.dtype))


def _logits(own: Columns, columns: list[Columns], slope: Tensor, over: str, own_first: bool = True) -> Tensor:
    z = columns[0].z if len(columns) == 1 else torch.cat([side.z for side in columns])
    logits = (own.z * slope.to(own.z)) @ z.T
    if own_first:
        logits.fill_diagonal_(-math.inf)
    if over != "others":
        out = torch.cat([excluded(own, side, over) for side in columns], 1)
        logits.masked_fill_(out, -math.inf)
    return logits
