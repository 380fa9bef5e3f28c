"""Log-sum-exp by one n x m matrix: for small batches, and what the other implementations are held against."""

import math

import torch
from torch import Tensor

from reptk.losses.core.key_blocks import Columns, Forward, Term, excluded


def forward(own: Columns, columns: list[Columns], terms: list[Term], learned: bool) -> Forward:
    """See `columns.Forward`. Keeps exp(logits) of every term, or the logits where these are too large for that."""
    z = _rows(columns)
    similarity = own.z @ z.T
    kept = z.new_empty(len(terms), *similarity.shape)
    log_sum = z.new_empty(len(terms), similarity.shape[0])
    mean = torch.empty_like(log_sum) if learned else z.new_empty(0)
    for number, term in enumerate(terms):
        logits = torch.mul(similarity, term.slope, out=kept[number])
        logits.fill_diagonal_(-math.inf)  # the first columns are the own rows
        if term.over != "others":
            logits.masked_fill_(torch.cat([excluded(own, side, term.over) for side in columns], 1), -math.inf)
        if term.tame:
            log_sum[number] = logits.exp_().sum(1).log_()
        else:
            log_sum[number] = torch.logsumexp(logits, 1)
        if learned:
            anchor = log_sum[number].masked_fill(log_sum[number] == -math.inf, 0.0)[:, None]
            share = logits * (-anchor).exp() if term.tame else (logits - anchor).exp_()
            mean[number] = (share * similarity).sum(1)
    return Forward(log_sum, mean, kept)


def backward(own: Columns, columns: list[Columns], terms: list[Term], kept: Tensor) -> Tensor:
    """Gradient of the own rows (n, D)."""
    weights = None
    for number, term in enumerate(terms):
        g, lse = _of_columns(columns, number)
        if term.tame:
            u = (g * term.slope).mul_(torch.exp(-lse))
            made = (u[: own.z.shape[0], None] + u).mul_(kept[number])
        else:
            made = (kept[number] - own.lse[number, :, None]).exp_().mul_(own.g[number, :, None])
            made += (kept[number] - lse).exp_().mul_(g)
            made *= term.slope
        weights = made if weights is None else weights.add_(made)
    return weights @ _rows(columns)


def _of_columns(columns: list[Columns], term: int) -> tuple[Tensor, Tensor]:
    """(m,) g and lse of all columns; keys, which are no anchors, weigh nothing."""
    own, *others = columns
    if not others:
        return own.g[term], own.lse[term]
    sides = [
        (own.z.new_zeros(len(side.z)), own.z.new_full((len(side.z),), math.inf))
        if side.g is None
        else (side.g[term], side.lse[term])
        for side in columns
    ]
    g, lse = zip(*sides, strict=True)
    return torch.cat(g), torch.cat(lse)


def _rows(columns: list[Columns]) -> Tensor:
    return columns[0].z if len(columns) == 1 else torch.cat([side.z for side in columns])
