"""What the implementations of log-sum-exp share: the rows and what is known of them, and what is summed over whom."""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

Over = Literal["positives", "negatives", "others"]


class Columns(NamedTuple):
    """Rows z (M, D) that anchors are compared with. The first set an implementation is given is the anchors themselves.

    group: (M,) which rows belong together. In the backward pass g and lse (T, M) are the gradient of the rows' own
    log-sum-exp, term by term, and its value; None in the forward pass, and for keys, which are nobody's anchors.
    """

    z: Tensor
    group: Tensor
    g: Tensor | None
    lse: Tensor | None


class Term(NamedTuple):
    """sum exp(slope * s) over some rows. tame: exp of that never leaves the type, so it needs no shift."""

    slope: float | Tensor
    over: Over
    tame: bool


class Forward(NamedTuple):
    """log_sum (T, n); mean (T, n) similarity under the softmax, if asked for; kept: what backward can use again."""

    log_sum: Tensor
    mean: Tensor
    kept: Tensor


def is_tame(slope: float, dtype: torch.dtype) -> bool:
    """Whether exp(slope * s) for s in -1..1, summed over any batch, stays within the type without being shifted."""
    return abs(slope) <= (600 if dtype == torch.float64 else 50)


def excluded(rows: Columns, columns: Columns, over: Over) -> Tensor | None:
    """(n, m) the pairs that do not count, by their groups alone: a row itself is not looked for here."""
    if over == "others":
        return None
    same = rows.group[:, None] == columns.group[None, :]
    return ~same if over == "positives" else same
